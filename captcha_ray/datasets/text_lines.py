"""Find out which images of a corpus hold two lines of text."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from captcha_ray.images import two_lines

MAX_GAP = 0.5
"""A gap has at most this share of the ink of the weaker line."""

NARROW = 0.4
"""If an image has less than this share of its height as width for each character, one line cannot hold them."""

MIN_HEIGHT = 20
"""Least height of an image of two lines in pixels."""

MIN_TWO, MAX_ONE = 0.7, 0.2
"""Require this share of the images below the ratio, and at most that of those above it, to look like two lines."""

MIN_IMAGES = 20
"""Least images of two lines from which the ratio is chosen."""


def find_two_lines(
    images: Sequence[npt.NDArray[np.uint8]],
    widths: npt.NDArray[np.float64],
    heights: npt.NDArray[np.float64],
    lengths: Sequence[int],
) -> float:
    """Return the ratio of width to height below which images hold two lines; 0 where none or only a few do.

    An image looks like two lines if there is a gap in the middle of its height, and it is too narrow for its text.

    Args:
        images: Of a corpus, gray, uint8 (H, W, 1), whatever their size.
        widths: In pixels, as the images are to be seen, float64 (N,).
        heights: The same.
        lengths: Characters of each.
    """
    ratios = widths / heights
    two = np.array([_has_gap(image) for image in images], bool)
    two &= (ratios < NARROW * np.array(lengths)) & (heights >= MIN_HEIGHT)
    order = np.argsort(ratios)
    ratios, two = ratios[order], two[order]
    right = np.cumsum(two) + (~two).sum() - np.cumsum(~two)  # if the images up to each place are taken for two lines
    right[:-1][ratios[1:] == ratios[:-1]] = -1  # equal ratios stand on one side
    last = int(np.argmax(right))
    below, above = two[: last + 1], two[last + 1 :]
    if len(below) < MIN_IMAGES or below.mean() < MIN_TWO or (len(above) and above.mean() > MAX_ONE):
        return 0.0
    following = ratios[last + 1] if last + 1 < len(ratios) else 1.5 * ratios[last]
    between = float(ratios[last] + following) / 2
    return next(short for digits in range(2, 17) if ratios[last] < (short := round(between, digits)) <= following)


def _has_gap(image: npt.NDArray[np.uint8]) -> bool:
    return two_lines.gap_between(two_lines.ink_of_rows(image))[1] < MAX_GAP
