"""Define what a search may vary: ranges and choices over the fields of a training config.

`OFFERED` is what a name alone stands for; a TOML file and `--vary` narrow, widen, add and remove. Knows no Ray and no
Optuna, samples nothing.
"""

import dataclasses
import itertools
import math
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from captcha_ray.errors import InputError, check, check_keys
from captcha_ray.recipes import settings
from captcha_ray.recipes.config import Setting, TrainConfig
from captcha_ray.storage import filesystem

GRID_POINTS = 3
"""Values of a range in a grid: its ends and its middle."""

AUGMENTATION = "augmentation"
"""Not a field but four: a factor, 0 to 1, of the amounts in `FULL_AUGMENTATION`."""

FULL_AUGMENTATION = {"rotation_degrees": 5.0, "shift_fraction": 0.05, "shear_degrees": 5.0, "zoom_fraction": 0.1}
"""Amounts of an augmentation of 1. Twice as much kept `multi_head_cnn` from learning 675 captchas in 60 epochs."""


@dataclasses.dataclass(frozen=True)
class Range:
    """All numbers from low to high, both included. log: uniform over orders of magnitude. whole: integers."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def points(self) -> list[Any]:
        """Return `GRID_POINTS` values from end to end, evenly spaced."""
        a, b = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        inner = [a + (b - a) * k / (GRID_POINTS - 1) for k in range(1, GRID_POINTS - 1)]
        values = [self.low, *((math.exp(v) if self.log else v) for v in inner), self.high]
        return list(dict.fromkeys(round(v) for v in values)) if self.whole else values

    def ends(self) -> list[Any]:
        """Return the lowest and the highest value."""
        return [self.low, self.high]

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{':log' if self.log else ''}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Any, ...]

    def points(self) -> list[Any]:
        """Return all values."""
        return list(self.values)

    ends = points

    def __str__(self) -> str:
        return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in self.values)


Parameter = Range | Choice
Space = dict[str, Parameter]

OFFERED: Space = {
    "learning_rate": Range(1e-4, 1e-1, log=True),
    "batch_size": Choice((16, 32, 64)),
    "dropout": Range(0.0, 0.7),
    "optimizer": Choice(("sgd", "rmsprop", "adam", "adamw")),
    "momentum": Choice((0.0, 0.9)),
    "weight_decay": Range(1e-6, 1e-1, log=True),
    "schedule": Choice(("constant", "one_cycle", "warmup_stable_decay")),
    "label_smoothing": Range(0.0, 0.2),
    AUGMENTATION: Range(0.0, 1.0),
    "rotation_degrees": Range(0.0, 15.0),
    "shift_fraction": Range(0.0, 0.15),
    "shear_degrees": Range(0.0, 15.0),
    "zoom_fraction": Range(0.0, 0.25),
    "setting": Choice(get_args(Setting)),
}
"""Every parameter that a search can vary, and its values if no others are given."""

DEFAULT = ("learning_rate", "batch_size", "dropout", "schedule", AUGMENTATION)
"""Parameters that are varied by default."""


def build(recipe: TrainConfig, toml: str, vary: Sequence[str], *, only: bool = False) -> Space:
    """Return the space of `DEFAULT`, then a TOML file, then `name[=values]` words; of a name the last one counts.

    Args:
        recipe: Whose fields are varied.
        toml: URI of the file, or "".
        vary: Words of the command line.
        only: Leave `DEFAULT` out.

    Raises:
        InputError: A name is unknown (the nearest is named), a value does not fit its field, the space is empty, or
            a parameter stands together with one of its parts.
    """
    space: Space = {} if only else {name: OFFERED[name] for name in DEFAULT}
    given: list[tuple[str, Any]] = list(_read_toml(toml).items()) if toml else []
    given += [_split(word) for word in vary]
    for name, value in given:
        check_keys([name], list(OFFERED), "parameter of a search")
        if _is_off(value):
            space.pop(name, None)
        else:
            space[name] = _parameter(name, value)
    check(bool(space), "the space is empty; vary at least one parameter, such as --vary learning_rate")
    double = [name for name in FULL_AUGMENTATION if AUGMENTATION in space and name in space]
    check(not double, f"augmentation sets {', '.join(double)} too; vary either of them")
    also = settings.fields(recipe) | {AUGMENTATION} if "setting" in space else set()
    both = [name for name in space if name in also]
    check(not both, f"setting changes {', '.join(both)} too; vary it with --only, or turn those off")
    _check_fits(recipe, space)
    return space


def apply(recipe: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """Return the recipe with a trial's values. Raises InputError if they cannot be."""
    fields = dict(values)
    if AUGMENTATION in fields:
        strength = fields.pop(AUGMENTATION)
        fields |= {name: amount * strength for name, amount in FULL_AUGMENTATION.items()}
    return settings.changed(dataclasses.replace(recipe, **fields))


