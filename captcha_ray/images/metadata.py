"""Strip from image files what their pixels do not need: metadata that cannot be parsed must not hide a picture."""

import struct
from collections.abc import Callable

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

JPEG_SIGNATURE, START_OF_SCAN = b"\xff\xd8\xff", 0xDA

SIGNATURES = {PNG_SIGNATURE: "PNG", JPEG_SIGNATURE: "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"GIF8": "GIF"}
"""Name the kind of a file by its first bytes, where Pillow cannot open it."""

PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
"""Chunks of a PNG file without which its pixels would not be the same."""

PIXEL_TAGS = {
    254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 284, 290, 291, 292, 293, 317, 320, 322, 323,
    324, 325, 332, 338, 339, 340, 341, 347, 512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532,
}  # fmt: skip
"""Tags of a TIFF file without which its pixels would not be the same ("TIFF Revision 6.0", 1992)."""

ORIENTATION, SHORT = 274, 3
"""Tag of a TIFF that turns it, and the type of its value, which may be damaged like others."""

EXTENSION, IMAGE, GRAPHIC_CONTROL = 0x21, 0x2C, 0xF9
"""First bytes of a GIF's blocks, and the label of the extension that its pixels need ("GIF89a", 1990)."""


def _png_without_metadata(data: bytes, keep_exif: bool) -> bytes:
    """Return a PNG file with the chunks alone that its pixels need."""
    kept, at = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        end = at + 12 + length
        if kind in PIXEL_CHUNKS or (keep_exif and kind == b"eXIf"):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _jpeg_without_metadata(data: bytes, keep_exif: bool) -> bytes:
    """Return a JPEG file without comments and application segments, but for a whole Adobe's, which tells its colors."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != START_OF_SCAN:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        is_application = 0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE
        is_adobe = data[at + 4 : at + 9] == b"Adobe" and end - at >= 16
        is_exif = data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0"
        if not is_application or is_adobe or (keep_exif and is_exif):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _tiff_without_metadata(data: bytes, keep_exif: bool) -> bytes:
    """Return a TIFF file whose only directory, at its end, is the first one with the tags alone that pixels need."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack(f"{order}I", data[4:8])
    (count,) = struct.unpack(f"{order}H", data[start : start + 2])
    entries = [data[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]

    def is_needed(entry: bytes) -> bool:
        tag, kind, number = struct.unpack(f"{order}HHI", entry[:8])
        return tag in PIXEL_TAGS or (keep_exif and tag == ORIENTATION and (kind, number) == (SHORT, 1))

    kept = [entry for entry in entries if len(entry) == 12 and is_needed(entry)]
    data += b"\0" * (len(data) % 2)
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + b"\0\0\0\0"
    return data[:4] + struct.pack(f"{order}I", len(data)) + data[8:] + directory


def _gif_without_metadata(data: bytes, _: bool) -> bytes:
    """Return a GIF file without comments, texts and what applications have added, such as how often it repeats."""
    at = 13 + _size_of_palette(data[10])
    kept = [data[:at]]
    while at < len(data) and data[at] in (EXTENSION, IMAGE):
        end = at + 2 if data[at] == EXTENSION else at + 11 + _size_of_palette(data[at + 9])
        while data[end]:  # sub-blocks, each after its length
            end += 1 + data[end]
        end += 1
        if data[at] == IMAGE or data[at + 1] == GRAPHIC_CONTROL:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _size_of_palette(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


STRIPPERS: dict[bytes, Callable[[bytes, bool], bytes]] = {
    PNG_SIGNATURE: _png_without_metadata,
    JPEG_SIGNATURE: _jpeg_without_metadata,
    b"II*\0": _tiff_without_metadata,
    b"MM\0*": _tiff_without_metadata,
    b"GIF8": _gif_without_metadata,
}
"""Strip the metadata from files that begin so, all but the orientation where the second argument says to keep it.

Raise struct.error or IndexError for a file that is cut off.
"""
