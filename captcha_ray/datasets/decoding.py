"""Files of images become rows of shards; what the pixels of a corpus should be follows from a look at some of them.

Reads and decodes, many at a time; bad files become rows of the quarantine. Knows no Ray, no splits and no folders of
shards.
"""

import collections
import concurrent.futures
import hashlib
import math
import statistics
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pyarrow as pa

from captcha_ray import images
from captcha_ray.datasets import schema
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.errors import InputError
from captcha_ray.image_spec import ImageSpec
from captcha_ray.storage import filesystem

T = TypeVar("T")

NUM_FETCH_THREADS = 16
"""Concurrent reads a task keeps in flight against an object store; local files are read one after another."""

BLOCK_BYTES = 256 << 20
"""Pixels a task holds at most; it needs about three times as much memory while it writes them."""

NUM_SAMPLED = 512
"""Files that are looked at for the size and color of a corpus."""

HEIGHTS = (32, 64)
"""Images of a corpus become at least and at most so high, pixels, where nothing else is asked for: less hides strokes
from convolutions, more is work without use."""


def block_rows(num_files: int, image: ImageSpec) -> int:
    """Files per task and part: a function of the corpus alone, so that parts are the same for any cluster."""
    fitting = max(BLOCK_BYTES // math.prod(image.shape), 1)
    return min(max(-(-num_files // 64), 2048), 16_384, fitting)  # a task costs Ray Data about 0.1 s


def choose_image(config: PreprocessConfig, uris: list[str]) -> ImageSpec:
    """The pixels to produce; what the config leaves open follows from a sample of the corpus.

    The median height, within `HEIGHTS`, and the median of width by height; RGB where more than a tenth are in color.
    Raises InputError where nothing of the sample can be read.
    """
    given = (config.height, config.width, config.channels)
    if all(given):
        return config.image(*given)
    sample = [uris[k * len(uris) // NUM_SAMPLED] for k in range(NUM_SAMPLED)] if len(uris) > NUM_SAMPLED else uris
    with concurrent.futures.ThreadPoolExecutor(NUM_FETCH_THREADS) as pool:
        seen = list(pool.map(lambda uri: _of_file(uri, lambda data: images.inspect(data, config.max_pixels)), sample))
    looks = [one for one in seen if isinstance(one, images.Appearance)]
    if not looks:
        reasons = collections.Counter(one.reason for one in seen if isinstance(one, images.Unreadable))
        raise InputError(f"{config.corpus} holds no image that can be used: {counted(reasons)}")
    height = config.height or min(max(round(statistics.median(one.height for one in looks)), HEIGHTS[0]), HEIGHTS[1])
    width = round(height * statistics.median(one.width / one.height for one in looks))
    colored = sum(one.colored for one in looks) > len(looks) / 10 and not config.binarize
    return config.image(height, config.width or min(max(width, 4), 4096), config.channels or (3 if colored else 1))


def decode_files(files: pa.Table, spec: ImageSpec, max_pixels: int) -> tuple[pa.Table, pa.Table]:
    """Reads and decodes files. files: columns uri, text -> (shard rows, quarantine rows), both in the order given."""
    uris = files["uri"].to_pylist()
    if uris and filesystem.is_remote(uris[0]):
        with concurrent.futures.ThreadPoolExecutor(NUM_FETCH_THREADS) as pool:
            results = list(pool.map(lambda uri: _decode_file(uri, spec, max_pixels), uris))
    else:
        results = [_decode_file(uri, spec, max_pixels) for uri in uris]
    readable = [not isinstance(result, images.Unreadable) for result in results]
    good = [result for result in results if not isinstance(result, images.Unreadable)]
    pixels = np.stack(good) if good else np.zeros((0, *spec.shape), np.uint8)
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
    bad = [(uri, r.reason, r.detail) for uri, r in zip(uris, results, strict=True) if isinstance(r, images.Unreadable)]
    return shard, schema.quarantine(bad)


def _decode_file(uri: str, spec: ImageSpec, max_pixels: int) -> images.Pixels | images.Unreadable:
    return _of_file(uri, lambda data: images.decode(data, spec, max_pixels))


def _of_file(uri: str, make: Callable[[bytes], T | images.Unreadable]) -> T | images.Unreadable:
    """What is made of a file's bytes, or why they cannot be had."""
    try:
        data = filesystem.read(uri)
    except FileNotFoundError:
        return images.Unreadable("missing", "there is no such file")
    except (OSError, ValueError, InputError) as error:
        sentence = getattr(error, "strerror", None) or str(error)
        return images.Unreadable("unreadable", f"{type(error).__name__}: {sentence}")
    return make(data)


def counted(reasons: collections.Counter[str]) -> str:
    """How many files met which reason, for a person."""
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
