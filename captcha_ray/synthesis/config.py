"""Configure `synthesize`; the docstring under a field is its `--help`."""

import dataclasses
from typing import Annotated, Literal

from captcha_ray.config import DEMO, Config, at_least
from captcha_ray.errors import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesizeConfig(Config):
    """Draw a seeded synthetic corpus, to try everything without a download."""

    scheme: Literal["digits", "text5", "lines4", "lines4-small", "bits5", "color-digits", "varied"] = "digits"
    """Draw this; sizes are width x height. In folders 0 to 9: digits of 18x60, color-digits of 15x30. As
    <text>.png: text5, five characters in 200x50; lines4, four digits in colors with lines in 152x42; lines4-small,
    the same in 70x30; bits5, five digits in black and white in 80x25. varied: 1 to 10 characters in any font, gray
    level and clutter, in 192x48, with a table labels.parquet."""
    num_images: Annotated[int, at_least(1)] = 4000
    """Number of images."""
    seed: Annotated[int, at_least(0)] = 0
    """The same seed draws the same files, whatever the number of workers."""
    fonts: str = ""
    """Folder of TrueType and OpenType files to draw scheme varied in, on every machine that draws; those of a subfolder
    are a family, and families are drawn from equally often. Default: DejaVu's, which Matplotlib brings."""
    out: str = ""
    """Folder or s3:// URI to write to; must be empty or absent. Default: demo/corpus/<scheme>."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(not self.fonts or self.scheme == "varied", "--fonts goes with --scheme varied")
        if not self.out:
            object.__setattr__(self, "out", f"{DEMO}/corpus/{self.scheme}")
