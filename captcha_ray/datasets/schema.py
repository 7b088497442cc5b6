"""Define the tables of shards and quarantine, and the manifest of shards.

Shards hold pixels as fixed-size binary, not as Arrow's fixed-shape tensor: Parquet stores the latter as a 32-bit
integer a pixel (40,000 bytes instead of 10,000 for a 200x50 image, 15 times slower to write and 90 times to read,
measured on pyarrow 26). The shape is in the field's metadata and in `manifest.json`.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from captcha_ray.config import Config
from captcha_ray.images.spec import ImageSpec

ROW_GROUP_BYTES = 2 << 20
"""Bytes of pixels in a row group of shards: what is read at once where images are not held in memory."""


def shard_schema(image: ImageSpec) -> pa.Schema:
    """Return the schema of shards: a row per image.

    image: uint8 pixels, row-major (height, width, channels). text: label. uri: of the file. sha256: of the bytes in
    `image`.
    """
    height, width, channels = image.shape
    shape = {"shape": f"[{height}, {width}, {channels}]", "dtype": "uint8"}
    return pa.schema(
        [
            pa.field("image", pa.binary(height * width * channels), nullable=False, metadata=shape),
            pa.field("text", pa.string(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("sha256", pa.binary(32), nullable=False),
        ]
    )


QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
"""A row per file that is not in the shards. reason: a word to group by. detail: a sentence."""


def quarantine(rows: list[tuple[str, str, str]]) -> pa.Table:
    """Return a table of `QUARANTINE_SCHEMA` with these rows."""
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table([pa.array(list(c), pa.string()) for c in columns], schema=QUARANTINE_SCHEMA)


def row_group_rows(image: ImageSpec) -> int:
    """Return the rows of a row group of shards."""
    return max(ROW_GROUP_BYTES // math.prod(image.shape), 1)


def pack_images(images: npt.NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """Pack uint8 (N, H, W, C) into an `image` column without copying."""
    flat = np.ascontiguousarray(images).reshape(len(images), math.prod(images.shape[1:]))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(flat.shape[1]), len(flat), [None, pa.py_buffer(flat)])


def unpack_images(column: pa.ChunkedArray | pa.Array, image: ImageSpec) -> npt.NDArray[np.uint8]:
    """Unpack an `image` column to uint8 (N, H, W, C), without copying if the column is one chunk."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    size = image.height * image.width * image.channels
    arrays = [
        np.frombuffer(c.buffers()[1], np.uint8, len(c) * size, c.offset * size).reshape(-1, *image.shape)
        for c in chunks
        if len(c)
    ]
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.zeros((0, *image.shape), np.uint8)


def gather(tables: Iterable[pa.Table], num_rows: int, image: ImageSpec) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Return images, uint8 (num_rows, H, W, C), and texts of tables that have so many rows together."""
    images = np.empty((num_rows, *image.shape), np.uint8)
    texts: list[str] = []
    for table in tables:
        images[len(texts) : len(texts) + len(table)] = unpack_images(table["image"], image)
        texts += table["text"].to_pylist()
    return images, texts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(Config):
    """The `manifest.json` of shards."""

    source: str
    """URI of the corpus."""
    label_rule: dict[str, str]
    """`labels`, `label_pattern` and `table` as they were given."""
    image: dict[str, Any]
    """ImageSpec as JSON."""
    charset: str
    """The alphabet, ordered."""
    min_length: int
    """Characters of the shortest label."""
    max_length: int
    """Characters of the longest label."""
    splits: tuple[float, float, float]
    """Fractions asked for."""
    split_seed: int
    """Seed of the assignment to splits."""
    num_images: dict[str, int]
    """Images per split."""
    num_characters: dict[str, dict[str, int]]
    """Occurrences of each character of the alphabet, per split."""
    num_quarantined: dict[str, int]
    """Files kept out, per reason."""
    num_hidden: int
    """Hidden files and those of operating systems (`.DS_Store`, `Thumbs.db`, ...), passed over."""
    parts: dict[str, list[str]]
    """Names of the Parquet files of each split, relative to the shards folder."""
    seconds: float
    """Wall time from listing to the last file."""
    config: dict[str, Any]
    """PreprocessConfig as JSON."""
    versions: dict[str, str]
    """Versions of the packages that made the pixels."""
    aspect_ratios: tuple[float, ...] = ()
    """Least and greatest ratio of width to height of the images, but for a hundredth at both ends; empty if unknown."""

    @property
    def image_spec(self) -> ImageSpec:
        """Return the specification of the images in the shards."""
        return ImageSpec.from_dict(self.image)

    def describe(self) -> list[str]:
        """Return lines for a person: what is in the shards and what is not."""
        size = self.image_spec
        lengths = (
            f"{self.min_length}" if self.min_length == self.max_length else f"{self.min_length} to {self.max_length}"
        )
        shown = "".join(c if c.isprintable() and not c.isspace() else f" {c!r} " for c in self.charset)
        kept = ", ".join(f"{count:,} {split}" for split, count in self.num_images.items())
        lines = [
            f"{sum(self.num_images.values()):,} images of {size.width}x{size.height} pixels: {kept}",
            f"{len(self.charset)} characters: {shown}; {lengths} per label",
        ]
        if self.num_quarantined:
            lines.append("quarantined: " + ", ".join(f"{n:,} {reason}" for reason, n in self.num_quarantined.items()))
        if self.num_hidden:
            lines.append(f"passed over: {self.num_hidden:,} hidden or system files")
        return lines
