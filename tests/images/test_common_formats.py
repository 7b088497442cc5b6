"""Files of the common kinds give the very pixels that Pillow gives; all others are left to Pillow."""

import io
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from captcha_ray.images import common_formats, decoder
from captcha_ray.images.decoder import Decoded, Unreadable, decode_with_size
from captcha_ray.images.metadata import PNG_SIGNATURE
from captcha_ray.images.spec import ImageSpec
from tests.support.image_files import NOISE, chunk, encode

SPECS = [ImageSpec(height=60, width=40, channels=3), ImageSpec(height=9, width=33)]

EXIF = Image.Exif()
EXIF[0x0112] = 6

COMMON: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"PNG of mode {mode}": ("PNG", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")},
    "PNG of two bits a pixel": ("PNG", "P", {"bits": 2}),
    "PNG with resolution": ("PNG", "RGB", {"dpi": (72, 72)}),
    **{f"JPEG of quality {quality}": ("JPEG", "RGB", {"quality": quality}) for quality in (1, 30, 75, 95, 100)},
    **{f"JPEG of chroma {k}": ("JPEG", "RGB", {"subsampling": k}) for k in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")},
    "progressive JPEG": ("JPEG", "RGB", {"progressive": True}),
    "gray JPEG": ("JPEG", "L", {}),
    "gray progressive JPEG": ("JPEG", "L", {"progressive": True}),
    "JPEG with restarts and a comment": ("JPEG", "RGB", {"restart_marker_blocks": 2, "comment": b"x"}),
    **{f"WebP of quality {quality}": ("WEBP", "RGB", {"lossless": False, "quality": quality}) for quality in (5, 90)},
    "BMP": ("BMP", "RGB", {}),
}
"""name: (format, mode, options) of Pillow's writer."""

RARE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gray PNG with alpha": ("PNG", "LA", {}),
    "PNG of 16 bits": ("PNG", "I;16", {}),
    "PNG whose palette is transparent": ("PNG", "P", {"transparency": b"\0\x80"}),
    "PNG with a transparent color": ("PNG", "RGB", {"transparency": (0, 0, 0)}),
    "PNG that may be turned": ("PNG", "RGB", {"exif": EXIF}),
    "animated PNG": ("PNG", "RGB", {"save_all": True, "append_images": [NOISE.transpose(Image.Transpose.ROTATE_180)]}),
    "JPEG that may be turned": ("JPEG", "RGB", {"exif": EXIF}),
    "JPEG of four inks": ("JPEG", "CMYK", {}),
    "JPEG of no color transform": ("JPEG", "RGB", {"keep_rgb": True, "subsampling": None}),
    "WebP with alpha": ("WEBP", "RGBA", {}),
    "lossless WebP": ("WEBP", "RGB", {}),
    "BMP with a palette": ("BMP", "P", {}),
    "GIF": ("GIF", "P", {}),
    "TIFF": ("TIFF", "RGB", {}),
}


def write(image: Image.Image, kind: str, mode: str, options: dict[str, Any]) -> bytes:
    if mode == "I;16":
        made = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        colors = 2 ** options.get("bits", 8)
        made = image.convert("RGB").quantize(colors) if mode == "P" else image.convert(mode)
    return encode(made, kind, **{name: value for name, value in options.items() if value is not None})


def by_pillow(data: bytes, spec: ImageSpec) -> Decoded | Unreadable:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common_formats, "size_of", lambda data: None)
        return decode_with_size(data, spec)


def assert_same(data: bytes) -> None:
    for spec in SPECS:
        found, expected = decode_with_size(data, spec), by_pillow(data, spec)
        assert isinstance(expected, Decoded) == isinstance(found, Decoded), (found, expected)
        if isinstance(found, Decoded) and isinstance(expected, Decoded):
            assert (found.width, found.height) == (expected.width, expected.height)
            assert found.pixels.tobytes() == expected.pixels.tobytes()


