"""Decode image files to rows of shards, and choose the size and color of a corpus from a sample.

Bad files become rows of the quarantine. Knows no Ray, no splits and no folders of shards.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import math
import statistics
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from captcha_ray.datasets import schema
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.datasets.text_band import LOOK, find_text
from captcha_ray.datasets.text_lines import find_two_lines
from captcha_ray.errors import InputError
from captcha_ray.images import decoder
from captcha_ray.images.spec import ImageSpec
from captcha_ray.storage import filesystem

T = TypeVar("T")

NUM_FETCH_THREADS = 16
"""Concurrent reads of a task from an object store; local files are read one after another."""

BLOCK_BYTES = 256 << 20
"""Most bytes of pixels in a task; it needs about three times as much memory while it writes them."""

NUM_SAMPLED = 512
"""Files from which size and color of a corpus are chosen."""

HEIGHTS = (32, 64)
"""Least and greatest height of images in pixels, if no height is requested. Lower images hide strokes from
convolutions, higher ones cost work for nothing.
"""

MIN_SPREAD = 2.0
"""Least quotient of the 90 % and the 10 % quantile of width by height at which images are padded, not stretched."""

ALL_RATIOS = 1e6
"""Greater than the ratio of width to height of any image."""

WIDEST = 0.99
"""Share of the images that are no wider, for their height, than the frame that others are padded to."""


def block_rows(num_files: int, image: ImageSpec) -> int:
    """Return the files per task and part. It depends on the corpus alone, so parts are the same on any cluster."""
    fitting = max(BLOCK_BYTES // math.prod(image.shape), 1)
    return min(max(-(-num_files // 64), 2048), 16_384, fitting)  # a task costs Ray Data about 0.1 s


@dataclasses.dataclass(frozen=True)
class _Look:
    """How an image of the sample looks. gray: uint8 (H, W, 1), of the size of `LOOK`. length: of its label."""

    appearance: decoder.Appearance
    gray: decoder.Pixels
    length: int


def choose_image(config: PreprocessConfig, files: pa.Table) -> ImageSpec:
    """Return the images to produce; what the config leaves open follows from a sample of the corpus.

    What surrounds the text is cut off, see `find_text`, and two lines are put side by side, see `find_two_lines`. The
    height is a line's median, within `HEIGHTS`. The width follows from the median aspect ratio, or, of texts whose
    images have widths of their own, from nearly the widest (`WIDEST`), which others are padded to. RGB if more than a
    tenth are in color.

    Args:
        config: As requested.
        files: The corpus: columns uri, text.

    Raises:
        InputError: No file of the sample can be decoded.
    """
    lengths = pc.utf8_length(files["text"])
    differ = pc.min(lengths).as_py() < pc.max(lengths).as_py()
    given = (config.height, config.width, config.channels)
    two_lines = ALL_RATIOS if config.lines == "two" else 0.0
    if all(given) and not (config.fit == "auto" and differ):
        return config.image(*given, two_lines=two_lines)
    looks = _look_at_sample(config, files)
    open_ = not config.height and not config.width
    crop = find_text([look.gray for look in looks], cut_width=not differ) if open_ and config.crop == "auto" else ()
    left, top, right, bottom = crop or (0, 0, 1, 1)
    heights = np.array([(bottom - top) * look.appearance.height for look in looks])
    widths = np.array([(right - left) * look.appearance.width for look in looks])
    if open_ and config.lines == "auto":
        rows = slice(round(top * LOOK.height), round(bottom * LOOK.height))
        grays, lengths = [look.gray[rows] for look in looks], [look.length for look in looks]
        two_lines = find_two_lines(grays, widths, heights, lengths)
    ratios = widths / heights
    heights = np.where(ratios < two_lines, heights / 2, heights)
    ratios = np.where(ratios < two_lines, 4 * ratios, ratios)
    height = config.height or min(max(round(statistics.median(heights)), HEIGHTS[0]), HEIGHTS[1])
    narrow, wide = np.quantile(ratios, [0.1, 0.9])
    pad = config.fit == "pad" or (config.fit == "auto" and differ and bool(wide > MIN_SPREAD * narrow))
    width = round(height * float(np.quantile(ratios, WIDEST) if pad else np.median(ratios)))
    colored = sum(look.appearance.colored for look in looks) > len(looks) / 10 and not config.binarize
    channels = config.channels or (3 if colored else 1)
    width = config.width or min(max(width, 4), 4096)
    return config.image(height, width, channels, pad=pad, crop=crop, two_lines=two_lines)


def _look_at_sample(config: PreprocessConfig, files: pa.Table) -> list[_Look]:
    """Return how images of a sample look."""

    def look(data: bytes) -> tuple[decoder.Appearance, decoder.Pixels] | decoder.Unreadable:
        appearance = decoder.inspect(data, config.max_pixels)
        if isinstance(appearance, decoder.Unreadable):
            return appearance
        gray = decoder.decode(data, LOOK, config.max_pixels)
        return gray if isinstance(gray, decoder.Unreadable) else (appearance, gray)

    if len(files) > NUM_SAMPLED:
        files = files.take([k * len(files) // NUM_SAMPLED for k in range(NUM_SAMPLED)])
    uris = files["uri"].to_pylist()
    with concurrent.futures.ThreadPoolExecutor(NUM_FETCH_THREADS) as pool:
        seen = list(pool.map(lambda uri: _of_file(uri, look), uris))
    looks = [
        _Look(*one, length=len(text))
        for one, text in zip(seen, files["text"].to_pylist(), strict=True)
        if not isinstance(one, decoder.Unreadable)
    ]
    if not looks:
        bad = [(uri, one) for uri, one in zip(uris, seen, strict=True) if isinstance(one, decoder.Unreadable)]
        reasons = collections.Counter(one.reason for _, one in bad)
        first, why = bad[0]
        raise InputError(f"{config.corpus} holds no image that can be used: {counted(reasons)}; {first}: {why.detail}")
    return looks


def decode_files(files: pa.Table, spec: ImageSpec, max_pixels: int) -> tuple[pa.Table, pa.Table, list[float]]:
    """Read and decode files.

    Args:
        files: Columns uri, text.
        spec: Images to produce.
        max_pixels: Most pixels of a source image; larger ones are not decoded.

    Returns:
        Rows of shards and rows of the quarantine, both in the order of `files`, and the ratio of width to height that
            each image in the shards had.
    """
    uris = files["uri"].to_pylist()
    if uris and filesystem.is_remote(uris[0]):
        with concurrent.futures.ThreadPoolExecutor(NUM_FETCH_THREADS) as pool:
            results = list(pool.map(lambda uri: _decode_file(uri, spec, max_pixels), uris))
    else:
        results = [_decode_file(uri, spec, max_pixels) for uri in uris]
    readable = [not isinstance(result, decoder.Unreadable) for result in results]
    good = [result for result in results if not isinstance(result, decoder.Unreadable)]
    pixels = np.stack([one.pixels for one in good]) if good else np.zeros((0, *spec.shape), np.uint8)
    kept = files.filter(pa.array(readable, pa.bool_()))
    shard = pa.table(
        [
            schema.pack_images(pixels),
            kept["text"],
            kept["uri"],
            pa.array([hashlib.sha256(image).digest() for image in pixels], pa.binary(32)),
        ],
        schema=schema.shard_schema(spec),
    )
    bad = [(uri, r.reason, r.detail) for uri, r in zip(uris, results, strict=True) if isinstance(r, decoder.Unreadable)]
    return shard, schema.quarantine(bad), [one.width / one.height for one in good]


def _decode_file(uri: str, spec: ImageSpec, max_pixels: int) -> decoder.Decoded | decoder.Unreadable:
    return _of_file(uri, lambda data: decoder.decode_with_size(data, spec, max_pixels))


def _of_file(uri: str, make: Callable[[bytes], T | decoder.Unreadable]) -> T | decoder.Unreadable:
    """Return what `make` makes of a file's bytes, or why they cannot be read."""
    try:
        data = filesystem.read(uri)
    except FileNotFoundError:
        return decoder.Unreadable("missing", f"there is no such file{_hint(uri)}")
    except (OSError, ValueError, InputError) as error:
        sentence = getattr(error, "strerror", None) or str(error)
        return decoder.Unreadable("unreadable", f"{type(error).__name__}: {sentence}")
    return make(data)


def _hint(uri: str) -> str:
    """Return what may be wrong with the path of a missing file."""
    if "\\" in uri:
        return "; its path has backslashes, and folders are parted by / here"
    return "" if "." in uri.rpartition("/")[2] else "; its name has no ending, such as .png"


def counted(reasons: collections.Counter[str]) -> str:
    """Describe for a person how many files met which reason."""
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
