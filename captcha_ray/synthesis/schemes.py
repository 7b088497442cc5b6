"""Draw seeded synthetic corpora: `plan` says once what to draw, `render` draws it on any worker.

A picture depends on scheme, seed, index and text alone, not on the process or the order. The bytes are the same for the
same versions of captcha, numpy and Pillow (with its FreeType and zlib). Does not write files, does not know Ray or
torch.
"""

import contextlib
import functools
import io
import random
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Literal, NamedTuple

import captcha.image
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Scheme = Literal["digits", "text5", "lines4", "lines4-small", "bits5", "color-digits"]

CHARSETS: dict[Scheme, str] = {
    "digits": "0123456789",
    "text5": "2345678bcdefgmnpwxy",
    "lines4": "0123456789",
    "lines4-small": "0123456789",
    "bits5": "0123456789",
    "color-digits": "0123456789",
}
"""Characters of each scheme, sorted; those of text5 are the ones of Wilhelmy and Rosas (2013)."""

SIZES: dict[Scheme, tuple[int, int]] = {
    "digits": (18, 60),
    "text5": (200, 50),
    "lines4": (152, 42),
    "lines4-small": (70, 30),
    "bits5": (80, 25),
    "color-digits": (15, 30),
}
"""Width and height of each scheme in pixels."""

TEXT_LENGTHS: dict[Scheme, int] = {"text5": 5, "lines4": 4, "lines4-small": 4, "bits5": 5}
"""Characters per picture in schemes whose files are named by their text; the others have a folder per digit."""

LABEL_PATTERN = r"^([^-]+)"
"""Finds the label in the stem of a file named by its text, without the suffix of a repeated text."""

DIGIT_SUPPORT = (142, 695, 268, 289, 338, 290, 278, 321, 266, 536)
"""Images of 0 to 9 in the test set of the published project; `digits` and `color-digits` keep these proportions."""


class Planned(NamedTuple):
    """An image to draw: its path relative to the corpus, and its text."""

    path: str
    text: str


def plan(scheme: Scheme, seed: int, num_images: int) -> list[Planned]:
    """Return what to draw for indices 0 to num_images - 1. Paths are unique; the list's position is the index.

    digits, color-digits: `<digit>/<index>.png`, classes by `digit_counts` in seeded order. Others: `<text>.png`, or
    `<text>-<k>.png` if k earlier indices have the same text; text and path of an index do not depend on num_images.
    """
    rng = np.random.default_rng(seed)
    if scheme not in TEXT_LENGTHS:
        digits = rng.permutation(np.repeat(np.arange(len(DIGIT_SUPPORT)), digit_counts(num_images)))
        return [Planned(f"{digit}/{index:06d}.png", str(digit)) for index, digit in enumerate(digits.tolist())]
    characters = np.array(list(CHARSETS[scheme]))
    earlier: dict[str, int] = {}
    planned = []
    for row in characters[rng.integers(len(characters), size=(num_images, TEXT_LENGTHS[scheme]))].tolist():
        text = "".join(row)
        k = earlier.get(text, 0)
        earlier[text] = k + 1
        planned.append(Planned(f"{text}-{k}.png" if k else f"{text}.png", text))
    return planned


def digit_counts(num_images: int) -> npt.NDArray[np.int64]:
    """Return the images of each digit, int64 (10,): `DIGIT_SUPPORT` scaled to num_images by largest remainders.

    Ties go to the smaller digit. From 10 images on no digit is left out: the most frequent one gives one up.
    """
    support = np.array(DIGIT_SUPPORT, np.int64)
    counts, remainders = np.divmod(support * num_images, support.sum())
    counts[np.argsort(-remainders, kind="stable")[: num_images - counts.sum()]] += 1
    if num_images >= len(counts):
        for missing in np.flatnonzero(counts == 0):
            counts[counts.argmax()] -= 1
            counts[missing] = 1
    return counts


def render(scheme: Scheme, seed: int, index: int, text: str) -> bytes:
    """Return the PNG of one planned image.

    Gray ("L") for digits, opaque RGBA for text5 as the real ones are, black and white ("1") for bits5, else RGB.
    """
    rng = random.Random(f"{scheme} {seed} {index}")
    drawer = _drawer(scheme)
    pixels = drawer.draw(text, rng)
    pixels += drawer.noise * np.random.default_rng(rng.getrandbits(64)).standard_normal(pixels.shape, np.float32)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(drawer.mode, dither=Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, format="png", compress_level=1)
    return file.getvalue()


