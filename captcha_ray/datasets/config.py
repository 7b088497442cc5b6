"""Configure `preprocess`; the docstring under a field is its `--help`."""

import dataclasses
import re
from typing import Annotated, Any, Literal

from captcha_ray.config import DEMO, Config, Limit, at_least
from captcha_ray.errors import InputError, check
from captcha_ray.images.spec import MAX_PIXELS_LIMIT, ImageSpec
from captcha_ray.text.charset import Charset

Labels = Literal["folder", "filename", "table"]


@dataclasses.dataclass(frozen=True)
class LabelRule:
    """Rule by which labels are found, as the flags of `preprocess` say.

    Raises InputError if its parts do not fit together, or the pattern is no regular expression.
    """

    labels: Labels
    pattern: str = ""
    table: str = ""
    path_column: str = ""
    text_column: str = ""
    keep_blanks: bool = False

    def __post_init__(self) -> None:
        labels, pattern, table = self.labels, self.pattern, self.table
        check(
            (labels == "table") == bool(table),
            f"labels is {labels!r} and table is {table!r}; --table goes with --labels table",
        )
        check(
            not pattern or labels == "filename",
            f"labels is {labels!r} and label_pattern is {pattern!r}; --label-pattern goes with --labels filename",
        )
        columns = [f"--{name}-column" for name in ("path", "text") if getattr(self, f"{name}_column")]
        check(not columns or labels == "table", f"labels is {labels!r}; {' and '.join(columns)} go with --labels table")
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"label_pattern is {pattern!r}; it is not a regular expression: {error}") from None

    def to_dict(self) -> dict[str, str]:
        """Return the rule as a manifest holds it."""
        return {"labels": self.labels, "label_pattern": self.pattern, "table": self.table}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessConfig(Config):
    """Turn a corpus of labeled images into shards, a quarantine and a manifest."""

    corpus: str = f"{DEMO}/corpus/digits"
    """Folder or s3:// URI of labeled images. The default one is drawn on first use."""
    labels: Labels = "folder"
    """Take a label from the parent folder's name, the file's name, or a table."""
    label_pattern: str = ""
    """Regular expression searched in the file's stem; its first group, or all it matches, is the label."""
    table: str = ""
    """CSV, TSV, JSON Lines or Parquet with columns path,text (paths relative to the table), for --labels table."""
    path_column: str = ""
    """Column of the table that names the images. Default: path, file_name, filename, file, image or uri."""
    text_column: str = ""
    """Column of the table that holds the labels, as text. Default: text, label, ground_truth or transcription."""
    keep_blanks: bool = False
    """Keep blanks at the ends of labels, and invisible characters. Otherwise they are removed, and letters with
    accents become one character each (Unicode's normal form C)."""
    height: Annotated[int, at_least(0)] = 0
    """Height every image is resized to, pixels; 0 takes the median of a sample, within 32 to 64."""
    width: Annotated[int, at_least(0)] = 0
    """Width every image is resized to, pixels; 0 takes the corpus' own at that height."""
    channels: Annotated[int, at_least(0)] = 0
    """1 for gray, 3 for RGB; 0 for RGB where a sample of the corpus is in color, else gray."""
    fit: Literal["auto", "stretch", "pad"] = "auto"
    """stretch images to height and width; pad them with the color of their edge, at their own ratio; or auto: pad if
    texts differ in length and a tenth of the images is twice as wide as another tenth, for their height."""
    crop: Literal["auto", "none"] = "auto"
    """auto cuts off what surrounds the text, if in nearly all images it stands in the same part of at most half the
    height or width, and neither --height nor --width is given; none keeps all."""
    lines: Literal["auto", "one", "two"] = "auto"
    """Lines of text in an image: one; two; or auto: two where an image is too narrow for its text and has a gap in the
    middle of its height, and neither --height nor --width is given. The lower line is put to the right of the upper
    one."""
    denoise: int = 0
    """Side of a median filter, pixels, odd; 0 for none."""
    binarize: bool = False
    """Make pixels 0 or 255 by Otsu's threshold."""
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Fractions of the images for training, validation and test; they add up to 1."""
    split_seed: Annotated[int, Limit(0, 2**64, "0 to below 2^64", below=True)] = 0
    """Decides the split of an image, with its pixels; another seed moves images between splits."""
    charset: str = ""
    """All characters that labels may hold, in order. Default: those found, sorted."""
    length: Annotated[int, at_least(0)] = 0
    """Characters every label must have; 0 for any number."""
    max_length: Annotated[int, at_least(0)] = 0
    """Most characters of a label; 0 for any number, but a few labels far longer than the others are put aside."""
    bad_labels: Literal["quarantine", "refuse"] = "quarantine"
    """Quarantine files without a label, labels of unknown characters or of a wrong length, and rows of a table that
    cannot be understood, or refuse to go on. Labels put aside as far longer than the others are never refused."""
    max_pixels: Annotated[int, MAX_PIXELS_LIMIT] = 16_000_000
    """Images of more pixels than this are quarantined undecoded."""
    out: str = f"{DEMO}/shards/digits"
    """Folder or s3:// URI for the shards."""
    check: bool = False
    """Write nothing: read the corpus and say what would be in the shards, what is wrong with it, and what to do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.image(self.height or 4, self.width or 4, self.channels or 1)
        check(
            all(f >= 0 for f in self.splits) and abs(sum(self.splits) - 1) < 1e-6,
            f"splits is {self.splits}; the fractions must not be negative and must add up to 1",
        )
        check(self.splits[0] > 0, f"splits is {self.splits}; the training fraction must be above 0")
        _ = self.label_rule
        if self.charset:
            Charset(self.charset)
        check(bool(self.corpus) and bool(self.out), "corpus and out must each name a folder or a URI")

    @property
    def label_rule(self) -> LabelRule:
        """Return the rule by which labels are found."""
        columns = (self.path_column, self.text_column)
        return LabelRule(self.labels, self.label_pattern, self.table, *columns, self.keep_blanks)

    def image(self, height: int, width: int, channels: int, **found: Any) -> ImageSpec:
        """Return the specification of images of this size in pixels.

        Args:
            height: Of the images.
            width: Of the images.
            channels: 1 or 3.
            found: What was found in the corpus: `pad`, `crop` and `two_lines` of ImageSpec.
        """
        if self.fit != "auto":
            found["pad"] = self.fit == "pad"
        own: dict[str, Any] = {"denoise": self.denoise, "binarize": self.binarize, **found}
        return ImageSpec(height=height, width=width, channels=channels, **own)
