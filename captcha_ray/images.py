"""Decode image bytes to uint8 pixels (height, width, channels): every Pillow mode, gray or RGB, resized.

A file that cannot be decoded is a value with a reason, not a crash. Does not know labels, does not open files.
"""

import dataclasses
import io
import math

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFilter, ImageOps, UnidentifiedImageError

from captcha_ray.image_spec import ImageSpec

MAX_PIXELS = 16_000_000
"""Default limit on the pixels of a source image; a text crop has thousands."""

MIN_SATURATION = 48
"""Difference between a pixel's channels above which it counts as colored; compression alone makes smaller ones."""

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM")
"""Formats that are tried. Others that Pillow knows start programs (EPS) or are rarely tested against attacks."""

EXIF_KEYS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
"""Keys under which Pillow's plugins keep metadata that may hold an orientation."""

Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Why there are no pixels. reason: a word to group by. detail: a sentence."""

    reason: str
    detail: str


def decode(
    data: bytes, spec: ImageSpec, max_pixels: int = MAX_PIXELS, max_stretch: float = math.inf
) -> Pixels | Unreadable:
    """Decode an image file's bytes.

    The format follows from the bytes, not from a name; of an animation the first frame is taken. EXIF orientation is
    applied. Transparent pixels are laid over white. 16-bit samples keep their high byte.

    Args:
        data: The file.
        spec: Size, channels and preprocessing of the result.
        max_pixels: Most pixels of the source.
        max_stretch: Largest factor by which resizing may change the aspect ratio.

    Returns:
        uint8 (H, W, C), or why there are no pixels.
    """
    if not data:
        return Unreadable("empty_file", "the file has zero bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            stretch = width * spec.height / (height * spec.width)
            if width * height > max_pixels:
                bad = Unreadable("too_large", f"{width}x{height} pixels are more than {max_pixels}")
            elif max(stretch, 1 / stretch) > max_stretch:
                bad = Unreadable("wrong_aspect", f"{width}x{height} pixels do not fit {spec.width}x{spec.height}")
            else:
                return prepare(image, spec)
            return bad
    except UnidentifiedImageError:
        return Unreadable("not_an_image", "these bytes begin no PNG, JPEG, GIF, BMP, WebP, TIFF or PNM file")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Unreadable("too_large", f"the image has more than {max_pixels} pixels")
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        reason = "truncated" if "truncated" in str(error).lower() else "damaged"
        return Unreadable(reason, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


@dataclasses.dataclass(frozen=True)
class Appearance:
    """Size of an image in pixels, and whether it is in color."""

    width: int
    height: int
    colored: bool


def inspect(data: bytes, max_pixels: int = MAX_PIXELS) -> Appearance | Unreadable:
    """Return size and color of an image file, or why there are none.

    In color: at least a fiftieth of its pixels have channels that differ by more than `MIN_SATURATION`.
    """
    small = decode(data, ImageSpec(height=32, width=32, channels=3), max_pixels)
    if isinstance(small, Unreadable):
        return small
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # lies on its side
            width, height = height, width
    saturation = small.max(2).astype(int) - small.min(2)
    return Appearance(width, height, bool((saturation > MIN_SATURATION).mean() >= 0.02))


def prepare(image: Image.Image, spec: ImageSpec) -> Pixels:
    """Convert an opened image to uint8 (H, W, C) as `spec` says. Raises what Pillow raises for damaged data."""
    image.load()  # a PNG may hold its EXIF after the pixels
    if not EXIF_KEYS.isdisjoint(image.info):
        image = ImageOps.exif_transpose(image)
    image = _flatten(image)
    mode = "L" if spec.channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if spec.denoise:
        image = image.filter(ImageFilter.MedianFilter(spec.denoise))
    if image.size != (spec.width, spec.height):
        image = image.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    if spec.binarize:
        pixels = np.where(pixels > otsu_threshold(pixels), np.uint8(255), np.uint8(0))
    return pixels.reshape(spec.shape)


def from_array(array: npt.NDArray[np.uint8], spec: ImageSpec) -> Pixels:
    """Convert uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of any size to uint8 (H, W, C) as `spec` says.

    Raises ValueError for another type or shape.
    """
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"expected uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.dtype} {array.shape}")
    if array.size == 0:
        raise ValueError(f"the array has no pixels: {array.shape}")
    return prepare(Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array), spec)


def otsu_threshold(pixels: Pixels) -> int:
    """Return the gray level that splits the histogram into the two classes of largest variance between them.

    N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9 (1979). Pixels above it are
    the light class. A flat image gives its own level.
    """
    histogram = np.bincount(pixels.ravel(), minlength=256).astype(np.float64)
    weight = histogram.cumsum()
    moment = (histogram * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * weight - moment * weight[-1]) ** 2 / (weight * (weight[-1] - weight))
    if not np.isfinite(between).any():
        return int(pixels.flat[0])
    return int(np.nanargmax(np.where(np.isfinite(between), between, -1)))


def _flatten(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to L, RGB or opaque RGBA: high byte of 16-bit samples, transparency over white."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        samples = np.asarray(image)
        scaled = samples if image.mode == "F" else samples // 256
        return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] == 255:
            return image  # nothing shows through; what follows drops the channel
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode == "1" else "RGB")
