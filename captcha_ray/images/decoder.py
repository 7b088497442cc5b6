"""Decode image bytes to uint8 pixels (height, width, channels): every Pillow mode, gray or RGB, resized.

A file that cannot be decoded, or in which nothing is to be seen, is a value with a reason, not a crash. Metadata that
cannot be parsed is as if absent. Does not know labels, does not open files.
"""

import dataclasses
import functools
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, ImageFilter, UnidentifiedImageError

from captcha_ray.images import common_formats, contrast, two_lines
from captcha_ray.images.metadata import SIGNATURES, STRIPPERS
from captcha_ray.images.spec import ImageSpec

MAX_PIXELS = 16_000_000
"""Default limit on the pixels of a source image; a text crop has thousands."""

MIN_SATURATION = 48
"""Difference between a pixel's channels above which it counts as colored; compression alone makes smaller ones."""

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM")
"""Formats that are tried. Others that Pillow knows start programs (EPS) or are rarely tested against attacks."""

EXIF_KEYS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
"""Keys under which Pillow's plugins keep metadata that may hold an orientation."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Turn an image of each EXIF orientation upright; with those from 5 on it lies on its side."""

LOW_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBX", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
"""Map Pillow's raw modes of 16 bits a sample to those of the other order of bytes; N is this machine's order."""

GRAY_ALPHA = "LA;16B"
"""Pillow's raw mode of gray with alpha, of 16 bits a sample."""

MAX_FRAMES = 100
"""Most frames of an animation that are looked at for one that shows something."""

Pixels = npt.NDArray[np.uint8]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Why there are no pixels. reason: a word to group by. detail: a sentence."""

    reason: str
    detail: str

    @property
    def error(self) -> str:
        """Return `NotAnImage: sentence`, as the table of predictions has it, for a reason `not_an_image`."""
        return f"{''.join(word.capitalize() for word in self.reason.split('_'))}: {self.detail}"


BLANK = Unreadable("blank", "all pixels have one color, or colors that 8 bits a channel do not tell apart")


AspectRatios = tuple[float, ...]
"""Least and greatest ratio of width to height."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Pixels, uint8 (H, W, C), and width and height of the image as it is to be seen, in pixels."""

    pixels: Pixels
    width: int
    height: int


def decode(
    data: bytes,
    spec: ImageSpec,
    max_pixels: int = MAX_PIXELS,
    max_stretch: float = math.inf,
    aspect_ratios: AspectRatios | None = None,
) -> Pixels | Unreadable:
    """Decode an image file's bytes.

    The format follows from the bytes, not from a name; of an animation the first frame that shows something is taken.
    EXIF orientation is applied. Transparent pixels are laid over white, or over black where the ink is white. Samples
    of more than 8 bits are scaled by their type's range, or by their own where that would leave them without contrast.

    Args:
        data: The file.
        spec: Size, channels and preprocessing of the result.
        max_pixels: Most pixels of the source.
        max_stretch: Largest factor by which the image's ratio of width to height may lie outside of `aspect_ratios`.
        aspect_ratios: Least and greatest usual ratio; None for that of `spec`.

    Returns:
        uint8 (H, W, C), or why there are no pixels.
    """
    usual = aspect_ratios or (spec.width / spec.height,)
    if spec.pad:
        usual = (min(*usual, 1.0), max(usual))  # narrow images are padded and lose nothing
    found = _open_and_decode(data, spec, max_pixels, max_stretch, usual)
    return found if isinstance(found, Unreadable) else found.pixels


def decode_with_size(data: bytes, spec: ImageSpec, max_pixels: int = MAX_PIXELS) -> Decoded | Unreadable:
    """Decode an image file's bytes as `decode` does, and tell its size."""
    return _open_and_decode(data, spec, max_pixels)


def _open_and_decode(
    data: bytes,
    spec: ImageSpec,
    max_pixels: int,
    max_stretch: float = math.inf,
    usual: AspectRatios = (1.0,),
) -> Decoded | Unreadable:
    """Return the decoded image, or why it cannot be decoded.

    A file that fails is tried again without its metadata, which may be all that is wrong with it.
    """

    def open_and_decode(data: bytes) -> Decoded | Unreadable:
        if common := _decode_common(data, spec, max_pixels, max_stretch, usual):
            return common
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                return Unreadable("too_large", f"{width}x{height} pixels are more than {max_pixels}")
            of_high_bytes = _decode(image, spec, max_stretch, usual)
        if of_high_bytes is not BLANK:
            return of_high_bytes
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            low = _of_low_bytes(image)
            return _decode(low, spec, max_stretch, usual) if low else BLANK

    if not data:
        return Unreadable("empty_file", "the file has zero bytes")
    made = _guarded(lambda: open_and_decode(data), max_pixels, data)
    strip = next((strip for start, strip in STRIPPERS.items() if data.startswith(start)), None)
    if strip and isinstance(made, Unreadable) and made.reason in ("not_an_image", "damaged", "truncated"):
        for keep_exif in (True, False):  # the orientation may be all that is wrong, and all that is of use
            again = _guarded(functools.partial(lambda keep: open_and_decode(strip(data, keep)), keep_exif), max_pixels)
            if not isinstance(again, Unreadable):
                return again
    return made


