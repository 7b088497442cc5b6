"""Tell how a table of text is written, for tables of labels and for listings of images."""

import re

PATH_NAMES = ("path", "file_name", "filename", "file", "image", "uri", "url")
"""Columns, in lower case, that may name the image, the first that is there; Hugging Face's image folders and the
tables of common OCR tools call it so.
"""

DELIMITERS = (",", ";", "\t", "|")
"""Separate the fields of a line; the one that splits the header into most fields is taken."""

EXCELS_FIRST_LINE = re.compile("sep=.", re.IGNORECASE)
"""Match the line by which a table tells Excel its delimiter."""


def encoding_of(start: bytes) -> str:
    """Return the name of the encoding of a text that begins so: UTF-8, or one of UTF-16 and UTF-32."""
    if start[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "utf-32"
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if start[1:40:2].count(0) > len(start[1:40:2]) / 2:
        return "utf-16-le"
    return "utf-16-be" if start[:40:2].count(0) > len(start[:40:2]) / 2 else "utf-8-sig"
