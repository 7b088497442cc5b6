"""Decode image files of the common kinds by libspng, libjpeg-turbo and libwebp, in about half of Pillow's time.

The pixels are those that Pillow gives. Whatever is rare or odd about a file leaves it to Pillow: samples of 16 bits,
interlacing, animation, CMYK, transparency other than a fourth channel of a PNG, metadata that may turn the image, and
most damage. Some damaged files that Pillow refuses are decoded.
"""

import struct
from collections.abc import Callable
from typing import Any

import imagecodecs
from PIL import Image

from captcha_ray.images.metadata import JPEG_SIGNATURE, PNG_SIGNATURE, START_OF_SCAN

Size = tuple[int, int]
"""Width and height, pixels."""

PALETTE, GRAY_ALPHA = 3, 4
"""Types of a PNG file's colors ("PNG", third edition, 2025, table 8)."""

PNG_CHUNKS = {b"bKGD", b"cHRM", b"gAMA", b"pHYs", b"sBIT", b"sRGB", b"tIME"}
"""Chunks before the pixels of a PNG file that leave them as they are, for Pillow too."""

FRAMES = {0xC0, 0xC1, 0xC2}
"""Markers of a JPEG file whose frame is baseline, extended or progressive (ITU-T T.81, table B.1)."""

JPEG_SEGMENTS = FRAMES | {0xC4, 0xDB, 0xDD, 0xE0, 0xFE}
"""Other markers that say nothing of colors or of turning: tables, restarts, JFIF, comments."""

END_OF_IMAGE = b"\xff\xd9"

DAMAGED = (imagecodecs.SpngError, imagecodecs.Jpeg8Error, imagecodecs.WebpError, imagecodecs.BmpError, ValueError)
"""Raised by the libraries for a damaged file."""

VP8_START = b"\x9d\x01\x2a"
"""Bytes before the size of a lossy WebP file (RFC 6386, 9.1)."""


def size_of(data: bytes) -> Size | None:
    """Return the size of an image file of a common kind, None for any other. Nothing is decompressed."""
    known = DECODERS.get(data[:2])
    return known[0](data) if known else None


def load(data: bytes) -> Image.Image | None:
    """Return the image, in mode L, RGB or RGBA, of a file that has a `size_of`; None if it is damaged."""
    try:
        return Image.fromarray(DECODERS[data[:2]][1](data))
    except DAMAGED:
        return None


def _png_size(data: bytes) -> Size | None:
    if len(data) < 33 or data[8:16] != b"\0\0\0\x0dIHDR":
        return None
    width, height, bits, colors, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    chunks = PNG_CHUNKS | {b"PLTE"} if colors == PALETTE else PNG_CHUNKS
    at, kind = 33, b""
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            break
        if kind not in chunks:
            return None
        at += 12 + length
    while kind == b"IDAT" and at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
    is_whole = kind == b"IEND" and at == len(data) and width > 0 and height > 0
    return (width, height) if is_whole and bits <= 8 and not interlaced and colors != GRAY_ALPHA else None


def _jpeg_size(data: bytes) -> Size | None:
    found, at = None, 2
    while at + 10 <= len(data) and data[at] == 0xFF and data[at + 1] in JPEG_SEGMENTS:
        if data[at + 1] in FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            if found or bits != 8 or channels not in (1, 3) or not width * height:
                return None
            found = width, height
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    is_whole = data[at : at + 2] == bytes([0xFF, START_OF_SCAN]) and data.endswith(END_OF_IMAGE)
    return found if is_whole else None


def _webp_size(data: bytes) -> Size | None:
    """Return the size of a lossy file without alpha, animation and metadata."""
    length, form, kind, chunk = struct.unpack_from("<I4s4sI", data, 4) if len(data) >= 30 else (0, b"", b"", 0)
    if form != b"WEBP" or kind != b"VP8 " or data[23:26] != VP8_START or not length + 8 == chunk + 20 == len(data):
        return None
    width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return (width, height) if width * height else None


def _bmp_size(data: bytes) -> Size | None:
    """Return the size of a file of 24 bits a pixel, from the lowest row to the highest, not compressed."""
    if len(data) < 54:
        return None
    start, header, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    is_common = (start, header, bits, compression) == (54, 40, 24, 0) and width > 0 and height > 0
    return (width, height) if is_common and len(data) >= 54 + (3 * width + 3) // 4 * 4 * height else None


DECODERS: dict[bytes, tuple[Callable[[bytes], Size | None], Callable[[bytes], Any]]] = {
    PNG_SIGNATURE[:2]: (_png_size, imagecodecs.spng_decode),
    JPEG_SIGNATURE[:2]: (_jpeg_size, imagecodecs.jpeg8_decode),
    b"RI": (_webp_size, imagecodecs.webp_decode),
    b"BM": (_bmp_size, imagecodecs.bmp_decode),
}
"""Map the first two bytes of a file to what tells its size and what decodes it.

For PNG not `imagecodecs.png_decode`: imagecodecs 2026.3.6 releases None once too often at each damaged file, which ends
the process after some thousands.
"""