def _decode_common(
    data: bytes, spec: ImageSpec, max_pixels: int, max_stretch: float, usual: AspectRatios
) -> Decoded | Unreadable | None:
    """Return the decoded image of a file of a common kind; None where it is left to Pillow, to decode or to refuse."""
    size = common_formats.size_of(data)
    if size is None or math.prod(size) > max_pixels or _stretch(size, usual) > max_stretch:
        return None
    image = common_formats.load(data)
    if image is None:
        return None
    pixels = prepare(image, spec)
    return pixels if isinstance(pixels, Unreadable) else Decoded(pixels, image.width, image.height)


def _guarded(make: Callable[[], T | Unreadable], max_pixels: int, data: bytes = b"") -> T | Unreadable:
    """Return what `make` makes, or the reason for what Pillow raises. data: the file, to call it by its kind."""
    try:
        return make()
    except UnidentifiedImageError:
        if kind := next((name for start, name in SIGNATURES.items() if data.startswith(start)), ""):
            return Unreadable("not_an_image", f"these bytes begin a {kind} file, but it is damaged or of a rare kind")
        return Unreadable("not_an_image", "these bytes begin no PNG, JPEG, GIF, BMP, WebP, TIFF or PNM file")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Unreadable("too_large", f"the image has more than {max_pixels} pixels")
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        reason = "truncated" if "truncated" in str(error).lower() else "damaged"
        return Unreadable(reason, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _decode(image: Image.Image, spec: ImageSpec, max_stretch: float, usual: AspectRatios) -> Decoded | Unreadable:
    width, height = image.size
    if min(_stretch((width, height), usual), _stretch((height, width), usual)) > max_stretch:
        return _wrong_aspect((width, height), spec)  # lying on its side or not; decoding would be for nothing
    for number, frame in enumerate(_frames(image)):
        upright = upright_image(frame)
        if number == 0 and _stretch(upright.size, usual) > max_stretch:
            return _wrong_aspect(upright.size, spec)
        if not isinstance(pixels := prepare(upright, spec), Unreadable):
            return Decoded(pixels, upright.width, upright.height)
    return BLANK


def _of_low_bytes(image: Image.Image) -> Image.Image | None:
    """Return an opened color image, or one with transparency, by the low bytes of its samples; None if it has none.

    Pillow gives the high bytes, which are all zero where a program has written samples of 8 bits as 16. Which byte it
    takes is told to its decoder by the order of bytes, the last letter of such as `RGB;16B`. It knows one order alone
    for gray with alpha; the four bytes of each pixel are taken for four channels instead.
    """
    assert isinstance(image, ImageFile.ImageFile)
    modes = LOW_BYTES | {GRAY_ALPHA: "RGBA"}
    tiles, is_gray = [], False
    for tile in image.tile:
        mode, *others = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if mode not in modes:
            return None
        is_gray = mode == GRAY_ALPHA
        tiles.append(tile._replace(args=(modes[mode], *others) if others else modes[mode]))
    image.tile = tiles
    if not is_gray:
        return image if tiles else None
    _, level, _, alpha = image.split()
    found = Image.merge("RGBA", (level, level, level, alpha))
    found.info = image.info
    return found


def _stretch(size: tuple[int, int], usual: AspectRatios) -> float:
    """Return the factor by which a ratio of width to height lies outside of the usual ones; up to 1 is within."""
    ratio = size[0] / size[1]
    return max(ratio / max(usual), min(usual) / ratio)


def _wrong_aspect(size: tuple[int, int], spec: ImageSpec) -> Unreadable:
    return Unreadable("wrong_aspect", f"{size[0]}x{size[1]} pixels do not fit {spec.width}x{spec.height}")


def _frames(image: Image.Image) -> Iterator[Image.Image]:
    """Yield the image, decoded, at each of its frames that has the size of the first."""
    size = image.size
    image.load()
    yield image
    for number in range(1, min(getattr(image, "n_frames", 1), MAX_FRAMES)):
        image.seek(number)
        if image.size == size:  # a larger one might be one that no memory holds
            image.load()
            yield image


def upright_image(image: Image.Image) -> Image.Image:
    """Return a decoded image as it is to be seen, turned as its metadata says."""
    turn = TURNS.get(_orientation(image))
    return image.transpose(turn) if turn is not None else image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is left to apply, 1 if there is none.

    Pillow turns a TIFF while it decodes it.
    """
    if image.format == "TIFF" or EXIF_KEYS.isdisjoint(image.info):
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        found = found[0] if isinstance(found, bytes) and len(found) == 1 else found
        return found if found in TURNS else 1
    except Exception:  # whatever Pillow's parsers raise for garbage
        return 1


@dataclasses.dataclass(frozen=True)
class Appearance:
    """Size of an image in pixels, as it is to be seen, and whether it is in color."""

    width: int
    height: int
    colored: bool


def inspect(data: bytes, max_pixels: int = MAX_PIXELS) -> Appearance | Unreadable:
    """Return size and color of an image file, or why there are none.

    In color: at least a fiftieth of its pixels have channels that differ by more than `MIN_SATURATION`.
    """
    found = decode_with_size(data, ImageSpec(height=32, width=32, channels=3), max_pixels)
    if isinstance(found, Unreadable):
        return found
    saturation = found.pixels.max(2).astype(int) - found.pixels.min(2)
    return Appearance(found.width, found.height, bool((saturation > MIN_SATURATION).mean() >= 0.02))


def prepare(image: Image.Image, spec: ImageSpec) -> Pixels | Unreadable:
    """Convert an upright image to uint8 (H, W, C) as `spec` says; return `BLANK` if it has a single color.

    Raises what Pillow raises for damaged data.
    """
    eight = contrast.to_8_bits(image)
    visible = contrast.to_contrast(_cropped(eight, spec.crop) if spec.crop else eight, gray=spec.channels == 1)
    if visible is None:
        return BLANK
    if spec.denoise:
        visible = visible.filter(ImageFilter.MedianFilter(spec.denoise))
    if visible.width < spec.two_lines * visible.height:
        visible = two_lines.side_by_side(visible)
    if visible.size != (spec.width, spec.height):
        visible = _padded(visible, spec) if spec.pad else _resized(visible, spec.width, spec.height)
    pixels = np.asarray(visible, np.uint8)
    if spec.binarize:
        pixels = np.where(pixels > otsu_threshold(pixels), np.uint8(255), np.uint8(0))
    return pixels.reshape(spec.shape)


def _cropped(image: Image.Image, part: Sequence[float]) -> Image.Image:
    """Return a part of an image, of at least a pixel."""
    left, top, right, bottom = (round(f * side) for f, side in zip(part, 2 * image.size, strict=True))
    left, top = min(left, image.width - 1), min(top, image.height - 1)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _padded(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Return an image, gray or RGB, as large as the spec allows, amid the median color of its edge."""
    scale = min(spec.width / image.width, spec.height / image.height)
    width, height = (max(round(scale * side), 1) for side in image.size)
    inner = _resized(image, width, height)
    pixels = np.asarray(inner)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    color = np.median(edge, 0).astype(int)
    padded = Image.new(image.mode, (spec.width, spec.height), tuple(np.atleast_1d(color).tolist()))
    padded.paste(inner, ((spec.width - width) // 2, (spec.height - height) // 2))
    return padded


def from_array(array: npt.NDArray[np.uint8], spec: ImageSpec) -> Pixels | Unreadable:
    """Convert uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of any size to uint8 (H, W, C) as `spec` says.

    Returns `BLANK` for an array of a single color. Raises ValueError for another type or shape.
    """
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"expected uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.dtype} {array.shape}")
    if array.size == 0:
        raise ValueError(f"the array has no pixels: {array.shape}")
    return prepare(Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array), spec)


def from_image(image: Image.Image, spec: ImageSpec) -> Pixels | Unreadable:
    """Convert a Pillow image, at the frame where it is, to uint8 (H, W, C); or return why there are no pixels."""
    if not all(image.size):
        return Unreadable("damaged", f"the image has {image.size[0]}x{image.size[1]} pixels")
    return _guarded(lambda: prepare(upright_image(_loaded(image)), spec), MAX_PIXELS)


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return image


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
