"""Images encoded as files, and read as a specification says."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from captcha_ray.images.decoder import decode
from captcha_ray.images.spec import ImageSpec

GRAY = ImageSpec(height=4, width=4)
COLOR = ImageSpec(height=4, width=4, channels=3)
ORANGE = (200, 100, 50)  # gray: (299 * 200 + 587 * 100 + 114 * 50) / 1000 = 124.2
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8))

MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"],
    "JPEG": ["L", "RGB", "CMYK"],
    "WEBP": ["L", "RGB", "RGBA"],
    "GIF": ["L", "P"],
    "BMP": ["1", "L", "P", "RGB"],
}
"""Modes that each format holds."""


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    buffer = io.BytesIO()
    image.save(buffer, kind, **{**lossless.get(kind, {}), **options})
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read(data: bytes, spec: ImageSpec, **options: int) -> np.ndarray:
    found = decode(data, spec, **options)
    assert isinstance(found, np.ndarray), found
    assert (found.shape, found.dtype) == (spec.shape, np.uint8)
    return found
