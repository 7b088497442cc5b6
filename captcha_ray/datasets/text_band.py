"""Find the part of a corpus' images in which text stands, where that is a small part."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from captcha_ray.images.spec import ImageSpec

LOOK = ImageSpec(height=128, width=128)
"""Size at which images are looked at."""

SHARE = 0.2
"""Least share of the images that have ink in a row or column of the text: specks and stray lines are in fewer."""

MIN_INK = 0.1
"""Least ink of a row or column of the text, as a share of the inkiest one's."""

MARGIN = 0.12
"""Keep this share of the text's extent on each side of it."""

SMALL = 0.5
"""Largest share of the height or width that the text may take for the rest to be cut off."""

MIN_INSIDE, MAX_LOST = 0.6, 0.02
"""Least share of an image's ink that the part must hold, and largest share of the images that may have less in it."""

MIN_IMAGES = 20
"""Least images from which a part is chosen."""


def find_text(images: Sequence[npt.NDArray[np.uint8]], *, cut_width: bool = True) -> tuple[float, ...]:
    """Return left, top, right and bottom of the part with text, as fractions; nothing where it is most of the image.

    Ink is where gray levels change along a row, for its place from top to bottom, and along a column, for its place
    from left to right.

    Args:
        images: Of a corpus, gray, uint8, of the size of `LOOK`.
        cut_width: Whether the width may be cut: texts of different lengths end at different places.
    """
    if len(images) < MIN_IMAGES:
        return ()
    pixels = np.stack(images).reshape(len(images), LOOK.height, LOOK.width).astype(np.int16)
    along, across = np.abs(np.diff(pixels, axis=2)), np.abs(np.diff(pixels, axis=1))
    top, bottom = _extent(along.mean(2))
    left, right = _extent(across.mean(1)) if cut_width else (0.0, 1.0)
    part = (left, top, right, bottom)
    inside = _inside(along.mean(2), top, bottom) * _inside(across.mean(1), left, right)
    return () if part == (0.0, 0.0, 1.0, 1.0) or (inside < MIN_INSIDE).mean() > MAX_LOST else part


def _inside(ink: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """Return the share of each image's ink that stands from low to high, fractions. ink: (images, places)."""
    total = ink.shape[1]
    part = ink[:, round(low * total) : round(high * total)].sum(1)
    share: npt.NDArray[np.float64] = part / np.maximum(ink.sum(1), 1e-9)
    return share


def _extent(ink: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return where ink begins and ends, or the whole. ink: (images, places)."""
    usual = np.quantile(ink, 1 - SHARE, axis=0)
    places = np.flatnonzero(usual >= MIN_INK * usual.max())
    start, stop, total = int(places[0]), int(places[-1]) + 1, ink.shape[1]
    margin = MARGIN * (stop - start)
    low, high = max(start - margin, 0) / total, min(stop + margin, total) / total
    return (round(low, 3), round(high, 3)) if high - low <= SMALL else (0.0, 1.0)
