"""Decode image files to rows of shards.

Bad files become rows of the quarantine. Knows no Ray, no splits and no folders of shards.
"""

import collections
import concurrent.futures
import hashlib
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pyarrow as pa

from captcha_ray.datasets import schema
from captcha_ray.errors import InputError
from captcha_ray.images import decoder
from captcha_ray.images.spec import ImageSpec
from captcha_ray.storage import filesystem

T = TypeVar("T")

NUM_FETCH_THREADS = 16
"""Concurrent reads of a task from an object store; local files are read one after another."""

BLOCK_BYTES = 256 << 20
"""Most bytes of pixels in a task; it needs about three times as much memory while it writes them."""


def block_rows(num_files: int, image: ImageSpec) -> int:
    """Return the files per task and part. It depends on the corpus alone, so parts are the same on any cluster."""
    fitting = max(BLOCK_BYTES // math.prod(image.shape), 1)
    return min(max(-(-num_files // 64), 2048), 16_384, fitting)  # a task costs Ray Data about 0.1 s


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
    results = of_files(uris, lambda data: decoder.decode_with_size(data, spec, max_pixels))
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


def of_files(uris: list[str], make: Callable[[bytes], T | decoder.Unreadable]) -> list[T | decoder.Unreadable]:
    """Return what `make` makes of each file's bytes, or why they cannot be read."""
    if not uris or not filesystem.is_remote(uris[0]):
        return [_of_file(uri, make) for uri in uris]
    with concurrent.futures.ThreadPoolExecutor(NUM_FETCH_THREADS) as pool:
        return list(pool.map(lambda uri: _of_file(uri, make), uris))


def _of_file(uri: str, make: Callable[[bytes], T | decoder.Unreadable]) -> T | decoder.Unreadable:
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
