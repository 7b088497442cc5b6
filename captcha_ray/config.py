"""Provide the base of job configs: frozen dataclasses whose field docstrings are the `--help`.

Checks what can be checked without data. Does not read files, does not know Ray or torch.
"""

import dataclasses
import json
import math
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from captcha_ray.errors import check, check_keys

DEMO = "demo"
"""Folder, relative to the working directory, for what jobs without arguments make."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """Values that a field takes, from low to high, as its annotation: `epochs: Annotated[int, at_least(1)]`.

    must_be: end of the error's sentence. above, below: low, or high, is excluded.
    """

    low: float
    high: float
    must_be: str
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Return whether a value is within the limit."""
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )


def at_least(low: float) -> Limit:
    """Return the limit of values from `low` on."""
    return Limit(low, math.inf, f"at least {low}")


NOT_NEGATIVE = Limit(0, math.inf, "finite and not negative", below=True)
POSITIVE = Limit(0, math.inf, "finite and above 0", above=True, below=True)
SHARE = Limit(0, 1, "0 to 1")
SHARE_BELOW_1 = Limit(0, 1, "0 to below 1", below=True)


class Config:
    """A config with JSON both ways and a check of its fields' words and limits."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal:
                words = get_args(kind)
                check(value in words, f"{name} is {value!r}; it must be one of {', '.join(words)}")
            for limit in getattr(kind, "__metadata__", ()):
                check(limit.holds(value), f"{name} is {value}; it must be {limit.must_be}")

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON types; tuples become lists."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the config that `to_dict` gave.

        Raises InputError for an unknown field, naming the nearest, or a missing one.
        """
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        check_keys(list(values), known, f"field of {cls.__name__}")
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            lacks = field.default is dataclasses.MISSING and field.name not in values
            check(not lacks, f"the field {field.name!r} of {cls.__name__} is missing")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