_LOCK = threading.Lock()


@contextlib.contextmanager
def seeded_captcha(rng: random.Random) -> Iterator[None]:
    """Let the captcha package draw from `rng` within the block; afterwards it draws from `secrets` again.

    The package has no seed: it calls randbelow, choice and randbits of the module that it imported as `secrets`. That
    name is replaced in captcha.image alone. Threads of a process take turns.
    """
    seeded = SimpleNamespace(randbelow=rng.randrange, choice=rng.choice, randbits=rng.getrandbits)
    with _LOCK:
        original = captcha.image.secrets  # type: ignore[attr-defined]
        captcha.image.secrets = seeded  # type: ignore[assignment, attr-defined]
        try:
            yield
        finally:
            captcha.image.secrets = original  # type: ignore[attr-defined]


class _Captcha(captcha.image.ImageCaptcha):
    """Ink of one scheme, white on black, as the package takes brightness for opacity and cannot draw dark text.

    paper: gray float32 (height, width), 0 to 255, that the ink darkens by `darkness` (fraction). noise: standard
    deviation in gray levels. num_dots: of one pixel's width. The text is shifted right by `left` pixels and either way
    by at most `jitter` (x, y).
    """

    word_space_probability = 1.0  # of no space: the package's name says the opposite
    darkness = 0.9
    paper: npt.NDArray[np.float32]
    noise: float
    mode: str
    left: int
    jitter: tuple[int, int]
    num_dots: int

    def draw(self, text: str, rng: random.Random) -> npt.NDArray[np.float32]:
        with seeded_captcha(rng):
            ink = self.generate_image(text, bg_color=(0, 0, 0), fg_color=(255, 255, 255)).convert("L")
        return self.paper * (1 - self.darkness / 255 * np.asarray(ink, np.float32))

    def create_captcha_image(
        self, chars: str, color: captcha.image.ColorTuple, background: captcha.image.ColorTuple
    ) -> Image.Image:
        image = super().create_captcha_image(chars, color, background)
        dx, dy = (_between(-most, most) for most in self.jitter)
        return image.transform(image.size, Image.Transform.AFFINE, (1, 0, -self.left - dx, 0, 1, -dy))

    def create_noise_dots(  # type: ignore[override]
        self, image: Image.Image, color: captcha.image.ColorTuple, width: int = 1
    ) -> Image.Image:
        return super().create_noise_dots(image, color, width, self.num_dots)


class _Text5(_Captcha):
    """One font at one size, one strike-through line, and paper that brightens to the right."""

    character_offset_dx = (0, 0)
    character_offset_dy = (0, 0)
    character_rotate = (-16, 16)
    character_warp_dx = (0.05, 0.25)
    character_warp_dy = (0.05, 0.2)
    word_offset_dx = 0.2
    noise = 6.0
    mode = "RGBA"
    left = 30
    jitter = (5, 3)
    num_dots = 12

    def __init__(self) -> None:
        width, height = SIZES["text5"]
        super().__init__(width, height, font_sizes=(36,))
        self.paper = np.tile(np.linspace(195, 250, width, dtype=np.float32), (height, 1))

    @staticmethod
    def create_noise_curve(image: Image.Image, color: captcha.image.ColorTuple) -> Image.Image:
        """Strike through from left to right, with two bends."""
        points = [(x, _between(12, 38)) for x in (20, _between(50, 80), _between(100, 140), 180)]
        ImageDraw.Draw(image).line(points, fill=color, width=3)
        return image


class _Digits(_Captcha):
    """One digit as cut out of a captcha, somewhere along the height."""

    character_offset_dx = (0, 0)
    character_offset_dy = (0, 0)
    character_rotate = (-12, 12)
    character_warp_dx = (0.05, 0.15)
    character_warp_dy = (0.05, 0.15)
    noise = 12.0
    mode = "L"
    left = 0
    jitter = (1, 10)
    num_dots = 8

    def __init__(self) -> None:
        width, height = SIZES["digits"]
        super().__init__(width, height, font_sizes=(24, 26))
        self.paper = np.full((height, width), 235, np.float32)

    @staticmethod
    def create_noise_curve(image: Image.Image, color: captcha.image.ColorTuple) -> Image.Image:
        """Draw nothing: a strike-through would make a 1, 4 or 7 of the narrow picture."""
        return image


