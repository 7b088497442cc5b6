"""Put the two lines of an image side by side, so that a network that recognizes one line recognizes both."""

import numpy as np
import numpy.typing as npt
from PIL import Image

MIDDLE = (0.3, 0.7)
"""Part of the height in which the gap between two lines is looked for."""

NEAR = 0.1
"""A row belongs to the gap if its ink exceeds the least by at most this share of the range."""

EVERYWHERE = 0.9
"""Share of the emptiest row's ink that counts as noise; every row has it."""


def ink_of_rows(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return how much gray levels change along each row, averaged over a fifteenth of the height.

    Args:
        pixels: uint8 (H, W) or (H, W, C).

    Returns:
        float64 (H,).
    """
    gray = pixels.reshape(*pixels.shape[:2], -1).mean(2)
    ink = np.abs(np.diff(gray, axis=1)).mean(1) if gray.shape[1] > 1 else np.zeros(len(gray))
    reach = len(ink) // 30
    padded = np.pad(ink, reach, mode="edge")
    smooth: npt.NDArray[np.float64] = np.convolve(padded, np.full(2 * reach + 1, 1 / (2 * reach + 1)), "valid")
    return smooth


def gap_between(ink: npt.NDArray[np.float64]) -> tuple[int, float]:
    """Return the row between two lines, and its ink as a share of the weaker line's; about 1 where there is no gap.

    Args:
        ink: Of each row. Noise and the sides of a frame, which are in every row, are left out of account.
    """
    low, high = (round(share * len(ink)) for share in MIDDLE)
    middle = ink[low : max(high, low + 1)]
    empty = np.flatnonzero(middle <= middle.min() + NEAR * (ink.max() - middle.min()))
    row = low + int(np.median(empty))
    noise = EVERYWHERE * ink.min()
    lines = [float(np.quantile(line, 0.9)) - noise for line in (ink[:row], ink[row:]) if len(line)]
    weaker = min(lines)
    return row, (float(ink[row]) - noise) / weaker if weaker > 0 else 1.0


def side_by_side(image: Image.Image) -> Image.Image:
    """Return an image of the upper line and, to its right, the lower one, both scaled to the height of the taller."""
    row, _ = gap_between(ink_of_rows(np.asarray(image)))
    width, height = image.size
    row = min(max(row, 1), max(height - 1, 1))
    line_height = max(row, height - row, 1)
    joined = Image.new(image.mode, (2 * width, line_height))
    for place, box in enumerate([(0, 0, width, row), (0, min(row, height - 1), width, height)]):
        line = image.crop(box).resize((width, line_height), Image.Resampling.BILINEAR)
        joined.paste(line, (place * width, 0))
    return joined
