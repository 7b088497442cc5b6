"""Two lines of text are found and put side by side, and images of one line are left alone."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFont

from captcha_ray.datasets import preprocess
from captcha_ray.datasets.shards import open_shards
from captcha_ray.datasets.text_band import LOOK
from captcha_ray.datasets.text_lines import MIN_IMAGES, find_two_lines
from captcha_ray.images.decoder import decode, prepare
from captcha_ray.images.spec import ImageSpec
from captcha_ray.images.two_lines import side_by_side
from captcha_ray.runtime import ray_session
from tests.factories import config_for

FONT = ImageFont.load_default(24)


def plate(*lines: str, noise: float = 6, seed: int = 0) -> Image.Image:
    """Draw lines of text in a frame, on noise."""
    rng = np.random.default_rng(seed)
    width = 30 + round(max(FONT.getlength(line) for line in lines))
    image = Image.new("L", (width, 14 + 32 * len(lines)), 200)
    draw = ImageDraw.Draw(image)
    draw.rectangle((3, 3, image.width - 4, image.height - 4), outline=20, width=2)
    for number, line in enumerate(lines):
        draw.text((15, 7 + 32 * number + int(rng.integers(-1, 2))), line, font=FONT, fill=20)
    noisy = np.asarray(image) + rng.normal(0, noise, (image.height, image.width))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def found_in(images: list[Image.Image], length: int) -> float:
    grays = [prepare(image, LOOK) for image in images]
    widths, heights = (np.array([image.size[side] for image in images], float) for side in (0, 1))
    return find_two_lines([g for g in grays if isinstance(g, np.ndarray)], widths, heights, [length] * len(images))


def ratios(images: list[Image.Image]) -> npt.NDArray[np.float64]:
    return np.array([image.width / image.height for image in images])


def texts(count: int, length: int, seed: int = 1) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("ABCDEFGHKLMNPRSTUVXYZ0123456789"), length)) for _ in range(count)]


@pytest.mark.parametrize("noise", [0, 25])
def test_a_ratio_parts_plates_of_two_lines_from_those_of_one(noise: float) -> None:
    two = [plate(text[:3], text[3:], noise=noise, seed=k) for k, text in enumerate(texts(60, 7))]
    one = [plate(text, noise=noise, seed=k) for k, text in enumerate(texts(40, 7, seed=2))]
    assert ratios(two).max() < found_in(two + one, 7) < ratios(one).min()
    assert found_in(two, 7) > ratios(two).max()


def test_one_line_is_not_taken_for_two() -> None:
    one = [plate(text, seed=k) for k, text in enumerate(texts(60, 5))]
    assert found_in(one, 5) == 0
    assert found_in(one, 50) == 0, "too narrow for so much text, but without a gap"
    two = [plate(text[:3], text[3:], seed=k) for k, text in enumerate(texts(60, 6))]
    assert found_in(two, 6) > 0
    assert found_in(two, 2) == 0, "as wide as two characters want: signs such as : and ="
    assert found_in(two[: MIN_IMAGES - 1], 6) == 0
    assert found_in([image.resize((24, 18)) for image in two], 6) == 0, "lines of nine pixels are none"


@pytest.mark.parametrize("num_one", [1, 15])
def test_images_of_one_size_are_all_cut_or_none(num_one: int) -> None:
    two = [plate(text[:3], text[3:], seed=k).resize((100, 75)) for k, text in enumerate(texts(60, 7))]
    undetected = [plate(text, seed=k).resize((100, 75)) for k, text in enumerate(texts(num_one, 7, seed=2))]
    assert found_in(two + undetected, 7) > 100 / 75
    assert found_in(undetected + two, 7) > 100 / 75


def test_ratios_that_are_close_are_told_apart() -> None:
    two = [plate(text[:3], text[3:], seed=k).resize((1000, 750)) for k, text in enumerate(texts(60, 7))]
    one = [plate(text, seed=k).resize((1001, 750)) for k, text in enumerate(texts(40, 7, seed=2))]
    assert 1000 / 750 < found_in(two + one, 7) <= 1001 / 750


def test_lines_are_cut_at_the_gap_and_put_side_by_side() -> None:
    pixels = np.full((50, 40), 255, np.uint8)
    pixels[4:18, 4:36:4] = 0  # a low line
    pixels[24:48, 4:36:8] = 0  # and a higher one
    joined = np.asarray(side_by_side(Image.fromarray(pixels)))
    assert joined.shape[1] == 80
    assert 29 <= joined.shape[0] <= 32
    dark = joined < 128
    assert dark[:, :40].any(0).sum() == 8
    assert dark[:, 40:].any(0).sum() == 4
    np.testing.assert_array_equal(np.flatnonzero(dark[:, 40:].any(0)), np.arange(4, 36, 8))


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (1, 7), (3, 2)])
def test_the_smallest_images_have_two_lines_too(size: tuple[int, int]) -> None:
    image = Image.frombytes("L", size, bytes(range(0, 20 * size[0] * size[1], 20)))
    assert side_by_side(image).width == 2 * size[0]


def test_only_images_below_the_ratio_are_parted() -> None:
    spec = ImageSpec(height=32, width=96, two_lines=1.5)
    plain = ImageSpec(height=32, width=96)
    two, one = (io.BytesIO(), io.BytesIO())
    plate("AB1", "2CD").save(two, "PNG")
    plate("AB12CDE").save(one, "PNG")
    np.testing.assert_array_equal(decode(one.getvalue(), spec), decode(one.getvalue(), plain))
    parted = decode(two.getvalue(), spec)
    expected = prepare(side_by_side(plate("AB1", "2CD")), plain)
    np.testing.assert_array_equal(parted, expected)


def test_a_corpus_of_two_lines_becomes_shards_of_one(
    ray_cluster: ray_session.Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus").mkdir()
    for k, text in enumerate(texts(60, 7)):
        plate(text[:3], text[3:], seed=k).save(tmp_path / "corpus" / f"{text}.png")
    config = config_for(tmp_path, height=0, width=0)
    image = preprocess.preprocess(config).image_spec
    assert "hold two lines, which are put side by side" in capfd.readouterr().out
    assert image.two_lines > 0
    assert image.width > 3 * image.height
    row = next(iter(open_shards(config.out).read().iter_rows()))
    expected = decode(Path(row["uri"]).read_bytes(), image)
    assert isinstance(expected, np.ndarray)
    assert row["image"] == expected.tobytes()
    whole = preprocess.preprocess(config_for(tmp_path, height=0, width=0, lines="one", out=str(tmp_path / "whole")))
    assert whole.image_spec.two_lines == 0
    told = config_for(tmp_path, height=40, width=160, lines="two", out=str(tmp_path / "told"))
    assert preprocess.preprocess(told).image_spec.two_lines > 100
