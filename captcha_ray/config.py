"""Provide the base of job configs: frozen dataclasses whose field docstrings are the `--help`.

Checks what can be checked without data. Does not read files, does not know Ray or torch.
"""

import dataclasses
import json
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from captcha_ray.errors import check, check_keys

DEMO = "demo"
"""Folder, relative to the working directory, for what jobs without arguments make."""


class Config:
    """A config with JSON both ways and a check of fields that take one of a few words."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal:
                value, words = getattr(self, name), get_args(kind)
                check(value in words, f"{name} is {value!r}; it must be one of {', '.join(words)}")

    def _check_at_least(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            check(value >= least, f"{name} is {value}; it must be at least {least}")

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
