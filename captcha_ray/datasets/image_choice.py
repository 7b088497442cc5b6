"""Choose the images that a corpus is turned into: size, color, what is cut off, and whose labels fit into them."""

import collections
import dataclasses
import statistics

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from captcha_ray import console
from captcha_ray.datasets import decoding, schema
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.datasets.text_band import LOOK, find_text
from captcha_ray.datasets.text_lines import find_two_lines
from captcha_ray.errors import InputError
from captcha_ray.images import decoder
from captcha_ray.images.spec import ImageSpec, columns_for

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

FEW_TOO_LONG = 0.02
"""Greatest share of labels that may be put aside as more than twice as long as the others; one may always be."""


def choose(config: PreprocessConfig, files: pa.Table) -> tuple[ImageSpec, pa.Table, pa.Table]:
    """Return the images to produce, the files whose labels fit into them, and quarantine rows for the others.

    Images are made wide enough for the longest label, but for a few that are far longer than all others: those are
    put aside if no `max_length` says that they are meant.
    """
    texts = files["text"].to_pylist()
    lengths = np.array([len(text) for text in texts])
    keep = np.ones(len(lengths), bool)
    if not config.max_length:
        usual = int(np.sort(lengths)[max(len(lengths) - 1 - max(int(FEW_TOO_LONG * len(lengths)), 1), 0)])
        keep = lengths <= 2 * usual
    longest = int(lengths[keep].max())
    kept_files = files.filter(pa.array(keep))
    image = _choose_image(config, kept_files)
    if image.crop:
        console.say(
            f"text stands in {_described(image.crop)} of the images; the rest is cut off (--crop none keeps it)"
        )
    if image.two_lines and config.lines == "auto":
        console.say(
            f"images less than {image.two_lines:g} times as wide as high hold two lines, which are put side by side "
            f"(--lines one leaves them)"
        )
    if image.most_characters < longest:
        image = _widened(image, config, kept_files, longest)
    aside = [
        (uri, "too_long", f"label {text!r} has {len(text)} characters, all but a few have at most {longest}")
        for uri, text, kept in zip(files["uri"].to_pylist(), texts, keep.tolist(), strict=True)
        if not kept
    ]
    if aside:
        console.warn(
            f"{len(aside):,} labels are more than twice as long as the others and are put aside; of {aside[0][0]} the "
            f"{aside[0][2]}; if they are meant, pass --max-length {lengths.max()}"
        )
    return image, kept_files, schema.quarantine(aside)


def _widened(image: ImageSpec, config: PreprocessConfig, files: pa.Table, longest: int) -> ImageSpec:
    """Return images that hold the longest label, or warn that those of a width that was given do not."""
    wide = 2 * columns_for(longest)
    long = files.filter(pc.greater(pc.utf8_length(files["text"]), image.most_characters))
    those = (
        f"{len(long):,} of {len(files):,} labels have more than {image.most_characters} characters, such as "
        f"{long['text'][0].as_py()!r} of {long['uri'][0]}; --max-length {image.most_characters} puts them aside"
    )
    if config.width:
        console.warn(f"images of {image.width} pixels are too narrow for column_cnn, which wants {wide}: {those}")
        return image
    console.say(f"images are {wide} instead of {image.width} pixels wide, to hold {longest} characters: {those}")
    return dataclasses.replace(image, width=wide)


def _described(part: tuple[float, ...]) -> str:
    left, top, right, bottom = part
    return f"{left:.0%} to {right:.0%} of the width and {top:.0%} to {bottom:.0%} of the height"


@dataclasses.dataclass(frozen=True)
class _Look:
    """Describe how an image of the sample looks.

    gray: uint8 (H, W, 1), of the size of `LOOK`, if it was asked for. length: of its label.
    """

    appearance: decoder.Appearance
    gray: decoder.Pixels | None
    length: int


def _choose_image(config: PreprocessConfig, files: pa.Table) -> ImageSpec:
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
    open_ = not config.height and not config.width
    looks = _look_at_sample(config, files, with_gray=open_)
    grays = [look.gray for look in looks if look.gray is not None]
    crop = find_text(grays, cut_width=not differ) if open_ and config.crop == "auto" else ()
    left, top, right, bottom = crop or (0, 0, 1, 1)
    heights = np.array([(bottom - top) * look.appearance.height for look in looks])
    widths = np.array([(right - left) * look.appearance.width for look in looks])
    if open_ and config.lines == "auto":
        rows = slice(round(top * LOOK.height), round(bottom * LOOK.height))
        two_lines = find_two_lines([gray[rows] for gray in grays], widths, heights, [look.length for look in looks])
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


def _look_at_sample(config: PreprocessConfig, files: pa.Table, *, with_gray: bool) -> list[_Look]:
    """Return how images of a sample look."""

    def look(data: bytes) -> tuple[decoder.Appearance, decoder.Pixels | None] | decoder.Unreadable:
        appearance = decoder.inspect(data, config.max_pixels)
        if isinstance(appearance, decoder.Unreadable):
            return appearance
        if not with_gray:
            return appearance, None
        gray = decoder.decode(data, LOOK, config.max_pixels)
        return gray if isinstance(gray, decoder.Unreadable) else (appearance, gray)

    if len(files) > NUM_SAMPLED:
        files = files.take([k * len(files) // NUM_SAMPLED for k in range(NUM_SAMPLED)])
    uris = files["uri"].to_pylist()
    seen = decoding.of_files(uris, look)
    looks = [
        _Look(*one, length=len(text))
        for one, text in zip(seen, files["text"].to_pylist(), strict=True)
        if not isinstance(one, decoder.Unreadable)
    ]
    if not looks:
        bad = [(uri, one) for uri, one in zip(uris, seen, strict=True) if isinstance(one, decoder.Unreadable)]
        reasons = collections.Counter(one.reason for _, one in bad)
        first, why = bad[0]
        raise InputError(
            f"{config.corpus} holds no image that can be used: {decoding.counted(reasons)}; {first}: {why.detail}"
        )
    return looks
