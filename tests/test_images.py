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

from captcha_ray import images
from captcha_ray.image_spec import ImageSpec
from captcha_ray.images import Unreadable, decode, from_array, otsu_threshold, prepare

GRAY = ImageSpec(height=4, width=4)
COLOR = ImageSpec(height=4, width=4, channels=3)
ORANGE = (200, 100, 50)  # gray: (299 * 200 + 587 * 100 + 114 * 50) / 1000 = 124.2
HALF_BLACK = (0, 0, 0, 128)  # over white: 255 * (1 - 128 / 255) = 127


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    buffer = io.BytesIO()
    image.save(buffer, kind, **{**lossless.get(kind, {}), **options})
    return buffer.getvalue()


def flat(mode: str, color: object) -> Image.Image:
    return Image.new(mode, (4, 4), color)  # type: ignore[arg-type]


def palette(transparent: bool = False) -> Image.Image:
    image = flat("P", 1)
    image.putpalette([0, 0, 0, *ORANGE])
    if transparent:
        image.info["transparency"] = 1
    return image


def read(data: bytes, spec: ImageSpec, **options: int) -> np.ndarray:
    found = decode(data, spec, **options)
    assert isinstance(found, np.ndarray), found
    assert (found.shape, found.dtype) == (spec.shape, np.uint8)
    return found


CASES: dict[str, tuple[bytes, tuple[int, int, int], int]] = {}
"""name: (bytes, RGB expected everywhere, tolerance)."""


def _case(kind: str, image: Image.Image, rgb: tuple[int, int, int], tolerance: int = 0, **options: object) -> None:
    what = image.mode + (" with a transparency key" if options or "transparency" in image.info else "")
    CASES[f"{what} in {kind}"] = (encode(image, kind, **options), rgb, tolerance)


for _kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG"):
    _case(_kind, flat("1", 1), (255, 255, 255))
    _case(_kind, flat("L", 77), (77, 77, 77))
    _case(_kind, flat("RGB", ORANGE), ORANGE, 1 if _kind == "JPEG" else 0)
for _kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP"):
    _case(_kind, palette(), ORANGE)
for _kind in ("PNG", "TIFF", "WEBP"):
    _case(_kind, flat("LA", (0, 128)), (127, 127, 127))
    _case(_kind, flat("RGBA", HALF_BLACK), (127, 127, 127))
    _case(_kind, flat("RGBA", (*ORANGE, 255)).convert("RGBA"), ORANGE)
for _kind in ("TIFF", "JPEG"):
    _case(_kind, flat("CMYK", (55, 155, 205, 0)), ORANGE, 1 if _kind == "JPEG" else 0)
    _case(_kind, flat("YCbCr", (77, 128, 128)), (77, 77, 77))
for _kind in ("PNG", "TIFF"):
    _case(_kind, flat("I;16", 0x4D22), (0x4D, 0x4D, 0x4D))
_case("TIFF", flat("I", 0x4D22), (0x4D, 0x4D, 0x4D))
_case("TIFF", flat("F", 77.9), (77, 77, 77))
_case("TIFF", flat("I;16B", 0x4D22), (0x4D, 0x4D, 0x4D))
_case("PPM", flat("I", 0x4D22), (0x4D, 0x4D, 0x4D))
_case("GIF", palette(transparent=True), (255, 255, 255))
_case("PNG", palette(transparent=True), (255, 255, 255))
_case("PNG", flat("L", 77), (255, 255, 255), transparency=77)
_case("PNG", flat("RGB", ORANGE), (255, 255, 255), transparency=ORANGE)
_case("PNG", flat("1", 0), (255, 255, 255), transparency=0)
_case("PNG", palette(), (227, 177, 152), transparency=bytes([0, 128]))  # 200 * 128 / 255 + 127 = 227.4


@pytest.mark.parametrize("name", CASES)
def test_every_mode_in_every_format_becomes_the_pixels_a_viewer_shows(name: str) -> None:
    data, rgb, tolerance = CASES[name]
    found = read(data, COLOR).astype(int)
    assert np.abs(found - rgb).max() <= tolerance
    gray = (299 * rgb[0] + 587 * rgb[1] + 114 * rgb[2]) / 1000
    assert np.abs(read(data, GRAY).astype(int) - gray).max() <= 1 + tolerance


