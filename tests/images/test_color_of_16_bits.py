"""Color of 16 bits a sample, of which Pillow gives the high bytes: text in the low ones is found."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from captcha_ray.images.decoder import BLANK, decode, decode_with_size, inspect
from captcha_ray.images.spec import ImageSpec
from tests.support.image_files import chunk

TEXT = np.random.default_rng(0).integers(0, 2, (4, 12, 1)).repeat(4, 0).repeat(4, 1) * np.array([200, 100, 250])
"""Samples (16, 48, 3), 0 to 250."""

SPEC = ImageSpec(height=16, width=48, channels=3)


def png(samples: np.ndarray) -> bytes:
    """Return a PNG of uint16 (H, W, C), C 3 or 4."""
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(samples: np.ndarray, order: str = "<", *, compressed: bool = False) -> bytes:
    """Return a TIFF of uint16 (H, W, C), C 3 or 4, in a byte order as `struct` writes it."""
    height, width, channels = samples.shape
    data = samples.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compressed else data
    bits_at, data_at = 8, 16
    short, long = 3, 4
    tags = [
        (256, short, 1, width), (257, short, 1, height), (258, short, channels, bits_at),
        (259, short, 1, 8 if compressed else 1), (262, short, 1, 2), (273, long, 1, data_at),
        (277, short, 1, channels), (278, short, 1, height), (279, long, 1, len(data)),
        *([(338, short, 1, 2)] if channels == 4 else []),
    ]  # fmt: skip
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, data_at + len(data))
    entries = [
        struct.pack(f"{order}HHI{'HH' if kind == short and count == 1 else 'I'}", tag, kind, count, *values)
        for tag, kind, count, value in tags
        for values in [(value, 0) if kind == short and count == 1 else (value,)]
    ]
    bits = struct.pack(f"{order}4H", *[16] * 4)
    return start + bits + data + struct.pack(f"{order}H", len(tags)) + b"".join(entries) + bytes(4)


WRITERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "PNG": png,
    "TIFF, little-endian": tiff,
    "TIFF, big-endian": lambda samples: tiff(samples, ">"),
    "TIFF, compressed": lambda samples: tiff(samples, ">", compressed=True),
}


@pytest.mark.parametrize("alpha", [None, 255, 65_535])
@pytest.mark.parametrize("kind", WRITERS)
def test_text_in_the_low_bytes_is_decoded(kind: str, alpha: int | None) -> None:
    samples = TEXT if alpha is None else np.dstack([TEXT, np.full(TEXT.shape[:2], alpha)])
    data = WRITERS[kind](samples.astype(np.uint16))
    np.testing.assert_array_equal(decode(data, SPEC), TEXT)
    found = decode_with_size(data, SPEC)
    np.testing.assert_array_equal(found.pixels, TEXT)  # type: ignore[union-attr]
    assert inspect(data).colored  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", WRITERS)
def test_text_in_the_high_bytes_is_decoded_from_these(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, TEXT.shape)
    np.testing.assert_array_equal(decode(WRITERS[kind]((TEXT * 256 + noise).astype(np.uint16)), SPEC), TEXT)


@pytest.mark.parametrize("kind", WRITERS)
def test_one_color_of_16_bits_is_blank(kind: str) -> None:
    assert decode(WRITERS[kind](np.full((16, 48, 3), 300, np.uint16)), SPEC) == BLANK
