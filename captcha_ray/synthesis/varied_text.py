"""Draw text in any font, gray level, style and clutter: what the weights to start from are trained on.

An image depends on the fonts, the seed and the index alone. Does not write files, does not know Ray or torch.
"""

import dataclasses
import fnmatch
import functools
import glob
import io
import math
import os
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from captcha_ray.errors import check
from captcha_ray.synthesis.schemes import Planned

WIDTH, HEIGHT = 192, 48
"""Size of the images, pixels."""

MAX_LENGTH = 10
"""Most characters of an image."""

SIGNS = "+-=?*#%&@$!"
CHARSET = "".join(sorted(string.digits + string.ascii_letters + SIGNS))
"""All characters that are drawn."""

ALPHABETS = (
    (0.30, string.digits),
    (0.12, string.digits + string.ascii_uppercase),
    (0.12, string.digits + string.ascii_lowercase),
    (0.18, string.digits + string.ascii_letters),
    (0.08, string.ascii_uppercase),
    (0.08, string.ascii_lowercase),
    (0.06, CHARSET),
)
"""Share of the images, and the characters that they draw from; sums such as 12+34=? have the rest."""

MIN_SIZE, MIN_DOTTED_SIZE = 9, 24
"""Least size of characters, and of those that are made of dots, pixels from line to line."""

Families = Sequence[Sequence[str]]
"""Paths of fonts, by family."""

Gray = npt.NDArray[np.floating[Any]]


@functools.cache
def find_fonts(folder: str, stem: str = "*") -> Families:
    """Return the fonts (TrueType and OpenType) below a folder that have a picture of its own for each character.

    Fonts of one subfolder are a family; each family is drawn from equally often, however many styles it has. stem:
    pattern of the files' names without ending.

    Raises InputError if there are none.
    """
    check(os.path.isdir(folder), f"{folder} is no folder; fonts are looked for on each machine that draws")
    families = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        found = glob.glob(f"{glob.escape(entry.path)}/**/*", recursive=True) if entry.is_dir() else [entry.path]
        fonts = (
            path for path in found if fnmatch.fnmatch(Path(path).stem, stem) and path[-4:].lower() in (".ttf", ".otf")
        )
        families.append(sorted(path for path in fonts if _draws_everything(path)))
    families = [family for family in families if family]
    check(bool(families), f"no font below {folder} draws each of {CHARSET}")
    return families


def _draws_everything(path: str) -> bool:
    """Return whether a font has another picture for each character."""
    try:
        font = ImageFont.truetype(path, 32)
        pictures = {bytes(font.getmask(character)) for character in CHARSET}
        return b"" not in pictures and len(pictures) == len(CHARSET)
    except (OSError, ValueError):
        return False


def plan(seed: int, num_images: int) -> list[Planned]:
    """Return what to draw for indices 0 to num_images - 1; the text of an index does not depend on their number."""
    texts = (_text(np.random.default_rng((seed, index, 0))) for index in range(num_images))
    return [Planned(f"{index // 1000:05d}/{index:08d}.png", text) for index, text in enumerate(texts)]


def render(families: Families, seed: int, index: int, text: str) -> bytes:
    """Return the PNG of one planned image. Arguments as of `draw`."""
    file = io.BytesIO()
    Image.fromarray(draw(families, seed, index, text)).save(file, format="png", compress_level=1)
    return file.getvalue()


def draw(families: Families, seed: int, index: int, text: str) -> npt.NDArray[np.uint8]:
    """Return a gray image, uint8 (HEIGHT, WIDTH).

    Args:
        families: Fonts, of `find_fonts`.
        seed: Of the corpus.
        index: Of the image.
        text: At most MAX_LENGTH characters of CHARSET.
    """
    rng = np.random.default_rng((seed, index, 1))
    ink = _lay_out(families, text, rng)
    dark = rng.random() < 0.7
    paper = rng.uniform(120, 255) if dark else rng.uniform(0, 135)
    contrast = rng.uniform(60, 130 if rng.random() < 0.5 else 255)
    color = max(paper - contrast, 0.0) if dark else min(paper + contrast, 255.0)
    image = paper + (color - paper) * 0.35 * _texture(rng)
    image = _clutter(image, color, rng, behind=True)
    image = image + (color + 25 * _color_along(rng) - image) * (ink / 255)
    image = _clutter(image, color, rng, behind=False)
    image = _spoil(_wave(image, rng), abs(color - paper), rng)
    return image.clip(0, 255).astype(np.uint8)


def _text(rng: np.random.Generator) -> str:
    length = int(rng.integers(1, MAX_LENGTH + 1)) if rng.random() < 0.5 else int(rng.integers(3, 8))
    share = rng.random()
    for of_all, alphabet in ALPHABETS:
        share -= of_all
        if share < 0:
            return "".join(alphabet[i] for i in rng.integers(len(alphabet), size=length))
    a, b = rng.integers(0, 10 ** rng.integers(1, 3, size=2))
    return f"{a}{'+-*'[rng.integers(3)]}{b}{('', '=', '=?')[rng.integers(3)]}"


