"""One text as ink, how well pixels agree with it, and the text as drawing programs leave it."""

import numpy as np
from PIL import Image, ImageDraw

SIZE = (48, 16)


def mask(size: tuple[int, int], font_size: int) -> np.ndarray:
    """Return float32 (H, W), 0 to 1: how much ink a pixel of the text 8127 has."""
    image = Image.new("L", size)
    ImageDraw.Draw(image).text((size[0] / 2, size[1] / 2), "8127", fill=255, font_size=font_size, anchor="mm")
    return np.asarray(image, np.float32) / 255


MASK, LARGE = mask(SIZE, 14), mask((144, 48), 36)


def likeness(pixels: np.ndarray) -> float:
    """Return how well gray pixels, uint8 (H, W), agree with the text's ink or its negative: 0 not at all, 1 whole."""
    if pixels.min() == pixels.max():
        return 0.0
    return float(abs(np.corrcoef(pixels.ravel().astype(float), MASK.ravel())[0, 1]))


def with_alpha(
    ink: tuple[int, int, int], beneath: tuple[int, int, int] = (0, 0, 0), text: np.ndarray = MASK
) -> Image.Image:
    """Return text as a drawing program leaves it: colors and alpha fade together at the edges."""
    colors = np.array(beneath) + text[:, :, None] * (np.array(ink) - beneath)
    return Image.fromarray(np.dstack([colors, text * 255]).round().astype(np.uint8))
