"""Whatever bytes stand in a bucket become pixels of one kind, or a reason; expected pixels are worked by hand."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captcha_ray.images import decoder
from captcha_ray.images.decoder import BLANK, Unreadable, decode, from_array, prepare
from captcha_ray.images.spec import ImageSpec
from tests.support.image_files import COLOR, GRAY, NOISE, ORANGE, chunk, encode, read

HALF_BLACK = (0, 0, 0, 128)  # over white: 255 * (1 - 128 / 255) = 127


CONTRAST = {
    "1": 0, "L": 255, "RGB": (0, 0, 0), "P": 0, "LA": (255, 255), "RGBA": (0, 0, 0, 255), "CMYK": (0, 0, 0, 255),
    "YCbCr": (255, 128, 128), "I;16": 0xFFFF, "I;16B": 0xFFFF, "I": 0xFFFF, "F": 255.0, "PA": (0, 255),
    "RGBa": (255, 255, 255, 255), "HSV": (0, 0, 255), "RGBX": (255, 255, 255, 0),
}  # fmt: skip


def halves(mode: str, color: object, other: object = None) -> Image.Image:
    """Return an image of 16x4 pixels: the color in its left half, and in its right half one that contrasts."""
    image = Image.new(mode, (16, 4), CONTRAST[mode] if other is None else other)  # type: ignore[arg-type]
    image.paste(Image.new(mode, (8, 4), color), (0, 0))  # type: ignore[arg-type]
    return image


def palette(transparent: bool = False) -> Image.Image:
    image = halves("P", 1)
    image.putpalette([0, 0, 0, *ORANGE])
    if transparent:
        image.info["transparency"] = 1
    return image


CASES: dict[str, tuple[bytes, tuple[int, int, int], int]] = {}
"""name: (bytes, RGB expected on the left, tolerance)."""


def _case(kind: str, image: Image.Image, rgb: tuple[int, int, int], tolerance: int = 0, **options: object) -> None:
    what = image.mode + (" with a transparency key" if options or "transparency" in image.info else "")
    CASES[f"{what} in {kind}"] = (encode(image, kind, **options), rgb, tolerance)


for _kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG"):
    _case(_kind, halves("1", 1), (255, 255, 255))
    _case(_kind, halves("L", 77), (77, 77, 77))
    _case(_kind, halves("RGB", ORANGE), ORANGE, 1 if _kind == "JPEG" else 0)
for _kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP"):
    _case(_kind, palette(), ORANGE)
for _kind in ("PNG", "TIFF", "WEBP"):
    _case(_kind, halves("LA", (0, 128)), (127, 127, 127))
    _case(_kind, halves("RGBA", HALF_BLACK), (127, 127, 127))
    _case(_kind, halves("RGBA", (*ORANGE, 255)).convert("RGBA"), ORANGE)
for _kind in ("TIFF", "JPEG"):
    _case(_kind, halves("CMYK", (55, 155, 205, 0)), ORANGE, 1 if _kind == "JPEG" else 0)
    _case(_kind, halves("YCbCr", (77, 128, 128)), (77, 77, 77))
for _kind in ("PNG", "TIFF"):
    _case(_kind, halves("I;16", 0x4D22), (0x4D, 0x4D, 0x4D))
_case("TIFF", halves("I", 0x4D22), (0x4D, 0x4D, 0x4D))
_case("TIFF", halves("F", 77.9), (77, 77, 77))
_case("TIFF", halves("I;16B", 0x4D22), (0x4D, 0x4D, 0x4D))
_case("PPM", halves("I", 0x4D22), (0x4D, 0x4D, 0x4D))
_case("GIF", palette(transparent=True), (255, 255, 255))
_case("PNG", palette(transparent=True), (255, 255, 255))
_case("PNG", halves("L", 77, 0), (255, 255, 255), transparency=77)
_case("PNG", halves("RGB", ORANGE), (255, 255, 255), transparency=ORANGE)
_case("PNG", palette(), (227, 177, 152), transparency=bytes([0, 128]))  # 200 * 128 / 255 + 127 = 227.4


@pytest.mark.parametrize("name", CASES)
def test_every_mode_in_every_format_becomes_the_pixels_a_viewer_shows(name: str) -> None:
    data, rgb, tolerance = CASES[name]
    found = read(data, COLOR).astype(int)[:, 0]
    assert np.abs(found - rgb).max() <= tolerance
    gray = (299 * rgb[0] + 587 * rgb[1] + 114 * rgb[2]) / 1000
    assert np.abs(read(data, GRAY).astype(int)[:, 0] - gray).max() <= 1 + tolerance


PREPARED = [
    (halves("PA", (1, 128)), 127),
    (halves("RGBa", HALF_BLACK), 127),
    (halves("HSV", (0, 0, 77)), 77),
    (halves("RGBX", (77, 77, 77, 0)), 77),
    (halves("I", -5), 0),
    (halves("I", 2**31 - 1, 0), 255),
    (halves("I;16", 65535, 0), 255),
    (halves("F", 300.0, 0.0), 255),
    (halves("F", -3.0), 0),
]


@pytest.mark.parametrize(("image", "gray"), PREPARED, ids=lambda x: getattr(x, "mode", x))
def test_modes_that_few_formats_hold_are_read_too(image: Image.Image, gray: int) -> None:
    if image.mode == "PA":
        image.putpalette([255, 255, 255, 0, 0, 0])
    for spec in (GRAY, COLOR):
        pixels = prepare(image, spec)
        assert isinstance(pixels, np.ndarray)
        assert set(pixels[:, 0].ravel()) == {gray}


def test_transparent_pixels_are_laid_over_white() -> None:
    image = Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8).repeat(2, 1).repeat(4, 0))
    assert read(encode(image, "PNG"), GRAY)[:, :, 0].tolist() == [[255, 255, 9, 9]] * 4


def test_of_an_animation_the_first_frame_is_read() -> None:
    data = encode(halves("L", 0), "GIF", save_all=True, append_images=[halves("L", 255, 0)])
    assert set(read(data, GRAY)[:, 0].ravel()) == {0}


# Orientation: a dark corner and a mid one, stored so that every turn and mirroring puts them elsewhere.
STORED = np.array([[0, 85], [170, 255], [40, 120]], np.uint8)
UPRIGHT = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.T,
    6: STORED[::-1].T,
    7: STORED[::-1, ::-1].T,
    8: STORED.T[::-1],
}


def oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.fromarray(STORED.repeat(8, 0).repeat(8, 1)), kind, exif=exif)


@pytest.mark.parametrize(
    ("kind", "orientation"),
    [*(("JPEG", n) for n in UPRIGHT), ("PNG", 6), ("WEBP", 8), ("TIFF", 5)],
)
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    expected = UPRIGHT[orientation]
    height, width = expected.shape
    found = read(oriented(kind, orientation), ImageSpec(height=height * 8, width=width * 8))
    assert np.abs(found[4::8, 4::8, 0].astype(int) - expected).max() <= 2


def test_orientation_that_a_png_holds_after_its_pixels_is_applied() -> None:
    late = encode(Image.fromarray(STORED.repeat(8, 0).repeat(8, 1)), "PNG")
    exif = b"MM\0*\0\0\0\x08" + b"\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + b"\0\0\0\0"
    found = read(late[:-12] + chunk(b"eXIf", exif) + late[-12:], ImageSpec(height=16, width=24))
    assert found[4::8, 4::8, 0].tolist() == UPRIGHT[6].tolist()


def test_zero_bytes_are_an_empty_file() -> None:
    assert decode(b"", GRAY) == Unreadable("empty_file", "the file has zero bytes")


@pytest.mark.parametrize(
    "data", [b"\0", b"hello, I am no image\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"BM"]
)
def test_other_files_are_no_images(data: bytes) -> None:
    found = decode(data, GRAY)
    assert isinstance(found, Unreadable)
    assert found.reason == "not_an_image"


def test_formats_whose_reading_starts_other_programs_are_not_tried() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "EPS")
    found = decode(file.getvalue(), GRAY)
    assert isinstance(found, Unreadable)
    assert found.reason == "not_an_image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_file_cut_anywhere_gives_a_reason_or_pixels(kind: str) -> None:
    data = encode(NOISE, kind)
    for cut in {*range(1, 64), *np.linspace(64, len(data) - 1, 40).astype(int).tolist()}:
        found = decode(data[:cut], GRAY)
        if isinstance(found, Unreadable):
            assert found.reason in {"truncated", "damaged", "not_an_image"}
            assert found.detail
            assert "\n" not in found.detail
        else:
            assert found.shape == GRAY.shape


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_cut_in_its_pixels_is_truncated(kind: str) -> None:
    data = encode(NOISE, kind)
    for part in (0.3, 0.5, 0.9):
        found = decode(data[: int(len(data) * part)], GRAY)
        assert isinstance(found, Unreadable)
        assert found.reason == "truncated"


def test_a_flipped_bit_in_a_png_is_damage_and_not_other_pixels() -> None:
    data = bytearray(encode(NOISE, "PNG"))
    data[len(data) // 2] ^= 1
    found = decode(bytes(data), GRAY)
    assert isinstance(found, Unreadable)
    assert found.reason == "damaged"


def bomb(width: int, height: int) -> bytes:
    """A whole, valid 1-bit PNG of that size, black but for a stripe on the left: a few hundred KB at the most."""
    packer = zlib.compressobj(1)
    row = b"\0\xff" + bytes((width + 7) // 8 - 1)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BOMB_CHECK = """