@functools.lru_cache(maxsize=4096)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@dataclasses.dataclass(frozen=True)
class _Style:
    """Describe how an image's characters are drawn.

    turn: most degrees. slant: shear along x. gap, jitter: of the size. stretch: along x.
    """

    kind: str
    turn: float
    slant: float
    stretch: float
    gap: float
    jitter: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> "_Style":
        return cls(
            kind=str(rng.choice(("fill", "fill", "fill", "fill", "outline", "bold", "dots", "box"))),
            turn=float(rng.choice((0, 0, 6, 15, 30))),
            slant=float(rng.choice((0, 0, 0.2, 0.4))),
            stretch=float(rng.uniform(0.7, 1.35)),
            gap=float(rng.choice((-0.12, 0, 0.08, 0.3)) * rng.random()),
            jitter=float(rng.choice((0, 0.06, 0.2))),
        )


def _lay_out(families: Families, text: str, rng: np.random.Generator) -> Gray:
    """Draw characters side by side, smaller where they would not fit; opacity, float32 (HEIGHT, WIDTH), 0 to 255."""
    style, mixed = _Style.drawn(rng), rng.random() < 0.25
    paths = [
        family[int(rng.integers(len(family)))]
        for family in (families[i] for i in rng.integers(len(families), size=len(text)).tolist())
    ]
    if not mixed:
        paths = paths[:1] * len(text)
    size = int(rng.integers(15, 46))
    while True:
        glyphs = [_glyph(_font(path, size), character, style, rng) for path, character in zip(paths, text, strict=True)]
        steps = [max(glyph.width + style.gap * size, 2) for glyph in glyphs]
        room = WIDTH - 4 - sum(steps)
        if room >= 0 or size <= MIN_SIZE:
            break
        size = max(min(int(size * (WIDTH - 4) / sum(steps)), size - 1), MIN_SIZE)
    ink = Image.new("L", (WIDTH, HEIGHT))
    x = 2 + max(room, 0) * (rng.random() if rng.random() < 0.5 else 0.5)
    middle = HEIGHT / 2 + rng.uniform(-0.8, 0.8) * max(HEIGHT / 2 - size * 0.55, 0)
    tilt = rng.uniform(-0.08, 0.08) if rng.random() < 0.3 else 0.0
    for glyph, step in zip(glyphs, steps, strict=True):
        y = middle - glyph.height / 2 + rng.uniform(-1, 1) * style.jitter * size + tilt * (x - WIDTH / 2)
        y = min(max(y, 1 - glyph.height * 0.1), HEIGHT - glyph.height * 0.9 - 1)
        ink.paste(255, (round(x), round(y)), glyph)
        x += step
    return np.asarray(ink, np.float32)


def _glyph(font: ImageFont.FreeTypeFont, character: str, style: _Style, rng: np.random.Generator) -> Image.Image:
    """Draw a character in a box as wide as it is and as high as the font; opacity ("L")."""
    left, _, right, _ = font.getbbox(character, anchor="ls")
    ascent, descent = font.getmetrics()
    kind = "bold" if style.kind == "dots" and font.size < MIN_DOTTED_SIZE else style.kind
    stroke = int(kind in ("bold", "outline"))
    margin = 1 + stroke
    picture = Image.new("L", (math.ceil(right - left) + 2 * margin, ascent + descent))
    at = (margin - left, ascent)
    ImageDraw.Draw(picture).text(at, character, fill=255, font=font, anchor="ls", stroke_width=stroke)
    if kind == "outline":
        hole = Image.new("L", picture.size)
        ImageDraw.Draw(hole).text(at, character, fill=255, font=font, anchor="ls")
        picture.paste(int(rng.integers(0, 90)), (0, 0), hole)
    elif kind == "dots":
        picture = _dotted(picture, rng)
    elif kind == "box":
        corner = (picture.width - 1, picture.height - 1)
        ImageDraw.Draw(picture).rectangle(((0, 0), corner), outline=int(rng.integers(120, 256)))
    if style.turn or style.slant or style.stretch != 1:
        turn, slant = rng.uniform(-style.turn, style.turn), rng.uniform(-style.slant, style.slant)
        picture = _turned(picture, turn, slant, style.stretch)
    return picture