PREPARED = [
    (flat("PA", (1, 128)), 127),
    (flat("RGBa", HALF_BLACK), 127),
    (flat("HSV", (0, 0, 77)), 77),
    (flat("RGBX", (77, 77, 77, 0)), 77),
    (flat("I", -5), 0),
    (flat("I", 2**31 - 1), 255),
    (flat("I;16", 65535), 255),
    (flat("F", 300.0), 255),
    (flat("F", -3.0), 0),
]


@pytest.mark.parametrize(("image", "gray"), PREPARED, ids=lambda x: getattr(x, "mode", x))
def test_modes_that_few_formats_hold_are_read_too(image: Image.Image, gray: int) -> None:
    if image.mode == "PA":
        image.putpalette([0, 0, 0, 0, 0, 0])
    assert set(prepare(image, GRAY).ravel()) == {gray}
    assert set(prepare(image, COLOR).ravel()) == {gray}


def test_transparent_pixels_are_laid_over_white() -> None:
    image = Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8).repeat(2, 1).repeat(4, 0))
    assert read(encode(image, "PNG"), GRAY)[:, :, 0].tolist() == [[255, 255, 9, 9]] * 4


def test_of_an_animation_the_first_frame_is_read() -> None:
    data = encode(flat("L", 0), "GIF", save_all=True, append_images=[flat("L", 255)])
    assert set(read(data, GRAY).ravel()) == {0}


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


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


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


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8))


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
    """A whole, valid, all-black 1-bit PNG of that size: a few hundred KB at the most."""
    packer = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BOMB_CHECK = """
import resource, sys
from captcha_ray.image_spec import ImageSpec
from captcha_ray.images import decode
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
    assert read(bomb(2000, 2000), GRAY, max_pixels=4_000_000).tolist() == np.zeros(GRAY.shape, int).tolist()


@pytest.mark.parametrize("size", [(4001, 4000), (10_000, 10_000)])
def test_the_limit_holds_below_and_above_pillows_own(size: tuple[int, int]) -> None:
    found = decode(bomb(*size), GRAY)
    assert isinstance(found, Unreadable)
    assert found.reason == "too_large"


def test_otsu_splits_a_histogram_worked_by_hand() -> None:
    # Levels 10, 20, 200, 210 with 2, 1, 1, 4 pixels, mean 138.75. Between-class variance, splitting after
    # 10: 2*6*(10-181.67)^2/64 = 5526; after 20: 3*5*(13.33-206...)^2 = larger; after 200: 4*4*(60-210)^2/64 = 5625.
    # After 20: dark mean 13.33, light mean (200+840)/5 = 208; 15*(194.67)^2/64 = 8882, the largest.
    levels = np.array([10, 10, 20, 200, 210, 210, 210, 210], np.uint8).reshape(2, 4, 1)
    assert otsu_threshold(levels) == 20


def test_otsu_of_two_levels_takes_the_lower_as_dark() -> None:
    spec = ImageSpec(height=4, width=4, binarize=True)
    array = np.array([[100, 100, 101, 101]] * 4, np.uint8)
    assert from_array(array, spec)[:, :, 0].tolist() == [[0, 0, 255, 255]] * 4


@pytest.mark.parametrize("level", [0, 130, 255])
def test_a_flat_image_has_no_light_pixels(level: int) -> None:
    assert otsu_threshold(np.full((4, 4, 1), level, np.uint8)) == level
    assert set(from_array(np.full((4, 4), level, np.uint8), ImageSpec(height=4, width=4, binarize=True)).ravel()) == {0}


@given(st.lists(st.integers(0, 255), min_size=16, max_size=16))
@settings(deadline=None)
def test_otsu_has_no_better_threshold(levels: list[int]) -> None:
    pixels = np.array(levels, np.uint8).reshape(4, 4, 1)

    def within(threshold: int) -> float:
        classes = [pixels[pixels <= threshold], pixels[pixels > threshold]]
        return sum(float(((c - c.mean()) ** 2).sum()) for c in classes if c.size)

    best = min(within(t) for t in range(256))
    assert within(otsu_threshold(pixels)) == pytest.approx(best, abs=1e-6)


def test_the_median_filter_removes_a_lone_speck_and_keeps_an_edge() -> None:
    array = np.full((8, 8), 255, np.uint8)
    array[:, 4:] = 0
    array[3, 1] = 0
    clean = np.full((8, 8), 255, np.uint8)
    clean[:, 4:] = 0
    assert np.array_equal(from_array(array, ImageSpec(height=8, width=8, denoise=3))[:, :, 0], clean)
    assert np.array_equal(from_array(array, ImageSpec(height=8, width=8))[:, :, 0], array)


def test_the_median_filter_works_on_each_color() -> None:
    array = np.full((8, 8, 3), 200, np.uint8)
    array[4, 4] = (0, 255, 0)
    assert set(from_array(array, ImageSpec(height=8, width=8, channels=3, denoise=3)).ravel()) == {200}


def test_denoising_comes_before_resizing() -> None:
    array = np.full((8, 8), 255, np.uint8)
    array[3, 3] = 0
    assert set(from_array(array, ImageSpec(height=4, width=4, denoise=3)).ravel()) == {255}


def test_halving_averages_so_that_flat_halves_stay_flat() -> None:
    array = np.zeros((16, 32), np.uint8)
    array[:, 16:] = 200
    found = from_array(array, ImageSpec(height=8, width=16))[:, :, 0]
    assert set(found[:, :7].ravel()) == {0}
    assert set(found[:, 9:].ravel()) == {200}
    assert np.array_equal(found, found[:1].repeat(8, 0))


def test_an_image_of_the_right_size_keeps_every_pixel() -> None:
    array = np.random.default_rng(0).integers(0, 256, (60, 18, 3), dtype=np.uint8)
    spec = ImageSpec(height=60, width=18, channels=3)
    assert np.array_equal(read(encode(Image.fromarray(array), "PNG"), spec), array)


def test_gray_becomes_three_equal_colors_and_colors_become_their_luma() -> None:
    array = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    assert np.array_equal(from_array(array, COLOR), np.stack([array] * 3, 2))
    assert set(from_array(np.full((4, 4, 3), ORANGE, np.uint8), GRAY).ravel()) == {124}


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 3), (4, 4, 4), (9, 5), (1, 1, 1), (1, 700, 3)])
@pytest.mark.parametrize("spec", [GRAY, COLOR], ids=str)
def test_arrays_of_every_allowed_shape_are_read(shape: tuple[int, ...], spec: ImageSpec) -> None:
    found = from_array(np.full(shape, 255, np.uint8), spec)
    assert found.shape == spec.shape
    assert set(found.ravel()) == {255}


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
    assert images.MAX_PIXELS == 16_000_000


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [(24, 16, True), (48, 8, True), (49, 8, False), (12, 32, True), (12, 33, False), (600, 400, True), (1, 1, True)],
)
def test_an_image_of_another_shape_than_the_network_reads_is_not_stretched_beyond_a_factor(
    width: int, height: int, fits: bool
) -> None:
    """24x16 is 3:2; four times as wide or as high is 6:1 or 3:8."""
    spec, data = ImageSpec(height=16, width=24), encode(Image.new("L", (width, height)), "PNG")
    found = decode(data, spec, max_stretch=4.0)
    if fits:
        assert isinstance(found, np.ndarray)
    else:
        detail = f"{width}x{height} pixels do not fit 24x16"
        assert found == Unreadable("wrong_aspect", detail)
        assert isinstance(decode(data, spec), np.ndarray), "without a factor any shape is read"


def test_an_image_of_the_wrong_shape_is_not_decoded_and_one_too_large_is_called_that() -> None:
    data = encode(Image.new("L", (200, 10)), "PNG")
    assert decode(data[:60], GRAY, max_stretch=2.0) == Unreadable("wrong_aspect", "200x10 pixels do not fit 4x4")
    found = decode(data, GRAY, max_pixels=1999, max_stretch=2.0)
    assert found == Unreadable("too_large", "200x10 pixels are more than 1999")


def test_a_look_tells_the_size_a_picture_is_seen_in_and_whether_it_is_in_color() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (40, 120), np.uint8)
    red = np.zeros((40, 120, 3), np.uint8)
    red[:, :4, 0] = 255  # a thirtieth of it
    for array, colored in ((gray, False), (np.stack([gray] * 3, 2), False), (red, True), (red[:, 4:], False)):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")
        found = images.inspect(stream.getvalue())
        assert found == images.Appearance(array.shape[1], 40, colored)
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(gray).save(stream, "JPEG", exif=exif)
    assert images.inspect(stream.getvalue()) == images.Appearance(40, 120, False)
    assert images.inspect(b"broken") == images.Unreadable(
        "not_an_image", "these bytes begin no PNG, JPEG, GIF, BMP, WebP, TIFF or PNM file"
    )
    assert images.inspect(stream.getvalue(), max_pixels=100).reason == "too_large"  # type: ignore[union-attr]
