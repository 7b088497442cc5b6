"""The synthetic corpora: plans that add up and pictures that depend on their seed and index alone."""

import hashlib
import io
import random
import re
import secrets
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import get_args

import captcha.image
import numpy as np
import numpy.typing as npt
import pytest
from captcha.image import ImageCaptcha
from PIL import Image

from captcha_ray.synthesis.schemes import (
    CHARSETS,
    DIGIT_SUPPORT,
    LABEL_PATTERN,
    SIZES,
    TEXT_LENGTHS,
    Scheme,
    digit_counts,
    plan,
    render,
    seeded_captcha,
)

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
COLORED: list[Scheme] = ["lines4", "lines4-small", "color-digits"]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
text_schemes = pytest.mark.parametrize("scheme", TEXT_LENGTHS)
digit_schemes = pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in TEXT_LENGTHS])


def draw(scheme: Scheme, seed: int, num_images: int) -> list[bytes]:
    return [render(scheme, seed, index, item.text) for index, item in enumerate(plan(scheme, seed, num_images))]


def pixels(png: bytes) -> npt.NDArray[np.float32]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), np.float32)


@every_scheme
def test_a_seed_draws_the_same_plan_and_the_same_bytes_in_any_order(scheme: Scheme) -> None:
    planned = plan(scheme, 7, 12)
    assert planned == plan(scheme, 7, 12)
    backwards = [render(scheme, 7, index, planned[index].text) for index in reversed(range(12))]
    assert draw(scheme, 7, 12) == backwards[::-1]


@every_scheme
def test_a_fresh_process_draws_the_same_bytes(scheme: Scheme) -> None:
    program = (
        "import hashlib; from captcha_ray.synthesis.schemes import plan, render\n"
        f"pngs = [render({scheme!r}, 3, i, item.text) for i, item in enumerate(plan({scheme!r}, 3, 5))]\n"
        "print(hashlib.sha256(b''.join(pngs)).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()
    assert there == hashlib.sha256(b"".join(draw(scheme, 3, 5))).hexdigest()


@text_schemes
def test_threads_of_one_process_draw_the_same_bytes(scheme: Scheme) -> None:
    planned = plan(scheme, 0, 60)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            drawn = list(pool.map(lambda index: render(scheme, 0, index, planned[index].text), range(60)))
    finally:
        sys.setswitchinterval(interval)
    assert drawn == draw(scheme, 0, 60)


@every_scheme
def test_another_seed_draws_another_plan_and_other_pictures(scheme: Scheme) -> None:
    assert plan(scheme, 0, 40) != plan(scheme, 1, 40)
    text = plan(scheme, 0, 1)[0].text
    assert render(scheme, 0, 0, text) != render(scheme, 1, 0, text)


@every_scheme
def test_every_index_of_a_repeated_text_has_its_own_picture(scheme: Scheme) -> None:
    text = plan(scheme, 0, 1)[0].text
    assert len({render(scheme, 0, index, text) for index in range(20)}) == 20


@every_scheme
def test_pictures_show_their_text(scheme: Scheme) -> None:
    """Among 40 pictures each, the mean picture of one text is nearer to its own kind than to another's."""
    a, b = (character * TEXT_LENGTHS.get(scheme, 1) for character in ("2w" if scheme == "text5" else "18"))
    own, again = (np.mean([pixels(render(scheme, seed, i, a)) for i in range(40)], axis=0) for seed in (0, 1))
    other = np.mean([pixels(render(scheme, 0, i, b)) for i in range(40)], axis=0)
    assert 2 * np.square(own - again).mean() < np.square(own - other).mean()


@every_scheme
def test_pictures_are_dark_ink_on_bright_paper(scheme: Scheme) -> None:
    for png in draw(scheme, 0, 20):
        image = pixels(png)
        assert np.median(image) > 190
        assert 0.03 < (image < (150 if scheme in COLORED else 100)).mean() < 0.35


@pytest.mark.parametrize(
    ("scheme", "size", "mode"),
    [
        ("digits", (18, 60), "L"),
        ("text5", (200, 50), "RGBA"),
        ("lines4", (152, 42), "RGB"),
        ("lines4-small", (70, 30), "RGB"),
        ("bits5", (80, 25), "1"),
        ("color-digits", (15, 30), "RGB"),
    ],
)
def test_pictures_are_png_of_their_schemes_size_and_mode(scheme: Scheme, size: tuple[int, int], mode: str) -> None:
    assert SIZES[scheme] == size
    for png in draw(scheme, 0, 10):
        image = Image.open(io.BytesIO(png))
        assert (image.format, image.size, image.mode) == ("PNG", size, mode)
        assert mode != "RGBA" or image.getchannel("A").getextrema() == (255, 255)


@pytest.mark.parametrize("scheme", COLORED)
def test_digits_of_colored_pictures_differ_in_color(scheme: Scheme) -> None:
    """Ink, unlike paper, is far from gray, and the channel that is brightest in it is not always the same."""
    brightest = set()
    for png in draw(scheme, 0, 20):
        rgb = np.asarray(Image.open(io.BytesIO(png)), np.float32)
        ink = rgb[rgb.mean(axis=2) < 130]
        assert (np.ptp(ink, axis=1) > 40).mean() > 0.5
        brightest.update(ink.argmax(axis=1).tolist())
    assert brightest == {0, 1, 2}


def test_bits5_stores_one_bit_a_pixel_and_specks_are_few() -> None:
    for png in draw("bits5", 0, 20):
        header_end = 8 + 8 + 8  # signature, length and name of the first chunk, width and height
        assert png[header_end : header_end + 2] == bytes([1, 0]), "bit depth and color type of gray"
        black = ~np.asarray(Image.open(io.BytesIO(png)))
        around = sum(np.roll(black, shift, axis).astype(int) for axis in (0, 1) for shift in (-1, 1))
        assert 0 < (black & (around == 0)).mean() < 0.04


@digit_schemes
def test_as_many_digits_as_the_published_test_set_have_exactly_its_classes(scheme: Scheme) -> None:
    texts = [item.text for item in plan(scheme, 5, 3423)]
    published = (142, 695, 268, 289, 338, 290, 278, 321, 266, 536)
    assert tuple(texts.count(character) for character in "0123456789") == published
    assert texts != sorted(texts)


@pytest.mark.parametrize("num_images", [1, 2, 5, 9, 10, 11, 25, 100, 999, 3422, 20_000])
def test_digit_classes_add_up_are_near_proportional_and_complete_from_ten_images(num_images: int) -> None:
    counts = digit_counts(num_images)
    exact = np.array(DIGIT_SUPPORT) * num_images / 3423
    assert counts.sum() == num_images
    assert (counts >= (1 if num_images >= 10 else 0)).all()
    assert (np.abs(counts - exact) < (1 if num_images > 25 else 2)).all()


def test_left_over_images_go_to_the_largest_remainders() -> None:
    """The shares of three images are 0.12, 0.61, 0.23, 0.25, 0.30, 0.25, 0.24, 0.28, 0.23 and 0.47."""
    assert digit_counts(3).tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 1]