def _dotted(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Leave dots of a lattice, of 1 or 3 pixels each."""
    step = int(rng.integers(2, 5))
    lattice = np.zeros((picture.height, picture.width), bool)
    lattice[rng.integers(step) :: step, rng.integers(step) :: step] = True
    dots = Image.fromarray(((np.asarray(picture) > 90) & lattice).astype(np.uint8) * 255)
    return dots if step == 2 else dots.filter(ImageFilter.MaxFilter(3))


def _turned(picture: Image.Image, degrees: float, slant: float, stretch: float) -> Image.Image:
    """Turn, slant and stretch along x, in a box that holds all of it."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # output = M @ (input - center), M = rotation @ slant @ stretch
    m = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, -slant], [0, 1]]) @ np.diag([stretch, 1.0])
    w, h = picture.size
    out_w = math.ceil(abs(m[0, 0]) * w + abs(m[0, 1]) * h * 0.8)
    out_h = math.ceil(abs(m[1, 0]) * w + abs(m[1, 1]) * h)
    inverse = np.linalg.inv(m)
    shift = np.array([w / 2, h / 2]) - inverse @ np.array([out_w / 2, out_h / 2])
    data = (*inverse[0], shift[0], *inverse[1], shift[1])
    return picture.transform((out_w, out_h), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def _texture(rng: np.random.Generator) -> Gray:
    """Return how far the paper is towards the ink, float32 (HEIGHT, WIDTH), 0 to 1."""
    kind = rng.random()
    if kind < 0.45:
        return np.zeros((HEIGHT, WIDTH), np.float32)
    if kind < 0.7:
        left, right, top, bottom = rng.random(4).tolist()
        ramp: Gray = (np.linspace(left, right, WIDTH)[None] * np.linspace(top, bottom, HEIGHT)[:, None]).astype("f4")
        return ramp
    coarse = (rng.random((int(rng.integers(2, 7)), int(rng.integers(3, 16)))) * 255).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) / 255


def _color_along(rng: np.random.Generator) -> Gray | float:
    """Return how the ink's level differs along the text, -1 to 1."""
    if rng.random() < 0.7:
        return 0.0
    levels = rng.uniform(-1, 1, size=int(rng.integers(2, 9)))
    return np.repeat(levels, -(-WIDTH // len(levels)))[None, :WIDTH].astype(np.float32)


def _clutter(image: Gray, ink: float, rng: np.random.Generator, *, behind: bool) -> Gray:
    """Add lines, arcs, waves and dots: behind the text more and fainter ones, in front of it fewer."""
    if rng.random() < 0.5:
        return image
    cover = Image.new("L", (WIDTH, HEIGHT))
    pen = ImageDraw.Draw(cover)
    for _ in range(rng.integers(0, 5 if behind else 3)):
        _stroke(pen, rng)
    dots = int(rng.choice((0, 10, 60, 200))) if behind else int(rng.choice((0, 0, 10, 40)))
    if dots:
        pen.point([(float(x), float(y)) for x, y in rng.random((dots, 2)) * (WIDTH, HEIGHT)], fill=255)
    if behind and rng.random() < 0.1:
        step = int(rng.integers(5, 16))
        for x in range(int(rng.integers(step)), WIDTH, step):
            pen.line((x, 0, x, HEIGHT), fill=255)
        for y in range(int(rng.integers(step)), HEIGHT, step):
            pen.line((0, y, WIDTH, y), fill=255)
    strength = rng.uniform(0.15, 0.7) if behind else rng.uniform(0.4, 1.0)
    color = ink if behind or rng.random() < 0.6 else rng.uniform(0, 255)
    return image + (color - image) * (strength / 255 * np.asarray(cover, np.float32))


def _stroke(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    width = int(rng.choice((1, 1, 2, 3)))
    x = np.linspace(rng.uniform(-0.1, 0.4), rng.uniform(0.6, 1.1), 32)
    kind = rng.random()
    if kind < 0.5:
        y = np.linspace(rng.random(), rng.random(), 32)
    elif kind < 0.75:
        y = rng.random() + rng.uniform(-0.8, 0.8) * (x - 0.5) ** 2 * 4
    else:
        y = rng.uniform(0.2, 0.8) + rng.uniform(0.05, 0.35) * np.sin(x * rng.uniform(4, 30) + rng.random() * 6)
    pen.line(list(zip((x * WIDTH).tolist(), (y * HEIGHT).tolist(), strict=True)), fill=255, width=width)


def _wave(image: Gray, rng: np.random.Generator) -> Gray:
    """Shift columns up and down along a wave, in a quarter of the images."""
    if rng.random() > 0.25:
        return image
    shift = rng.uniform(1, 4) * np.sin(np.arange(WIDTH) * rng.uniform(0.02, 0.12) + rng.random() * 6)
    rows = (np.arange(HEIGHT)[:, None] + np.round(shift)[None].astype(int)).clip(0, HEIGHT - 1)
    waved: Gray = np.take_along_axis(image, rows, axis=0)
    return waved


def _spoil(image: Gray, contrast: float, rng: np.random.Generator) -> Gray:
    """Blur, shrink and enlarge, and add noise in proportion to the contrast, to some of the images each."""
    if rng.random() < 0.35:
        levels = Image.fromarray(image.clip(0, 255).astype(np.uint8))
        soft = levels.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
        image = np.asarray(soft, np.float32)
    if rng.random() < 0.15:
        share = rng.uniform(0.5, 0.9)
        small = Image.fromarray(image).resize((round(WIDTH * share), round(HEIGHT * share)), Image.Resampling.BOX)
        image = np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    if rng.random() < 0.5:
        image = image + contrast * rng.uniform(0.01, 0.25) * rng.standard_normal(image.shape, np.float32)
    if rng.random() < 0.1:
        salt = rng.random(image.shape) < rng.uniform(0.005, 0.06)
        image = np.where(salt, np.float32(255) * rng.integers(0, 2, image.shape), image).astype(np.float32)
    return image
