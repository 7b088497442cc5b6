"""See the text whatever an image's samples mean, or call the image blank."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captcha_ray.images.decoder import BLANK, Unreadable, decode, inspect
from captcha_ray.images.spec import ImageSpec
from tests.support.drawn_text import MASK, SIZE, likeness, with_alpha
from tests.support.image_files import MODES, encode

GRAY = ImageSpec(height=16, width=48)
COLOR = ImageSpec(height=16, width=48, channels=3)


def legible(data: bytes) -> bool:
    """Return whether the text can be made out in gray and in color."""
    gray, color = decode(data, GRAY), decode(data, COLOR)
    assert isinstance(gray, np.ndarray), gray
    assert isinstance(color, np.ndarray), color
    contrasts = [int(np.ptp(gray)), int(np.ptp(color, axis=(0, 1)).max())]
    return min(contrasts) >= 16 and likeness(gray[:, :, 0]) > 0.9 and max(map(likeness, color.transpose(2, 0, 1))) > 0.9


def likeness_of(data: bytes) -> float:
    pixels = decode(data, GRAY)
    assert isinstance(pixels, np.ndarray), pixels
    return likeness(pixels[:, :, 0])


def samples(low: float, high: float, dtype: str) -> Image.Image:
    values = high - MASK * (high - low)
    return Image.fromarray((values if dtype == "float32" else values.round()).astype(dtype))


@pytest.mark.parametrize("ink", [(255, 255, 255), (250, 250, 250), (0, 0, 0), (128, 128, 128), (200, 0, 0)])
@pytest.mark.parametrize("beneath", [(0, 0, 0), (255, 255, 255)])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_ink_of_any_color_on_a_transparent_ground_is_seen(
    kind: str, beneath: tuple[int, int, int], ink: tuple[int, int, int]
) -> None:
    assert legible(encode(with_alpha(ink, beneath), kind, **({"lossless": True} if kind == "WEBP" else {})))


def test_ink_that_shows_over_white_stays_on_white() -> None:
    pixels = decode(encode(with_alpha((200, 200, 200)), "PNG"), GRAY)
    assert isinstance(pixels, np.ndarray)
    assert pixels.max() == 255
    assert pixels[0, 0] == 255


@pytest.mark.parametrize("alpha", [0, 1, 3])
def test_what_an_alpha_of_almost_nothing_hides_is_seen(alpha: int) -> None:
    gray = (255 - MASK * 255).astype(np.uint8)
    assert legible(encode(Image.fromarray(np.dstack([gray, gray, gray, np.full_like(gray, alpha)])), "PNG"))


@pytest.mark.parametrize(
    ("low", "high", "dtype", "kind"),
    [
        (0, 1, "float32", "TIFF"), (-1, 1, "float32", "TIFF"), (0, 255, "float32", "TIFF"), (0, 1e6, "float32", "TIFF"),
        (0, 255, "int32", "TIFF"), (0, 65_535, "int32", "TIFF"), (-500, 500, "int32", "TIFF"),
        (0, 2**31 - 129, "int32", "TIFF"), (0, 1, "int32", "TIFF"),
        (0, 255, "uint16", "PNG"), (0, 1023, "uint16", "PNG"), (0, 4095, "uint16", "PNG"), (0, 16_383, "uint16", "PNG"),
        (0, 65_535, "uint16", "PNG"), (60_000, 60_100, "uint16", "TIFF"), (0, 1, "uint16", "TIFF"),
        (0, 1, "uint8", "PNG"), (250, 255, "uint8", "BMP"), (0, 3, "uint8", "TIFF"),
    ],
)  # fmt: skip
def test_samples_of_any_range_are_seen(low: float, high: float, dtype: str, kind: str) -> None:
    assert legible(encode(samples(low, high, dtype), kind))


def test_a_few_odd_samples_do_not_hide_the_others() -> None:
    values = 1 - MASK
    values[0, 0], values[0, 1], values[1, 0] = 1e9, np.nan, -np.inf
    assert legible(encode(Image.fromarray(values), "TIFF"))


def test_one_hot_sample_does_not_hide_12_bits() -> None:
    values = (4095 - MASK * 4095).astype(np.uint16)
    values[0, 0] = 65_535
    assert likeness_of(encode(Image.fromarray(values), "PNG")) > 0.9


def test_a_speck_of_other_ink_does_not_hide_white_ink_on_a_transparent_ground() -> None:
    image = with_alpha((255, 255, 255))
    image.putpixel((0, 0), (0, 0, 0, 255))
    assert likeness_of(encode(image, "PNG")) > 0.9


def test_thin_text_on_a_white_card_stays_on_white() -> None:
    card = Image.new("RGBA", SIZE, (255, 255, 255, 255))
    for x in (0, 47):
        card.putpixel((x, 0), (0, 0, 0, 0))
    card.paste((0, 0, 0, 255), (20, 7, 24, 8))
    pixels = decode(encode(card, "PNG"), GRAY)
    assert isinstance(pixels, np.ndarray)
    assert (pixels[0, 0], pixels[7, 21], pixels[12, 2]) == (255, 0, 255)


def test_a_tiff_whose_zero_is_white_is_turned_around() -> None:
    text = (MASK * 65_535).astype(np.uint16)  # ink is the greatest value, which is black there
    pixels = decode(encode(Image.fromarray(text), "TIFF", tiffinfo={262: 0}), GRAY)
    assert isinstance(pixels, np.ndarray)
    assert (pixels[0, 0], pixels.min()) == (255, 0)


def test_signed_samples_keep_their_order() -> None:
    ink = np.where(MASK > 0.5, -100, 100).astype(np.int8).view(np.uint8)
    pixels = decode(encode(Image.fromarray(ink), "TIFF", tiffinfo={339: 2}), GRAY)
    assert isinstance(pixels, np.ndarray)
    assert (pixels[0, 0], pixels.min()) == (228, 28)


def test_a_file_of_a_kind_that_is_not_read_is_called_by_its_kind() -> None:
    found = decode(b"GIF8 and nothing that Pillow knows", GRAY)
    assert found == Unreadable("not_an_image", "these bytes begin a GIF file, but it is damaged or of a rare kind")


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 65_535, (0, 255)), (0x1000, 0x9FFF, (0x10, 0x9F))])
def test_samples_of_16_bits_with_contrast_keep_their_high_byte(low: int, high: int, expected: tuple[int, int]) -> None:
    pixels = decode(encode(samples(low, high, "uint16"), "PNG"), GRAY)
    assert isinstance(pixels, np.ndarray)
    assert (pixels.min(), pixels.max()) == expected


def test_colors_of_one_lightness_are_told_apart() -> None:
    red, green = np.array([200, 0, 0]), np.array([0, 102, 0])  # gray 60 both
    image = Image.fromarray((green + MASK[:, :, None] * (red - green)).round().astype(np.uint8))
    assert np.ptp(np.asarray(image.convert("L"))) < 16
    assert legible(encode(image, "PNG"))


def test_pale_colors_are_stretched_channel_by_channel() -> None:
    ground, ink = np.array([200, 100, 50]), np.array([206, 103, 44])
    assert legible(
        encode(Image.fromarray((ground + MASK[:, :, None] * (ink - ground)).round().astype(np.uint8)), "PNG")
    )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_that_shows_something_is_taken(kind: str) -> None:
    white, text = Image.new("L", SIZE, 255), Image.fromarray((255 - MASK * 255).astype(np.uint8))
    other = Image.fromarray((MASK * 255).astype(np.uint8)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert legible(encode(white, kind, save_all=True, append_images=[white, text, other]))
    assert not legible(encode(white, kind, save_all=True, append_images=[other, text]))


BLANKS = {
    "white": Image.new("L", SIZE, 255),
    "one color": Image.new("RGB", SIZE, (200, 100, 50)),
    "transparent": Image.new("RGBA", SIZE, (0, 0, 0, 0)),
    "half transparent": Image.new("RGBA", SIZE, (9, 9, 9, 128)),
    "16 bits": Image.fromarray(np.full(SIZE[::-1], 300, np.uint16)),
    "floats": Image.fromarray(np.full(SIZE[::-1], 0.5, np.float32)),
    "no number": Image.fromarray(np.full(SIZE[::-1], np.nan, np.float32)),
    "one bit": Image.new("1", SIZE, 1),
}


@pytest.mark.parametrize("name", BLANKS)
def test_where_nothing_is_to_be_seen_the_image_is_called_blank(name: str) -> None:
    data = encode(BLANKS[name], "TIFF")
    assert decode(data, GRAY) == decode(data, COLOR) == inspect(data) == BLANK


def test_an_animation_of_white_frames_is_blank() -> None:
    frames = [Image.new("L", SIZE, value) for value in (255, 254, 253)]
    assert decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), GRAY) == BLANK


# ----------------------------------------------------------------------------------------------------------- metadata


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data) if checksum is None else checksum)
    )


TEXT = encode(samples(0, 255, "uint8"), "PNG")
BAD_CHUNKS = {
    "a wrong checksum": chunk(b"tEXt", b"Comment\0x", checksum=1),
    "an orientation of letters": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02six\0\0\0\0\0"),
    "garbage": chunk(b"eXIf", b"\xff" * 40),
    "3 MB of text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000)),
    "a broken profile": chunk(b"iCCP", b"name\0\0" + b"nothing compressed"),
    "text that is not compressed": chunk(b"iTXt", b"Comment\0\1\0\0\0nothing compressed"),
    "a size of no number": chunk(b"pHYs", b"\0"),
}  # fmt: skip


@pytest.mark.parametrize("place", [33, -12], ids=["before the pixels", "behind the pixels"])
@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_pixels_count_whatever_the_metadata_beside_them(name: str, place: int) -> None:
    data = TEXT[:place] + BAD_CHUNKS[name] + TEXT[place:]
    assert np.array_equal(decode(data, GRAY), decode(TEXT, GRAY))  # type: ignore[arg-type]
    assert inspect(data) == inspect(TEXT)


ODD_TYPES = {
    1: b"\x06\0\0\0",
    2: b"6\0\0\0",
    5: b"\0\0\0\x06",
    7: b"\x06\0\0\0",
    9: b"\0\0\0\x06",
    12: b"\0\0\0\x26",
    13: b"\0\0\0\x06",
}


@pytest.mark.filterwarnings("ignore")  # Pillow warns of metadata that it cannot parse
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("of_type", ODD_TYPES)
def test_an_orientation_of_an_odd_type_refuses_no_image(kind: str, of_type: int) -> None:
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12" + struct.pack(">HI", of_type, 1) + ODD_TYPES[of_type] + b"\0\0\0\0"
    data = encode(samples(0, 255, "uint8"), kind, exif=b"Exif\0\0" + exif if kind == "JPEG" else exif)
    found = inspect(data)
    assert not isinstance(found, Unreadable), found
    assert sorted((found.width, found.height)) == [16, 48]
    spec = ImageSpec(height=found.height, width=found.width)
    assert isinstance(decode(data, spec, max_stretch=1.1), np.ndarray), "both say the same of its size"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_is_that_of_the_image_as_it_is_seen(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = samples(0, 255, "uint8")
    if orientation >= 5:
        stored = stored.transpose(Image.Transpose.ROTATE_90)
    data = encode(stored, kind, exif=exif)
    found = inspect(data)
    assert not isinstance(found, Unreadable), found
    assert (found.width, found.height) == SIZE
    assert isinstance(decode(data, GRAY, max_stretch=1.1), np.ndarray)
    turned = decode(data, ImageSpec(height=48, width=16), max_stretch=1.1)
    assert isinstance(turned, Unreadable)
    assert (turned.reason, turned.detail) == ("wrong_aspect", "48x16 pixels do not fit 16x48")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(MODES)), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8))
def test_no_damage_makes_a_look_raise(kind: str, changes: list[tuple[int, int]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encode(samples(0, 255, "uint8"), kind, **({} if kind in ("GIF", "BMP") else {"exif": exif})))
    for place, value in changes:
        data[place % len(data)] = value
    found = inspect(bytes(data))
    assert isinstance(found, Unreadable) or (found.width > 0 and found.height > 0)


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_black_images_of_every_mode_and_format_are_blank(kind: str, mode: str) -> None:
    assert decode(encode(Image.new(mode, SIZE), kind), GRAY) == BLANK


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_ink_on_a_ground_of_no_number_is_seen(hole: float) -> None:
    values = np.where(MASK > 0.5, 7.0, hole).astype(np.float32)
    assert likeness_of(encode(Image.fromarray(values), "TIFF")) > 0.8


def test_a_later_frame_of_another_size_is_not_decoded() -> None:
    text = Image.fromarray((255 - MASK * 255).astype(np.uint8))
    large = text.resize((4800, 1600))
    data = encode(Image.new("L", SIZE, 255), "TIFF", save_all=True, append_images=[large])
    assert decode(data, GRAY, max_pixels=10_000) == BLANK
    assert legible(encode(Image.new("L", SIZE, 255), "TIFF", save_all=True, append_images=[large, text]))


BAD_SEGMENTS = {
    "a short JFIF": b"\xff\xe0\x00\x07JFIF\0",
    "a short profile": b"\xff\xe2\x00\x0eICC_PROFILE\0",
    "a short Adobe": b"\xff\xee\x00\x08Adobe\0",
    "garbage for EXIF": b"\xff\xe1\x00\x0cExif\0\0\xff\xff\xff\xff",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BAD_SEGMENTS)
def test_pixels_of_a_jpeg_count_whatever_the_metadata_beside_them(name: str) -> None:
    plain = encode(samples(0, 255, "uint8"), "JPEG")
    found = decode(plain[:2] + BAD_SEGMENTS[name] + plain[2:], GRAY)
    assert np.array_equal(found, decode(plain, GRAY))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "exif", [b"\xff" * 40, b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03", b"II*\0\xff\xff\xff\xff", b"Exif\0\0"], ids=len
)
def test_a_webp_whose_exif_is_garbage_is_read_as_it_lies(exif: bytes) -> None:
    plain = encode(samples(0, 255, "uint8"), "WEBP", lossless=True)
    found = decode(encode(samples(0, 255, "uint8"), "WEBP", lossless=True, exif=exif), GRAY)
    assert np.array_equal(found, decode(plain, GRAY))  # type: ignore[arg-type]
