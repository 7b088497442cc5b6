"""Metadata that cannot be parsed hides no picture, whatever the format."""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from captcha_ray.images.decoder import Unreadable, decode
from captcha_ray.images.spec import ImageSpec

SPEC = ImageSpec(height=12, width=40)


def drawn() -> npt.NDArray[np.uint8]:
    pixels = np.full((12, 40), 230, np.uint8)
    pixels[3:9, 4:36:5] = 20
    return pixels


def saved(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(drawn()).save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def with_entry(data: bytes, tag: int, kind: int, count: int, value: int) -> bytes:
    """Change an entry of a TIFF's first directory, which must be there."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack(f"{order}I", data[4:8])
    (number,) = struct.unpack(f"{order}H", data[start : start + 2])
    for at in range(start + 2, start + 2 + 12 * number, 12):
        if struct.unpack(f"{order}H", data[at : at + 2])[0] == tag:
            return data[:at] + struct.pack(f"{order}HHII", tag, kind, count, value) + data[at + 12 :]
    raise AssertionError(f"no tag {tag}")


@pytest.mark.parametrize("tag", [269, 270, 271, 272, 305, 306, 315, 700])
@pytest.mark.parametrize(
    ("kind", "count", "value"), [(2, 60, 10**8), (3, 4, 10**9), (4, 1, 7), (8, 1, 2**32 - 1), (99, 5, 3)]
)
def test_a_tiff_is_read_without_tags_that_cannot_be(tag: int, kind: int, count: int, value: int) -> None:
    text = "a description that is longer than four bytes"
    data = saved("TIFF", tiffinfo={tag: text.encode() if tag == 700 else text})
    found = decode(with_entry(data, tag, kind, count, value), SPEC)
    np.testing.assert_array_equal(found, drawn()[..., None])


def test_the_orientation_of_a_tiff_is_kept_where_it_can_be_read() -> None:
    tall = Image.fromarray(drawn()).transpose(Image.Transpose.ROTATE_90)
    file = io.BytesIO()
    tall.save(file, "TIFF", tiffinfo={274: 6, 270: "a description that is longer than four bytes"})
    data = with_entry(file.getvalue(), 270, 2, 60, 10**8)
    np.testing.assert_array_equal(decode(data, SPEC), drawn()[..., None])
    lost = decode(with_entry(data, 274, 3, 4, 10**9), ImageSpec(height=40, width=12))
    np.testing.assert_array_equal(lost, np.asarray(tall)[..., None])


@pytest.mark.parametrize("block", [b"!\xff\x0bNETSCAPE2.0\0", b"!\xfe\x05hello\0", b"!\xff\x0bXMP DataXMP\x03abc\0"])
def test_a_gif_is_read_without_what_applications_have_added(block: bytes) -> None:
    data = saved("GIF")
    at = 13 + 3 * (2 << (data[10] & 7))
    changed = data[:at] + block + data[at:]
    np.testing.assert_array_equal(decode(changed, SPEC), decode(data, SPEC))


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "JPEG"])
def test_a_file_whose_first_half_alone_is_there_has_a_reason(kind: str) -> None:
    data = saved(kind)
    for length in range(0, len(data) // 2, 7):
        assert isinstance(decode(data[:length], SPEC), Unreadable), length


def test_a_png_whose_text_is_damaged_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "hello")
    Image.fromarray(drawn()).transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif, pnginfo=info)
    data = file.getvalue().replace(b"Comment\0hello", b"Comment\0hellO")  # its checksum is wrong now
    np.testing.assert_array_equal(decode(data, SPEC), drawn()[..., None])


def test_a_jpeg_with_a_damaged_segment_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(drawn()).transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", exif=exif, quality=95)
    whole = file.getvalue()
    at = 2
    while whole[at + 1] in (0xE0, 0xE1):
        at += 2 + int.from_bytes(whole[at + 2 : at + 4], "big")
    segment = b"Photoshop 3.0\x008BIM\x04\x04"  # ends before the length of the resource's name
    damaged = whole[:at] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + whole[at:]
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(damaged))
    np.testing.assert_array_equal(decode(damaged, SPEC), decode(whole, SPEC))


def gray_with_alpha(levels: npt.NDArray[np.uint16], alpha: int = 65535) -> bytes:
    """Return a PNG of gray with alpha, 16 bits a sample."""
    rows = np.dstack([levels, np.full_like(levels, alpha)]).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 16, 4, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_gray_with_alpha_of_16_bits_that_uses_8_of_them_is_seen() -> None:
    np.testing.assert_array_equal(decode(gray_with_alpha(drawn().astype(np.uint16)), SPEC), drawn()[..., None])
    high = decode(gray_with_alpha(drawn().astype(np.uint16) * 257), SPEC)
    np.testing.assert_array_equal(high, drawn()[..., None])


@pytest.mark.parametrize(
    ("dtype", "scale", "odd"),
    [("f4", 1 / 255, -9999), ("f4", 1, -3.4e38), ("i4", 1, -(2**31)), ("u2", 1, 65535), ("i4", 1, 2**31 - 1)],
)
@pytest.mark.parametrize("frame", [slice(0, 1), slice(0, 3), np.array([0, -1])])
def test_a_frame_of_no_data_leaves_the_text_its_contrast(dtype: str, scale: float, odd: float, frame: object) -> None:
    samples = (drawn() * scale).astype(dtype)
    samples[frame] = odd  # type: ignore[index]
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "TIFF")
    found = decode(file.getvalue(), SPEC)
    assert isinstance(found, np.ndarray)
    inside = found[3:9, :, 0]
    assert int(inside.max()) - int(inside.min()) > 200


def test_a_value_for_no_data_within_the_picture_leaves_the_text_its_contrast() -> None:
    samples = drawn().astype("f4")
    samples[5, ::7] = -9999
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "TIFF")
    found = decode(file.getvalue(), SPEC)
    assert isinstance(found, np.ndarray)
    assert int(found[3, :, 0].max()) - int(found[3, :, 0].min()) > 200