def _between(low: int, high: int) -> int:
    """Draw a number from low to high, both included, as the package does; only within `seeded_captcha`."""
    drawn: int = captcha.image.secrets.randbelow(high - low + 1)  # type: ignore[attr-defined]
    return low + drawn


class _Plain:
    """Digits side by side, each turned and shifted on its own, under brighter dots and lines.

    Drawn without the captcha package, which has one color a picture. turn: most degrees either way. jitter: most pixels
    either way (x, y). noise: as in `_Captcha`.
    """

    mode = "RGB"
    font_size: int
    turn: float
    jitter: tuple[int, int]
    lines = (0, 0)  # at least and at most
    dots = 0
    noise: float

    def __init__(self, scheme: Scheme) -> None:
        self.size = SIZES[scheme]
        font = ImageFont.truetype(captcha.image.DEFAULT_FONTS[0], self.font_size)
        self.glyphs = {character: _glyph(character, font) for character in CHARSETS[scheme]}

    def draw(self, text: str, rng: random.Random) -> npt.NDArray[np.float32]:
        width, height = self.size
        image = Image.new("RGB", self.size, self.paper(rng))
        for position, character in enumerate(text):
            glyph = self.glyphs[character].rotate(rng.uniform(-self.turn, self.turn), Image.Resampling.BICUBIC)
            x, y = (round(rng.uniform(-most, most) - self.font_size / 2) for most in self.jitter)
            image.paste(self.ink(rng), (x + (2 * position + 1) * width // (2 * len(text)), y + height // 2), glyph)
        strokes = ImageDraw.Draw(image)
        for _ in range(rng.randint(*self.lines)):  # bright: one as dark as the digits makes a 7 of a 1
            ends = [(rng.uniform(*span) * width, rng.uniform(0.1, 0.9) * height) for span in ((0, 0.25), (0.75, 1))]
            strokes.line(ends, fill=_color(rng, (40, 100), (50, 70)))
        for _ in range(self.dots):
            x, y = rng.randrange(width), rng.randrange(height)
            strokes.rectangle((x, y, x + 1, y + 1), fill=self.ink(rng))
        return np.array(image, np.float32)

    def ink(self, rng: random.Random) -> str:
        return _color(rng, (60, 100), (18, 34))

    def paper(self, rng: random.Random) -> str:
        return _color(rng, (30, 80), (90, 96))


class _Lines4(_Plain):
    font_size = 34
    turn = 20
    jitter = (5, 6)
    lines = (2, 4)
    dots = 12
    noise = 4.0


class _Lines4Small(_Lines4):
    font_size = 23
    turn = 15
    jitter = (1, 4)
    dots = 6


class _Bits5(_Plain):
    """Black digits with clean edges, under black and white specks."""

    mode = "1"
    font_size = 20
    turn = 10
    jitter = (1, 3)
    noise = 85.0

    def draw(self, text: str, rng: random.Random) -> npt.NDArray[np.float32]:
        return 255 * (super().draw(text, rng) >= 128).astype(np.float32)

    def ink(self, rng: random.Random) -> str:
        return "black"

    def paper(self, rng: random.Random) -> str:
        return "white"


class _ColorDigits(_Plain):
    font_size = 22
    turn = 12
    jitter = (1, 5)
    dots = 2
    noise = 20.0


def _color(rng: random.Random, saturation: tuple[int, int], lightness: tuple[int, int]) -> str:
    """Draw a color of any hue for Pillow; ranges in percent, both ends included."""
    return f"hsl({rng.randrange(360)}, {rng.randint(*saturation)}%, {rng.randint(*lightness)}%)"


def _glyph(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return the opacity ("L") of a character in a square that holds it however it is turned."""
    size = round(font.size)
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).text((size / 2, size / 2), character, fill=255, font=font, anchor="mm")
    return image


@functools.cache
def _drawer(scheme: Scheme) -> _Captcha | _Plain:
    """Return the scheme's drawer, one per process, as loading its font takes longer than drawing."""
    match scheme:
        case "digits":
            return _Digits()
        case "text5":
            return _Text5()
        case "lines4":
            return _Lines4(scheme)
        case "lines4-small":
            return _Lines4Small(scheme)
        case "bits5":
            return _Bits5(scheme)
        case "color-digits":
            return _ColorDigits(scheme)
