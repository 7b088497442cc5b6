"""Text that stands in a small part of the images is found, and nothing is cut off elsewhere."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from captcha_ray.datasets import preprocess
from captcha_ray.datasets.text_band import LOOK, MIN_IMAGES, find_text
from captcha_ray.images.decoder import decode, from_array
from captcha_ray.images.spec import ImageSpec
from tests.factories import config_for, draw_glyphs, glyph_texts

Pixels = npt.NDArray[np.uint8]


def images(left: float, top: float, right: float, bottom: float, *, specks: int = 5, jitter: int = 0) -> list[Pixels]:
    """Noise in a part of each image, and specks anywhere."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(60):
        image = np.full((LOOK.height, LOOK.width, 1), 240, np.uint8)
        for y, x in rng.integers(0, 128, (specks, 2)):
            image[y, x] = 0
        dx, dy = rng.integers(-jitter, jitter + 1, 2)
        rows = slice(max(round(128 * top) + dy, 0), round(128 * bottom) + dy)
        columns = slice(max(round(128 * left) + dx, 0), round(128 * right) + dx)
        image[rows, columns] = rng.integers(0, 256, image[rows, columns].shape)
        made.append(image)
    return made


@pytest.mark.parametrize(
    "part", [(0.0, 0.4, 1.0, 0.6), (0.1, 0.1, 0.9, 0.3), (0.6, 0.0, 0.9, 1.0), (0.2, 0.6, 0.5, 0.8)]
)
def test_a_band_is_found_with_a_margin(part: tuple[float, ...]) -> None:
    found = find_text(images(*part))
    assert len(found) == 4
    for axis in (0, 1):
        low, high = part[axis], part[axis + 2]
        if high - low > 0.5:
            assert (found[axis], found[axis + 2]) == (0, 1)
        else:
            assert low - 0.15 * (high - low) - 0.02 <= found[axis] < low
            assert high < found[axis + 2] <= high + 0.15 * (high - low) + 0.02


def test_all_places_of_text_that_is_not_always_at_the_same_are_kept() -> None:
    _, top, _, bottom = find_text(images(0.0, 0.4, 1.0, 0.55, jitter=6))
    assert top <= 0.4 - 6 / 128 * 0.8
    assert bottom >= 0.55 + 6 / 128 * 0.8


@pytest.mark.parametrize("part", [(0.0, 0.0, 1.0, 1.0), (0.1, 0.2, 0.8, 0.75)])
def test_nothing_is_cut_off_images_that_text_fills(part: tuple[float, ...]) -> None:
    assert find_text(images(*part)) == ()


def test_nothing_is_cut_off_if_some_images_have_their_text_elsewhere() -> None:
    above, below = images(0.0, 0.1, 1.0, 0.3), images(0.0, 0.7, 1.0, 0.9)
    assert find_text(above) != ()
    assert find_text([*above, *below[:6]]) == ()


def test_the_width_stays_whole_if_it_may_not_be_cut() -> None:
    narrow = images(0.1, 0.2, 0.4, 0.9)
    assert find_text(narrow) != ()
    assert find_text(narrow, cut_width=False) == ()


def test_a_part_of_a_picture_with_white_as_zero_is_as_light_as_the_whole() -> None:
    file = io.BytesIO()
    levels = np.linspace(0, 60_000, 100 * 200).reshape(100, 200).astype(np.uint16)
    Image.fromarray(levels).save(file, format="TIFF", tiffinfo={262: 0})
    whole = decode(file.getvalue(), ImageSpec(height=100, width=200))
    part = decode(file.getvalue(), ImageSpec(height=20, width=200, crop=(0.0, 0.4, 1.0, 0.6)))
    assert isinstance(whole, np.ndarray)
    assert np.array_equal(part, whole[40:60])


def test_a_few_images_say_nothing() -> None:
    assert find_text(images(0.0, 0.4, 1.0, 0.6)[: MIN_IMAGES - 1]) == ()
    assert find_text(images(0.0, 0.4, 1.0, 0.6)[:MIN_IMAGES]) != ()


def test_flat_images_have_no_text() -> None:
    assert find_text([np.zeros((128, 128, 1), np.uint8)] * 30) == ()


def test_pixels_are_those_of_the_part() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 200, 1), np.uint8)
    spec = ImageSpec(height=20, width=100, crop=(0.25, 0.4, 0.75, 0.6))
    assert np.array_equal(from_array(image, spec), image[40:60, 50:150])


@pytest.mark.usefixtures("ray_cluster")
def test_shards_of_text_in_a_strip_have_the_size_of_the_strip(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "strips", glyph_texts(40, 2), size=(120, 40))
    (tmp_path / "corpus").mkdir()
    for path in (tmp_path / "strips").iterdir():
        picture = Image.new("L", (120, 200), 30)
        picture.paste(Image.open(path), (0, 100))
        picture.save(tmp_path / "corpus" / path.name)
    image = preprocess.preprocess(config_for(tmp_path, height=0, width=0)).image_spec
    assert image.crop[0::2] == (0.0, 1.0)
    assert image.crop[1] == pytest.approx(0.5 - 0.12 * 0.2, abs=0.02)
    assert 40 <= image.height <= 56
    assert image.width == pytest.approx(120 * image.height / (200 * (image.crop[3] - image.crop[1])), abs=2)
    for name, changes in (("none", {"crop": "none"}), ("sized", {"height": 32})):
        config = config_for(tmp_path, **{"height": 0, "width": 0, "out": str(tmp_path / name), **changes})
        assert preprocess.preprocess(config).image_spec.crop == ()
