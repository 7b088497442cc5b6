"""Varied text: any font, the same bytes anywhere, and the text that was asked for."""

import hashlib
import io
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from captcha_ray.errors import InputError
from captcha_ray.synthesis.varied_text import (
    CHARSET,
    HEIGHT,
    MAX_LENGTH,
    SIGNS,
    WIDTH,
    _lay_out,
    find_fonts,
    plan,
    render,
)

FONTS = str(Path(matplotlib.get_data_path(), "fonts", "ttf"))


def test_plans_do_not_depend_on_the_number_of_images() -> None:
    assert plan(3, 50)[:10] == plan(3, 10)
    assert plan(3, 10) != plan(4, 10)
    assert len({item.path for item in plan(3, 2500)}) == 2500


def test_texts_hold_every_character_and_length_and_digits_most_often() -> None:
    texts = [item.text for item in plan(0, 5000)]
    counts = Counter("".join(texts))
    assert set(counts) == set(CHARSET)
    assert {len(text) for text in texts} == set(range(1, MAX_LENGTH + 1))
    assert sum(counts[digit] for digit in "0123456789") > sum(counts.values()) / 3
    assert any(text.endswith("=?") and text[0].isdigit() for text in texts)
    assert set(SIGNS) < set(CHARSET)


def test_a_fresh_process_draws_the_same_bytes_in_any_order() -> None:
    program = (
        "import hashlib\nfrom captcha_ray.synthesis.varied_text import find_fonts, plan, render\n"
        f"fonts = find_fonts({FONTS!r})\n"
        "pngs = [render(fonts, 3, i, item.text) for i, item in enumerate(plan(3, 20))]\n"
        "print(hashlib.sha256(b''.join(pngs)).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()
    planned = plan(3, 20)
    backwards = [render(find_fonts(FONTS), 3, index, planned[index].text) for index in reversed(range(20))]
    assert there == hashlib.sha256(b"".join(backwards[::-1])).hexdigest()


def test_images_show_their_text_and_fill_their_size() -> None:
    fonts, contrasts = find_fonts(FONTS), []
    for index in range(100):
        image = np.asarray(Image.open(io.BytesIO(render(fonts, 0, index, "88888888"))))
        assert image.shape == (HEIGHT, WIDTH)
        assert image.dtype == np.uint8
        ink = _lay_out(fonts, "88888888", np.random.default_rng((0, index, 1)))  # as `draw` begins
        text, paper = image[ink > 0.8 * ink.max()], image[ink == 0]
        contrasts.append(abs(float(np.median(text)) - float(np.median(paper))))
    assert np.median(contrasts) > 50
    assert sum(contrast < 15 for contrast in contrasts) < 10  # waves move some texts from where they were laid out


def test_long_texts_are_drawn_smaller_so_that_they_fit() -> None:
    fonts = find_fonts(FONTS)
    inks = [_lay_out(fonts, "8" * MAX_LENGTH, np.random.default_rng(seed)) for seed in range(100)]
    assert all(ink.any() for ink in inks)
    assert sum(ink[:, -1].any() for ink in inks) <= 2  # the last column is free, or the text may go on behind it


def test_fonts_that_lack_a_character_are_left_out_and_subfolders_are_families(tmp_path: Path) -> None:
    (tmp_path / "dejavu").mkdir()
    for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"):
        shutil.copy(Path(FONTS, name), tmp_path / "dejavu")
    shutil.copy(Path(FONTS, "STIXGeneral.ttf"), tmp_path)
    shutil.copy(Path(FONTS, "STIXSizOneSymReg.ttf"), tmp_path)  # has no letters
    shutil.copy(Path(FONTS, "LastResortHE-Regular.ttf"), tmp_path)  # has one picture for all of them
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    names = [[Path(path).name for path in family] for family in find_fonts(str(tmp_path))]
    assert names == [["STIXGeneral.ttf"], ["DejaVuSans-Bold.ttf", "DejaVuSans.ttf"]]
    assert len(find_fonts(str(tmp_path), "STIX*")) == 1


def test_a_folder_without_fonts_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no font below .* draws each of"):
        find_fonts(str(tmp_path))
    with pytest.raises(InputError, match="is no folder"):
        find_fonts(str(tmp_path / "missing"))
