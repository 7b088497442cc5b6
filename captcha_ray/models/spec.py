"""Describe a network as its checkpoint does. Needs neither torch nor storage."""

import dataclasses
import typing
from typing import Annotated, Literal

from captcha_ray.config import POSITIVE, SHARE_BELOW_1, Config, Limit, at_least
from captcha_ray.errors import InputError, check
from captcha_ray.images.spec import ImageSpec
from captcha_ray.text.charset import Charset

Network = Literal["auto", "glyph_vgg", "multi_head_cnn", "column_cnn"]


Head = Literal["light", "deep"]

Precision = Literal["auto", "fp32", "bf16"]


BUILTIN = "builtin"
"""Names the network that comes with the package, wherever a run is named."""

EARLIER_NAMES = {"max_length": "slots"}
"""Gives the names that fields had in checkpoints of earlier versions."""

FILTERS = Limit(4, 256, "4 to 256")
"""Limit of `filters`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec(Config):
    """Everything that decides a network's shape and the meaning of its outputs."""

    network: Network
    """Architecture."""
    image: ImageSpec
    """The pixels it reads."""
    charset: str
    """Class k is character k."""
    max_length: Annotated[int, at_least(1)]
    """Characters per image."""
    variable: bool = False
    """Allow fewer characters than `max_length` in an image, down to one."""
    filters: Annotated[int, FILTERS] = 32
    """Filters of the first convolution of column_cnn; the later ones have one, two and four times as many."""
    head: Head = "light"
    """Convolutions of column_cnn along the columns: light, one of four times as many filters as the first has; deep,
    two of ten times as many."""
    dropout: Annotated[float, SHARE_BELOW_1] = 0.5
    """Rate before the last layer; only training uses it."""
    temperature: Annotated[float, POSITIVE] = 1.0
    """Divisor of the network's outputs, which makes probabilities mean what they say."""
    bidirectional: bool = False
    """Characters are those of an image from left to right; texts of right-to-left scripts are turned into that order
    and back."""
    aspect_ratios: tuple[float, ...] = ()
    """Least and greatest ratio of width to height of the images it was trained on; empty if unknown."""

    @property
    def has_columns(self) -> bool:
        """Return whether the network's outputs are columns, in which it must find out where characters stand."""
        return self.network == "column_cnn"

    def fits(self, shortest: int, longest: int) -> bool:
        """Return whether the network can give texts of so many characters."""
        return (1 if self.variable else self.max_length) <= shortest <= longest <= self.max_length

    @property
    def length_range(self) -> str:
        """Return in words how many characters an image holds."""
        return f"1 to {self.max_length}" if self.variable else f"{self.max_length}"

    def __post_init__(self) -> None:
        known = [name for name in typing.get_args(Network) if name != "auto"]
        check(self.network in known, f"network is {self.network!r}; known are {', '.join(known)}")
        super().__post_init__()
        Charset(self.charset)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> "ModelSpec":
        """Return the spec from JSON types, with the image as JSON types too; fields may have their earlier names."""
        values = {**values}
        for name, earlier in EARLIER_NAMES.items():
            if earlier in values:
                values.setdefault(name, values.pop(earlier))
        image = values.get("image")
        if not isinstance(image, dict):
            raise InputError("the model's description has no image size")
        return super().from_dict({**values, "image": ImageSpec.from_dict(image)})
