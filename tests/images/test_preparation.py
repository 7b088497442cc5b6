"""Images are denoised, binarized and resized as their specification says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captcha_ray.images.decoder import Unreadable, decode, from_array, otsu_threshold
from captcha_ray.images.spec import ImageSpec
from tests.support.image_files import COLOR, GRAY, ORANGE, encode, read


def test_otsu_splits_a_histogram_worked_by_hand() -> None:
    # Levels 10, 20, 200, 210 with 2, 1, 1, 4 pixels, mean 138.75. Between-class variance, splitting after
    # 10: 2*6*(10-181.67)^2/64 = 5526; after 20: 3*5*(13.33-206...)^2 = larger; after 200: 4*4*(60-210)^2/64 = 5625.
    # After 20: dark mean 13.33, light mean (200+840)/5 = 208; 15*(194.67)^2/64 = 8882, the largest.
    levels = np.array([10, 10, 20, 200, 210, 210, 210, 210], np.uint8).reshape(2, 4, 1)
    assert otsu_threshold(levels) == 20


def test_otsu_of_two_levels_takes_the_lower_as_dark() -> None:
    spec = ImageSpec(height=4, width=4, binarize=True)
    array = np.array([[100, 100, 101, 101]] * 4, np.uint8)
    assert from_array(array, spec)[:, :, 0].tolist() == [[0, 0, 255, 255]] * 4


@pytest.mark.parametrize("level", [0, 130, 255])
def test_a_flat_image_has_no_light_pixels(level: int) -> None:
    assert otsu_threshold(np.full((4, 4, 1), level, np.uint8)) == level


@given(st.lists(st.integers(0, 255), min_size=16, max_size=16))
@settings(deadline=None)
def test_otsu_has_no_better_threshold(levels: list[int]) -> None:
    pixels = np.array(levels, np.uint8).reshape(4, 4, 1)

    def within(threshold: int) -> float:
        classes = [pixels[pixels <= threshold], pixels[pixels > threshold]]
        return sum(float(((c - c.mean()) ** 2).sum()) for c in classes if c.size)

    best = min(within(t) for t in range(256))
    assert within(otsu_threshold(pixels)) == pytest.approx(best, abs=1e-6)


def test_the_median_filter_removes_a_lone_speck_and_keeps_an_edge() -> None:
    array = np.full((8, 8), 255, np.uint8)
    array[:, 4:] = 0
    array[3, 1] = 0
    clean = np.full((8, 8), 255, np.uint8)
    clean[:, 4:] = 0
    assert np.array_equal(from_array(array, ImageSpec(height=8, width=8, denoise=3))[:, :, 0], clean)
    assert np.array_equal(from_array(array, ImageSpec(height=8, width=8))[:, :, 0], array)


def test_the_median_filter_works_on_each_color() -> None:
    array = np.full((8, 8, 3), 200, np.uint8)
    array[4, 4] = (0, 255, 0)
    assert set(from_array(array, ImageSpec(height=8, width=8, channels=3, denoise=3)).ravel()) == {200}


def test_denoising_comes_before_resizing() -> None:
    array = np.full((8, 8), 255, np.uint8)
    array[3, 3] = 0
    assert set(from_array(array, ImageSpec(height=4, width=4, denoise=3)).ravel()) == {255}


def test_halving_averages_so_that_flat_halves_stay_flat() -> None:
    array = np.zeros((16, 32), np.uint8)
    array[:, 16:] = 200
    found = from_array(array, ImageSpec(height=8, width=16))[:, :, 0]
    assert set(found[:, :7].ravel()) == {0}
    assert set(found[:, 9:].ravel()) == {200}
    assert np.array_equal(found, found[:1].repeat(8, 0))


def test_an_image_of_the_right_size_keeps_every_pixel() -> None:
    array = np.random.default_rng(0).integers(0, 256, (60, 18, 3), dtype=np.uint8)
    spec = ImageSpec(height=60, width=18, channels=3)
    assert np.array_equal(read(encode(Image.fromarray(array), "PNG"), spec), array)


def test_gray_becomes_three_equal_colors_and_colors_become_their_luma() -> None:
    array = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    assert np.array_equal(from_array(array, COLOR), np.stack([array] * 3, 2))
    orange = np.full((4, 4, 3), ORANGE, np.uint8)
    orange[0] = 0
    assert set(from_array(orange, GRAY)[1:].ravel()) == {124}  # type: ignore[index]


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [(24, 16, True), (48, 8, True), (49, 8, False), (12, 32, True), (12, 33, False), (600, 400, True), (2, 2, True)],
)
def test_an_image_of_another_shape_than_the_network_reads_is_not_stretched_beyond_a_factor(
    width: int, height: int, fits: bool
) -> None:
    """24x16 is 3:2; four times as wide or as high is 6:1 or 3:8."""
    image = Image.new("L", (width, height))
    image.putpixel((0, 0), 255)
    spec, data = ImageSpec(height=16, width=24), encode(image, "PNG")
    found = decode(data, spec, max_stretch=4.0)
    if fits:
        assert isinstance(found, np.ndarray)
    else:
        detail = f"{width}x{height} pixels do not fit 24x16"
        assert found == Unreadable("wrong_aspect", detail)
        assert isinstance(decode(data, spec), np.ndarray), "without a factor any shape is read"


def test_an_image_of_the_wrong_shape_is_not_decoded_and_one_too_large_is_called_that() -> None:
    data = encode(Image.new("L", (200, 10)), "PNG")
    assert decode(data[:60], GRAY, max_stretch=2.0) == Unreadable("wrong_aspect", "200x10 pixels do not fit 4x4")
    found = decode(data, GRAY, max_pixels=1999, max_stretch=2.0)
    assert found == Unreadable("too_large", "200x10 pixels are more than 1999")


@pytest.mark.parametrize(
    ("size", "box"),
    [((24, 16), (0, 0, 24, 16)), ((12, 16), (6, 0, 18, 16)), ((48, 8), (0, 6, 24, 10)), ((6, 8), (6, 0, 18, 16))],
)
def test_padding_keeps_the_ratio_and_takes_the_color_of_the_edge(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    image = Image.new("RGB", size, (200, 100, 0))
    image.paste((0, 50, 250), (size[0] // 2 - 1, size[1] // 2 - 1, size[0] // 2 + 1, size[1] // 2 + 1))
    pixels = read(encode(image, "PNG"), ImageSpec(height=16, width=24, channels=3, pad=True))
    left, top, right, bottom = box
    inside = np.zeros((16, 24), bool)
    inside[top:bottom, left:right] = True
    assert (pixels[~inside] == (200, 100, 0)).all()
    stretched = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels[top:bottom, left:right], np.asarray(stretched))


def test_padded_images_may_be_narrower_than_usual_but_not_much_wider() -> None:
    spec = ImageSpec(height=16, width=64, pad=True)

    def fits(width: int, height: int) -> bool:
        image = Image.new("L", (width, height))
        image.putpixel((0, 0), 255)
        return isinstance(decode(encode(image, "PNG"), spec, max_stretch=2.0, aspect_ratios=(3.0, 4.0)), np.ndarray)

    assert [fits(8, 16), fits(7, 16), fits(128, 16), fits(129, 16)] == [True, False, True, False]
