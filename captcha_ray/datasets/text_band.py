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
"""Least ink of a row or column of the text, of the row or column with the most."""

MARGIN = 0.12
"""What is kept on each side of the text, of its extent."""

SMALL = 0.5
"""Largest extent of the text, of the image's, for which the rest is cut off."""

MIN_IMAGES = 20
"""Least images from which a part is chosen."""


def find_text(images: Sequence[npt.NDArray[np.uint8]]) -> tuple[float, ...]:
    """Return left, top, right and bottom of the part with text, as fractions; nothing where it is most of the image.

    Ink is where gray levels change along a row, for its place from top to bottom, and along a column, for its place
    from left to right.

    Args:
        images: Of a corpus, gray, uint8, of the size of `LOOK`.
    """
    if len(images) < MIN_IMAGES:
        return ()
    pixels = np.stack(images).reshape(len(images), LOOK.height, LOOK.width).astype(np.int16)
    top, bottom = _extent(np.abs(np.diff(pixels, axis=2)).mean(2))
    left, right = _extent(np.abs(np.diff(pixels, axis=1)).mean(1))
    return () if (left, top, right, bottom) == (0.0, 0.0, 1.0, 1.0) else (left, top, right, bottom)


def _extent(ink: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return where ink begins and ends, or the whole. ink: (images, places)."""
    usual = np.quantile(ink, 1 - SHARE, axis=0)
    places = np.flatnonzero(usual >= MIN_INK * usual.max())
    start, stop, total = int(places[0]), int(places[-1]) + 1, ink.shape[1]
    margin = MARGIN * (stop - start)
    low, high = max(start - margin, 0) / total, min(stop + margin, total) / total
    return (round(low, 3), round(high, 3)) if high - low <= SMALL else (0.0, 1.0)