@every_scheme
@pytest.mark.parametrize("num_images", [1, 100, 20_000])
def test_a_plan_has_as_many_unique_png_paths_as_images(scheme: Scheme, num_images: int) -> None:
    paths = {item.path for item in plan(scheme, 0, num_images)}
    assert len(paths) == num_images
    assert all(path.endswith(".png") for path in paths)


@digit_schemes
def test_a_digit_lies_in_its_folder_under_its_index(scheme: Scheme) -> None:
    for index, (path, text) in enumerate(plan(scheme, 0, 50)):
        assert path == f"{text}/{index:06d}.png"


@text_schemes
def test_a_repeated_text_counts_its_earlier_ones_and_the_label_pattern_takes_that_off(scheme: Scheme) -> None:
    planned = plan(scheme, 0, 20_000)
    texts = [item.text for item in planned]
    assert len(set(texts)) < len(texts), "no repetition, nothing tested"
    earlier: Counter[str] = Counter()
    for path, text in planned:
        found = re.search(LABEL_PATTERN, PurePosixPath(path).stem)
        assert found is not None
        assert found[1] == text
        assert path == (f"{text}-{earlier[text]}.png" if earlier[text] else f"{text}.png")
        earlier[text] += 1


@pytest.mark.parametrize(("scheme", "length"), [("text5", 5), ("lines4", 4), ("lines4-small", 4), ("bits5", 5)])
def test_texts_have_their_schemes_length_and_characters_uniformly_from_its_charset(scheme: Scheme, length: int) -> None:
    texts = [item.text for item in plan(scheme, 0, 4000)]
    assert {len(text) for text in texts} == {length}
    for position in range(length):
        column = [text[position] for text in texts]
        assert set(column) == set(CHARSETS[scheme])
        counts = np.array([column.count(character) for character in CHARSETS[scheme]])
        expected = 4000 / len(CHARSETS[scheme])
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@text_schemes
def test_an_index_has_the_same_text_and_path_in_a_longer_text_corpus(scheme: Scheme) -> None:
    assert plan(scheme, 0, 9000)[:3000] == plan(scheme, 0, 3000)


def test_charsets_are_sorted_without_repetition() -> None:
    for scheme in SCHEMES:
        charset = CHARSETS[scheme]
        assert list(charset) == sorted(set(charset))


def test_the_captcha_package_draws_all_its_randomness_from_the_stand_in() -> None:
    drawn = []
    for seed in (1, 1, 2):
        with seeded_captcha(random.Random(seed)):
            drawn.append(ImageCaptcha().generate_image("2b4d").tobytes())
    assert drawn[0] == drawn[1] != drawn[2]
    assert ImageCaptcha().generate_image("2b4d").tobytes() != ImageCaptcha().generate_image("2b4d").tobytes()


def test_the_stand_in_is_taken_back_after_drawing_and_after_an_exception() -> None:
    def fail_within() -> None:
        with seeded_captcha(random.Random(0)):
            assert vars(captcha.image)["secrets"] is not secrets
            raise ZeroDivisionError

    render("digits", 0, 0, "4")
    assert vars(captcha.image)["secrets"] is secrets
    with pytest.raises(ZeroDivisionError):
        fail_within()
    assert vars(captcha.image)["secrets"] is secrets
    render("digits", 0, 0, "4")