def values_of(recipe: TrainConfig, space: Space) -> dict[str, Any]:
    """Return the recipe's own values of the space's parameters; without `augmentation` if its amounts are others."""
    values = {name: getattr(recipe, name) for name in space if name != AUGMENTATION}
    if AUGMENTATION in space:
        strengths = [getattr(recipe, name) / amount for name, amount in FULL_AUGMENTATION.items()]
        if all(math.isclose(strength, strengths[0]) for strength in strengths):
            values[AUGMENTATION] = strengths[0]
    return values


def grid(space: Space) -> Iterator[dict[str, Any]]:
    """Yield every combination of the parameters' points, the last parameter changing fastest."""
    for values in itertools.product(*(parameter.points() for parameter in space.values())):
        yield dict(zip(space, values, strict=True))


def _check_fits(recipe: TrainConfig, space: Space) -> None:
    optimizers = space["optimizer"].points() if "optimizer" in space else [recipe.optimizer]
    check(
        "momentum" not in space or not {"sgd", "rmsprop"}.isdisjoint(optimizers),
        f"momentum means nothing to {' and '.join(optimizers)}; vary optimizer too, or leave momentum out",
    )
    for name, parameter in space.items():
        for value in parameter.ends():
            try:
                apply(recipe, {name: value})
            except InputError as error:
                raise InputError(f"{name}={parameter} cannot be searched: {error}") from None


def _read_toml(uri: str) -> dict[str, Any]:
    try:
        return tomllib.loads(filesystem.read(filesystem.absolute(uri)).decode())
    except FileNotFoundError:
        raise InputError(f"{uri} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{uri} cannot be read as TOML: {error}") from None


def _split(word: str) -> tuple[str, Any]:
    """Parse `name`, `name=off`, `name=low..high[:log]` or `name=a,b` to a name and the value a TOML file would have."""
    name, equals, text = word.partition("=")
    name = name.strip().replace("-", "_")
    if not equals:
        return name, True
    if text.strip() == "off":
        return name, False
    if ".." in text:
        low, _, rest = text.partition("..")
        high, colon, how = rest.partition(":")
        check(
            how in ("", "log") and (how == "log") == bool(colon), f"{word!r} ends in {how!r}; only :log may stand there"
        )
        return name, {"low": low.strip(), "high": high.strip(), "log": how == "log"}
    return name, [value.strip() for value in text.split(",")]


def _is_off(value: Any) -> bool:
    return value is False or value == "off"


def _parameter(name: str, value: Any) -> Parameter:
    """Return what a value of a TOML file or word means for a parameter."""
    if value is True:
        return OFFERED[name]
    if isinstance(value, dict):
        check_keys(list(value), ["low", "high", "log"], f"key of {name}")
        for key in ("low", "high"):
            check(key in value, f"{name} lacks {key!r}; a range has low and high")
        check(_kind(name) in (int, float), f"{name} has no range; give its values, such as {name}={OFFERED[name]}")
        low, high, log = _value(name, value["low"]), _value(name, value["high"]), value.get("log", False)
        check(isinstance(log, bool), f"log of {name} is {log!r}; it must be true or false")
        check(low < high, f"{name} is {low:g}..{high:g}; low must be below high")
        check(not log or low > 0, f"{name} is {low:g}..{high:g}:log; a logarithmic range begins above 0")
        return Range(low, high, log, whole=_kind(name) is int)
    values = value if isinstance(value, list) else [value]
    check(bool(values), f"{name} has no values; give some, or turn it off with {name}=off")
    return Choice(tuple(dict.fromkeys(_value(name, v) for v in values)))


def _value(name: str, value: Any) -> Any:
    """Return one value of the field's type, from TOML or from a word."""
    kind = _kind(name)
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number) and (kind is float or number == int(number)):
            return kind(number)
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{value!r} is no value of {name}, which takes {what}")
    taken = ", ".join(get_args(kind)) or "a number"
    check(value in get_args(kind), f"{value!r} is no value of {name}, which takes {taken}")
    return value


def _kind(name: str) -> Any:
    """Return float, int, or the Literal of the words that a field takes."""
    kind = float if name == AUGMENTATION else get_type_hints(TrainConfig)[name]
    assert kind in (int, float) or get_origin(kind) is not None
    return kind
