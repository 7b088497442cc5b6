"""Make what an image shows visible in 8 bits: samples of any range, ink on a transparent ground, pale colors."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

MIN_CONTRAST = 16
"""Least difference of samples, 0 to 255, within a channel; what differs by less is stretched to the whole range."""

SOLID, EDGE_CONTRAST = 0.98, 70
"""Least alpha of solid ink, as a share of the greatest alpha; the rest are edges, half of them ground.

Where colors and alpha fade together from white to transparent black, edges over white have a contrast of 64.
"""

FEW_OF_INK, MOSTLY = 0.05, 0.5
"""Share of solid ink that is too little to be the text, and least share of an image that is transparent ground."""

PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
"""Tag of a TIFF and its value where 0 is white, which Pillow heeds for samples of up to 8 bits."""

SAMPLE_FORMAT, SIGNED = 339, 2
"""Tag of a TIFF and its value for signed integers, which Pillow heeds for samples of more than 8 bits."""

FEW = 0.005
"""Share of samples that are too few to set the range of the others."""


def to_8_bits(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to L, RGB or opaque RGBA."""
    if image.mode == "L" and _tag(image, SAMPLE_FORMAT) == SIGNED:
        return Image.fromarray(np.asarray(image) ^ 0x80)
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        scaled = _scale(np.asarray(image))
        return Image.fromarray(255 - scaled if _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO else scaled)
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] == 255:
            return image  # nothing shows through; what follows drops the channel
        return _over_ground(image)
    return image.convert("L" if image.mode == "1" else "RGB")


def _tag(image: Image.Image, number: int) -> Any:
    """Return the value of a TIFF's tag, the first of several; None for other formats."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value


def _scale(samples: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale integers of up to 32 bits, or floats, to 8 bits.

    By the range of the type, 0 to 65,535 for integers and 0 to 255 for floats, if the samples lie within and use a
    quarter of it; else by the range that they use: often they hold 8 or 12 bits, or 0 to 1.
    """
    floats = samples.dtype.kind == "f"
    values = samples.astype(np.float64)
    finite = _that_count(values)
    if not finite.size:
        return np.zeros(samples.shape, np.uint8)
    low, high, top = float(finite.min()), float(finite.max()), 255 if floats else 65_535
    usual = np.quantile(finite, [FEW, 1 - FEW])
    if low >= 0 and high <= top and usual[1] - usual[0] >= top / 4:
        kept = np.nan_to_num(values, nan=high, posinf=high, neginf=low)
        return (kept if floats else kept // 256).clip(0, 255).astype(np.uint8)
    if low == high:  # all ink is alike, or all ground; what is no number is the other
        return np.where(np.isfinite(values), 0, 255).astype(np.uint8)
    values = np.nan_to_num(values, nan=high, posinf=high, neginf=low)
    if 0 < usual[1] - usual[0] < (high - low) / 4:  # a few odd samples, such as hot pixels
        low, high = float(usual[0]), float(usual[1])
    return _stretch_range(values, low, high)


def _that_count(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the samples that tell the range: numbers, without a frame of one value and without a value for no data.

    A frame is rows and columns at the edge that are all alike. A value for no data, such as -9999, is the least one, is
    the only negative one, and its size is more than ten times the greatest other.
    """
    inner = values
    for axis in (1, 0):
        filled = np.where(np.isnan(inner), np.inf, inner).min(axis), np.where(np.isnan(inner), -np.inf, inner).max(axis)
        alike = filled[0] >= filled[1]
        differ = np.flatnonzero(~alike)
        if differ.size:
            inner = inner.take(range(differ[0], differ[-1] + 1), 1 - axis)
    finite: npt.NDArray[np.float64] = inner[np.isfinite(inner)]
    if not finite.size:
        finite = values[np.isfinite(values)]
    rest: npt.NDArray[np.float64] = finite[finite > finite.min(initial=np.inf)]
    if rest.size and rest.min() >= 0 and finite.min() < -10 * max(float(rest.max()), 1.0):
        return rest
    return finite


def _stretch_range(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.uint8]:
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return np.rint((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)


def _over_ground(image: Image.Image) -> Image.Image:
    """Lay an RGBA image over white; if no more than edges of its ink would be seen there, over black.

    If it is not seen there either, leave its transparency out: some programs leave it at almost nothing.
    """
    over_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    alpha = np.asarray(image.getchannel("A"))
    solid = alpha >= max(SOLID * alpha.max(), 1)
    darkest = np.asarray(over_white)[solid].min(1) if solid.any() else np.array([255])
    of_ink, contrast = 255 - float(np.quantile(darkest, FEW_OF_INK)), _contrast(over_white)
    is_ground = (alpha < alpha.max() / 2).mean() >= MOSTLY  # else the ink may be a white card with thin text on it
    if of_ink >= max(MIN_CONTRAST, min(contrast, EDGE_CONTRAST) / 2) or (contrast > EDGE_CONTRAST and not is_ground):
        return over_white
    over_black = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
    if _contrast(over_black) >= MIN_CONTRAST:
        return over_black
    return max((over_white, image.convert("RGB")), key=_contrast)


def _contrast(image: Image.Image) -> int:
    """Return the greatest difference of samples within a channel of an L, RGB or opaque RGBA image."""
    return max(high - low for low, high in _extrema(image))


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    found: Any = image.getextrema()
    return [found] if image.mode == "L" else list(found[:3])


def to_contrast(image: Image.Image, *, gray: bool) -> Image.Image | None:
    """Convert L, RGB or opaque RGBA to L or RGB with a contrast of at least `MIN_CONTRAST`; None if there is none.

    Colors of the same lightness become gray by the channel that tells them apart best.
    """
    mode = "L" if gray else "RGB"
    converted = image if image.mode == mode else image.convert(mode)
    if _contrast(converted) >= MIN_CONTRAST:
        return converted
    ranges = _extrema(image)
    widest = max(range(len(ranges)), key=lambda k: ranges[k][1] - ranges[k][0])
    low, high = ranges[widest]
    if low == high:
        return None
    if high - low < MIN_CONTRAST:
        image = image.convert("RGB" if len(ranges) > 1 else "L")
        levels = np.arange(256, dtype=np.float64)
        image = image.point([level for low, high in ranges for level in _stretch_range(levels, low, high).tolist()])
    return image.getchannel(widest) if gray else image.convert(mode)