@st.composite
def pictures(draw: st.DrawFn) -> Image.Image:
    """Draw pictures of 1 to 70 pixels a side: noise, or areas of one color; opaque, or with every alpha."""
    width, height = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    rng, area = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.sampled_from([1, 8]))
    colors = rng.integers(0, 256, (height // area + 1, width // area + 1, 4), dtype=np.uint8)
    pixels = colors.repeat(area, 0).repeat(area, 1)[:height, :width].copy()
    pixels[..., 3] |= 255 * draw(st.booleans())
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", COMMON)
@given(image=pictures())
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_common_files_give_the_pixels_that_pillow_gives(name: str, image: Image.Image) -> None:
    data = write(image, *COMMON[name])
    assert common_formats.size_of(data) == image.size
    loaded = common_formats.load(data)
    assert loaded is not None
    assert loaded.size == image.size
    assert_same(data)


def png(colors: int, bits: int, rows: np.ndarray, *before: bytes, parts: int = 1) -> bytes:
    """Return a PNG file of 16 pixels a row. rows: uint8, packed. before: chunks before the pixels."""
    header = struct.pack(">IIBBBBB", 16, len(rows), bits, colors, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    size = -(-len(packed) // parts)
    pixels = [chunk(b"IDAT", packed[start : start + size]) for start in range(0, len(packed), size)]
    return b"".join([PNG_SIGNATURE, chunk(b"IHDR", header), *before, *pixels, chunk(b"IEND", b"")])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


HARMLESS = {
    "gAMA": struct.pack(">I", 100_000),
    "cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
    "sRGB": b"\0",
    "sBIT": b"\5\6\5",
    "bKGD": b"\0\1\0\2\0\3",
    "pHYs": struct.pack(">IIB", 2835, 1000, 1),
    "tIME": struct.pack(">HBBBBB", 2026, 11, 27, 1, 2, 3),
}


@pytest.mark.parametrize(
    "data",
    [
        *(png(0, bits, noise(9, 2 * bits)) for bits in (1, 2, 4)),
        *(png(2, 8, noise(9, 48), chunk(name.encode(), value)) for name, value in HARMLESS.items()),
        png(2, 8, noise(9, 48), *(chunk(name.encode(), value) for name, value in HARMLESS.items())),
        png(6, 8, noise(9, 64), parts=5),
        png(3, 8, noise(9, 16), chunk(b"PLTE", noise(768).tobytes())),
        png(3, 2, noise(9, 4), chunk(b"PLTE", noise(12).tobytes())),
        png(3, 8, noise(9, 16) % 8, chunk(b"PLTE", noise(12).tobytes())),  # half of the colors are missing
        encode(NOISE, "JPEG").replace(b"\xff\xc0", b"\xff\xc1"),
    ],
    ids=[
        *("1 bit", "2 bits", "4 bits", *HARMLESS, "all of these", "five parts", "palette", "palette of 2 bits"),
        *("palette that is too short", "extended JPEG"),
    ],
)
def test_files_that_pillow_does_not_write_give_its_pixels_too(data: bytes) -> None:
    assert common_formats.size_of(data)
    assert_same(data)


@pytest.mark.parametrize("name", RARE)
def test_rare_files_are_left_to_pillow(name: str) -> None:
    data = write(NOISE, *RARE[name])
    assert common_formats.size_of(data) is None
    assert isinstance(decode_with_size(data, SPECS[0]), Decoded)


def interlaced() -> bytes:
    data = encode(NOISE.convert("L"), "PNG")
    return data[:16] + chunk(b"IHDR", data[16:28] + b"\x01")[8:] + data[33:]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("PNG", lambda data: data + b"\0"),
        ("PNG", lambda data: data[:-12]),
        ("PNG", lambda data: data[:-12] + chunk(b"eXIf", EXIF.tobytes()) + data[-12:]),
        ("PNG", lambda data: data[:33] + chunk(b"tEXt", b"Raw profile type exif\0") + data[33:]),
        ("PNG", lambda data: interlaced()),
        ("JPEG", lambda data: data[:-2]),
        ("JPEG", lambda data: data.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c")),
        ("JPEG", lambda data: data.replace(b"\xff\xc0", b"\xff\xc3")),
        ("WEBP", lambda data: data[:-2]),
        ("BMP", lambda data: data[:-1]),
        ("BMP", lambda data: data[:30] + b"\x01" + data[31:]),
    ],
)
def test_files_with_more_or_less_than_pixels_are_left_to_pillow(name: str, make: Callable[[bytes], bytes]) -> None:
    data = encode(NOISE, name, **({"lossless": False} if name == "WEBP" else {}))
    assert common_formats.size_of(data) == NOISE.size
    assert common_formats.size_of(make(data)) is None


@pytest.mark.parametrize("name", COMMON)
def test_common_files_are_not_left_to_pillow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(NOISE, *COMMON[name])
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow decodes it"))
    assert isinstance(decode_with_size(data, SPECS[0]), Decoded)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_limits_are_checked_before_anything_is_decompressed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(NOISE, kind, **({"lossless": False} if kind == "WEBP" else {}))
    monkeypatch.setattr(common_formats, "load", lambda data: pytest.fail("it was decompressed"))
    many = decoder.decode(data, SPECS[0], max_pixels=40 * 60 - 1)
    assert isinstance(many, Unreadable)
    assert many.reason == "too_large"
    flat = decoder.decode(data, ImageSpec(height=8, width=512), max_stretch=2)
    assert isinstance(flat, Unreadable)
    assert flat.reason == "wrong_aspect"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
@settings(max_examples=200)
def test_damage_is_told_as_pillow_tells_it(kind: str, at: float, value: int) -> None:
    data = bytearray(encode(NOISE, kind, **({"lossless": False} if kind == "WEBP" else {})))
    data[int(at * len(data))] = value
    assert_same(bytes(data))


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="None is not counted there")
def test_damaged_files_take_nothing_from_the_interpreter() -> None:
    files = [bytearray(encode(NOISE, kind)) for kind in ("PNG", "JPEG", "BMP")]
    for data in files:
        data[len(data) // 2 : len(data) // 2 + 4] = b"\xff\xd8\xff\xd9"
    before = sys.getrefcount(None)
    for _ in range(300):
        for data in files:
            common_formats.load(bytes(data))
    assert sys.getrefcount(None) > before - 100


def test_a_damaged_png_is_no_image() -> None:
    buffer = io.BytesIO()
    NOISE.save(buffer, "PNG")
    data = buffer.getvalue()
    assert common_formats.load(data[:60] + b"\0\0\0" + data[63:]) is None