import resource, sys
from captcha_ray.images.spec import ImageSpec
from captcha_ray.images.decoder import BLANK, decode
decode(b"no image", ImageSpec(height=4, width=4))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)
print(decode(sys.stdin.buffer.read(), ImageSpec(height=4, width=4)).reason)
"""


def test_a_png_of_40000_by_40000_is_refused_within_64_megabytes() -> None:
    result = subprocess.run(
        [sys.executable, "-c", BOMB_CHECK], input=bomb(40_000, 40_000), capture_output=True, timeout=60, check=False
    )
    assert (result.stdout, result.stderr) == (b"too_large\n", b"")


def test_the_limit_on_pixels_is_the_callers() -> None:
    found = decode(bomb(2000, 2001), GRAY, max_pixels=4_000_000)
    assert found == Unreadable("too_large", "2000x2001 pixels are more than 4000000")
    assert set(read(bomb(2000, 2000), GRAY, max_pixels=4_000_000)[:, 1:].ravel()) == {0}


@pytest.mark.parametrize("size", [(4001, 4000), (10_000, 10_000)])
def test_the_limit_holds_below_and_above_pillows_own(size: tuple[int, int]) -> None:
    found = decode(bomb(*size), GRAY)
    assert isinstance(found, Unreadable)
    assert found.reason == "too_large"


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 3), (4, 4, 4), (9, 5), (2, 1, 1), (2, 700, 3)])
@pytest.mark.parametrize("spec", [GRAY, COLOR], ids=str)
def test_arrays_of_every_allowed_shape_are_read(shape: tuple[int, ...], spec: ImageSpec) -> None:
    array = np.full(shape, 255, np.uint8)
    array.reshape(*array.shape[:2], -1)[: len(array) // 2, :, :3] = 0
    found = from_array(array, spec)
    assert isinstance(found, np.ndarray)
    assert found.shape == spec.shape
    assert (found[0].max(), found[-1].min()) == (0, 255)


def test_an_array_of_one_color_is_blank() -> None:
    assert from_array(np.full((4, 4, 3), 7, np.uint8), COLOR) == BLANK


def test_an_array_and_its_png_give_the_same_pixels() -> None:
    array = np.random.default_rng(1).integers(0, 256, (30, 20, 4), dtype=np.uint8)
    assert np.array_equal(from_array(array, COLOR), read(encode(Image.fromarray(array), "PNG"), COLOR))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4), np.int64),
        np.zeros(16, np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 4), np.uint8)[:, :, :2],
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_other_arrays_are_refused_with_their_shape(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=str(array.shape).replace("(", r"\(").replace(")", r"\)")):
        from_array(array, GRAY)


SEEDS = [encode(NOISE.resize((9, 7)), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]
SIGNATURES = [b"", *(data[:8] for data in SEEDS), b"II*\0", b"MM\0*", b"P5\n", b"P6 9 9 255\n", b"\0\0\1\0", b"8BPS"]


@given(st.sampled_from(SIGNATURES), st.binary(max_size=400))
@settings(deadline=None, max_examples=200)
@pytest.mark.filterwarnings("ignore")
def test_no_bytes_at_all_make_decoding_raise(start: bytes, rest: bytes) -> None:
    found = decode(start + rest, GRAY)
    assert found.reason if isinstance(found, Unreadable) else found.shape == GRAY.shape


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6))
@settings(deadline=None, max_examples=300)
@pytest.mark.filterwarnings("ignore")
def test_no_damage_to_an_image_makes_decoding_raise(data: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(data)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    for spec in (GRAY, COLOR):
        found = decode(bytes(damaged), spec)
        assert found.reason if isinstance(found, Unreadable) else found.shape == spec.shape


def test_the_usual_limit_on_pixels_is_sixteen_million() -> None:
    assert decoder.MAX_PIXELS == 16_000_000


def test_a_look_tells_the_size_a_picture_is_seen_in_and_whether_it_is_in_color() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (40, 120), np.uint8)
    red = np.zeros((40, 120, 3), np.uint8)
    red[:, :4, 0] = 255  # a thirtieth of it
    white = np.zeros_like(red)
    white[:, :4] = 255
    for array, colored in ((gray, False), (np.stack([gray] * 3, 2), False), (red, True), (white, False)):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")
        found = decoder.inspect(stream.getvalue())
        assert found == decoder.Appearance(array.shape[1], 40, colored)
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(gray).save(stream, "JPEG", exif=exif)
    assert decoder.inspect(stream.getvalue()) == decoder.Appearance(40, 120, False)
    assert decoder.inspect(b"broken") == decoder.Unreadable(
        "not_an_image", "these bytes begin no PNG, JPEG, GIF, BMP, WebP, TIFF or PNM file"
    )
    assert decoder.inspect(stream.getvalue(), max_pixels=100).reason == "too_large"  # type: ignore[union-attr]
