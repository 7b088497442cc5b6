"""Specify the pixels of a network: size, channels, preprocessing. Needs no Pillow."""

import dataclasses
import math

from captcha_ray.config import Config, Limit
from captcha_ray.errors import check

MAX_PIXELS_LIMIT = Limit(1, 178_956_970, "1 to 178956970, Pillow's own limit")
"""Limit of `max_pixels`: above twice its `MAX_IMAGE_PIXELS`, Pillow refuses every image."""


def columns_for(length: int) -> int:
    """Return the columns that so many characters need: a blank between any two, as they may be equal."""
    return 2 * length - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSpec(Config):
    """The pixels that a network is trained on and predicts from; both must be the same."""

    height: int
    """Height every image is resized to, pixels."""
    width: int
    """Width every image is resized to, pixels."""
    channels: int = 1
    """1 for gray, 3 for RGB."""
    denoise: int = 0
    """Side of the median filter, pixels, odd; 0 for none. Applied before resizing."""
    binarize: bool = False
    """Make pixels 0 or 255 by Otsu's threshold, after resizing."""
    pad: bool = False
    """Keep the ratio of width to height: pad with the color of the image's edge instead of stretching."""
    crop: tuple[float, ...] = ()
    """Left, top, right and bottom of the part that is kept, as fractions of width and height; empty for all."""
    two_lines: float = 0.0
    """Images, as cropped, whose ratio of width to height is below this hold two lines of text, which are put side by
    side; 0 for none."""

    def __post_init__(self) -> None:
        left, top, right, bottom = self.crop if len(self.crop) == 4 else (0, 0, 1, 1)
        check(
            len(self.crop) in (0, 4) and 0 <= left < right <= 1 and 0 <= top < bottom <= 1,
            f"crop is {self.crop}; it must be left, top, right and bottom, 0 to 1",
        )
        check(0 <= self.two_lines < math.inf, f"two_lines is {self.two_lines}; it must be finite and not negative")
        for name in ("height", "width"):
            value = getattr(self, name)
            check(4 <= value <= 4096, f"{name} is {value}; it must be 4 to 4096 pixels")
        check(self.channels in (1, 3), f"channels is {self.channels}; it must be 1 (gray) or 3 (RGB)")
        check(
            self.denoise == 0 or (self.denoise % 2 == 1 and 3 <= self.denoise <= 15),
            f"denoise is {self.denoise}; it must be 0 (off) or an odd side of 3 to 15 pixels",
        )
        check(not (self.binarize and self.channels == 3), "binarize needs gray images; use channels 1")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (height, width, channels) of one uint8 image."""
        return self.height, self.width, self.channels

    @property
    def most_characters(self) -> int:
        """Return the most characters that fit into the columns of `column_cnn`, see `columns_for`."""
        return (self.most_columns + 1) // 2

    @property
    def most_columns(self) -> int:
        """Return the most columns that `column_cnn` makes of the width: one for every two pixels."""
        return (self.width + 1) // 2

    def __str__(self) -> str:
        denoised = f", denoised by {self.denoise}" if self.denoise else ""
        binarized, padded = ", binarized" if self.binarize else "", ", padded" if self.pad else ""
        cropped, lines = ", cropped" if self.crop else "", ", of two lines" if self.two_lines else ""
        return f"{self.width}x{self.height}x{self.channels}{denoised}{binarized}{padded}{cropped}{lines}"
