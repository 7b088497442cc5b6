"""Text of any mode, format, orientation and range is legible, to a measure and to a network, or called blank."""

import functools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captcha_ray.images.decoder import BLANK, Unreadable, decode
from captcha_ray.images.spec import ImageSpec
from captcha_ray.recognizer import Recognizer
from tests.support.drawn_text import LARGE, MASK, likeness, with_alpha
from tests.support.image_files import MODES, encode

GRAY = ImageSpec(height=16, width=48)

TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""Lay an upright image into its file as each orientation says."""

RANGES = {"I;16": [255, 1023, 65_535], "I": [1, 255, 65_535, 2**24], "F": [1, 255, 65_535]}

LEVELS = st.integers(0, 255) | st.sampled_from([0, 1, 253, 254, 255])

ANYTHING = st.tuples(
    st.sampled_from([(kind, mode) for kind, modes in MODES.items() for mode in modes]),
    st.sampled_from(list(TURNED)),
    st.tuples(LEVELS, LEVELS),
    st.integers(0, 3),
    st.booleans(),
)
"""Format and mode, orientation, levels of ink and ground, range of samples, whether the ground is transparent."""


Example = tuple[tuple[str, str], int, tuple[int, int], int, bool]


def drawn(text: np.ndarray, example: Example) -> tuple[bytes, int]:
    """Return a file of a text, and how many levels part ink from ground in it."""
    (kind, mode), orientation, (ink, ground), which, transparent = example
    values = ground + text * (ink - ground)
    if mode in RANGES:
        top = RANGES[mode][which % len(RANGES[mode])]
        stored = (values * (top / 255)).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
        image, distinct = Image.fromarray(stored), len(np.unique(stored))
    elif mode in ("RGBA", "LA") and transparent:
        image, distinct = with_alpha((ink, ink, ink), text=text).convert(mode), 256
    else:
        image = Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
        image, distinct = image.convert(mode, palette=Image.Palette.ADAPTIVE), abs(ink - ground)
    exif = Image.Exif()
    if kind in ("JPEG", "PNG", "WEBP", "TIFF") and mode not in RANGES:
        exif[0x0112] = orientation
        image = image if orientation == 1 else image.transpose(TURNED[orientation])
    return encode(image, kind, **({"exif": exif} if exif else {})), distinct


@settings(max_examples=1500, deadline=None)
@given(ANYTHING)
def test_text_is_legible_or_the_row_has_a_reason(example: Example) -> None:
    """Text of any gray on any other, in every mode and format, and ranges of samples, lying on any side."""
    (kind, mode), (data, distinct) = example[0], drawn(MASK, example)
    found = decode(data, GRAY, max_stretch=1.5)
    lossy = kind == "JPEG" or mode in ("1", "CMYK")
    if isinstance(found, Unreadable):
        assert found == BLANK
        assert distinct < 2 or lossy
    elif distinct > (24 if lossy else 4) and mode != "1":
        assert likeness(found[:, :, 0]) > 0.7
        assert np.ptp(found) >= 16


@functools.cache
def network() -> Recognizer:
    return Recognizer.load("builtin", num_threads=1, charset="0123456789", length=4)


@settings(max_examples=400, deadline=None)
@given(ANYTHING)
def test_a_network_recognizes_text_of_any_mode_format_and_range(example: Example) -> None:
    (kind, mode), (data, distinct) = example[0], drawn(LARGE, example)
    if distinct > (48 if kind == "JPEG" or mode == "CMYK" else 12) and mode != "1":
        assert network().predict(data).text == "8127"
