"""Random distortion against an independent reference: Keras' composition in numpy, pixel by pixel."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from captcha_ray.models.device import Arithmetic
from captcha_ray.training.augment import Affine, Augment, affine_matrices, paper_and_ink

HEIGHT, WIDTH = 24, 10
SHAPE = torch.Size((4000, 1, HEIGHT, WIDTH))
Array = npt.NDArray[np.float64]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def in_pixels(matrices: torch.Tensor) -> Array:
    """Maps of normalized coordinates -> maps of pixels (x, y) from the center, float (N, 2, 3)."""
    half = np.array([WIDTH / 2, HEIGHT / 2])
    return matrices.double().numpy() * half[:, None] / np.append(half, 1.0)


def parameters(matrices: torch.Tensor) -> dict[str, Array]:
    """The one way to write each map as R(rotation) T(shift) S(shear) Z(zoom); angles in degrees, shifts in pixels."""
    m = in_pixels(matrices)
    rotation = np.arctan2(m[:, 1, 0], m[:, 0, 0])
    both = np.arctan2(-m[:, 0, 1], m[:, 1, 1])  # rotation + shear
    cos, sin = np.cos(rotation), np.sin(rotation)
    return {
        "rotation": np.degrees(rotation),
        "shear": np.degrees(both - rotation),
        "zoom_x": np.hypot(m[:, 0, 0], m[:, 1, 0]),
        "zoom_y": np.hypot(m[:, 0, 1], m[:, 1, 1]),
        "shift_x": cos * m[:, 0, 2] + sin * m[:, 1, 2],
        "shift_y": -sin * m[:, 0, 2] + cos * m[:, 1, 2],
    }


def keras(image: Array, p: dict[str, float]) -> Array:
    """Return what Keras' `apply_affine_transform` makes of an image (H, W), about its center, bilinear, nearest."""
    a, s = math.radians(p["rotation"]), math.radians(p["shear"])
    rotation = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
    shift = np.array([[1, 0, p["shift_x"]], [0, 1, p["shift_y"]], [0, 0, 1]])
    shear = np.array([[1, -math.sin(s), 0], [0, math.cos(s), 0], [0, 0, 1]])
    matrix = rotation @ shift @ shear @ np.diag([p["zoom_x"], p["zoom_y"], 1])
    height, width = image.shape
    result = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            x, y, _ = matrix @ [column - (width - 1) / 2, row - (height - 1) / 2, 1]
            x = min(max(x + (width - 1) / 2, 0), width - 1)
            y = min(max(y + (height - 1) / 2, 0), height - 1)
            left, top = min(int(x), width - 2), min(int(y), height - 2)
            fx, fy = x - left, y - top
            upper = image[top, left] * (1 - fx) + image[top, left + 1] * fx
            lower = image[top + 1, left] * (1 - fx) + image[top + 1, left + 1] * fx
            result[row, column] = upper * (1 - fy) + lower * fy
    return result


def pictures(n: int) -> torch.Tensor:
    return torch.rand((n, 1, HEIGHT, WIDTH), generator=generator(99))


def test_zero_ranges_leave_images_alone() -> None:
    images = pictures(3)
    assert torch.equal(Affine()(images, generator(0)), images)


def test_nearly_zero_ranges_nearly_leave_images_alone() -> None:
    images = pictures(3)
    torch.testing.assert_close(Affine(zoom_fraction=1e-7)(images, generator(0)), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "ranges",
    [
        Affine(rotation_degrees=40),
        Affine(shift_fraction=0.3),
        Affine(shear_degrees=40),
        Affine(zoom_fraction=0.5),
        Affine(rotation_degrees=40, shift_fraction=0.3, shear_degrees=40, zoom_fraction=0.5),
    ],
    ids=["rotation", "shift", "shear", "zoom", "all"],
)
def test_images_are_what_keras_makes_of_the_same_parameters(ranges: Affine) -> None:
    images = pictures(6)
    drawn = parameters(affine_matrices(ranges, images.shape, generator(5)))
    made = ranges(images, generator(5))
    for index in range(len(images)):
        expected = keras(images[index, 0].double().numpy(), {name: float(v[index]) for name, v in drawn.items()})
        np.testing.assert_allclose(made[index, 0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("ranges", "limits"),
    [
        (Affine(rotation_degrees=30), {"rotation": (-30, 30)}),
        (Affine(shift_fraction=0.25), {"shift_x": (-0.25 * WIDTH, 0.25 * WIDTH), "shift_y": (-6, 6)}),
        (Affine(shear_degrees=20), {"shear": (-20, 20)}),
        (Affine(zoom_fraction=0.4), {"zoom_x": (0.6, 1.4), "zoom_y": (0.6, 1.4)}),
        (
            Affine(30, 0.25, 20, 0.4),
            {
                "rotation": (-30, 30),
                "shift_x": (-2.5, 2.5),
                "shift_y": (-6, 6),
                "shear": (-20, 20),
                "zoom_x": (0.6, 1.4),
                "zoom_y": (0.6, 1.4),
            },
        ),
    ],
    ids=["rotation", "shift", "shear", "zoom", "all"],
)
def test_parameters_fill_their_ranges_evenly_and_never_leave_them(
    ranges: Affine, limits: dict[str, tuple[float, float]]
) -> None:
    """A rotation on an image that is not square has neither shear nor zoom; a shift is a fraction of its own side."""
    neutral = {"zoom_x": (1.0, 1.0), "zoom_y": (1.0, 1.0)}
    for name, values in parameters(affine_matrices(ranges, SHAPE, generator(1))).items():
        low, high = limits.get(name, neutral.get(name, (0.0, 0.0)))
        assert values.min() >= low - 1e-4, name
        assert values.max() <= high + 1e-4, name
        counts, _ = np.histogram(values, bins=4, range=(low, high)) if high > low else ([1000] * 4, None)
        assert np.abs(np.array(counts) - 1000).max() < 150, f"{name} is not uniform: {counts}"


def test_parameters_are_drawn_independently() -> None:
    drawn = np.array(list(parameters(affine_matrices(Affine(30, 0.25, 20, 0.4), SHAPE, generator(2))).values()))
    correlations = np.corrcoef(drawn) - np.eye(6)
    assert np.abs(correlations).max() < 5 / math.sqrt(SHAPE[0])


def test_pixels_from_outside_repeat_the_nearest_edge() -> None:
    """Columns that brighten from left to right, shifted by up to 90 %: nothing but their own values, edges widened."""
    columns = torch.linspace(0.5, 1, WIDTH).expand(200, 1, HEIGHT, WIDTH)
    made = Affine(shift_fraction=0.9)(columns, generator(3))
    assert made.min() == pytest.approx(0.5)
    assert made.max() == pytest.approx(1)
    assert (made[:, 0, :, :4] < 0.5 + 1e-6).all(2).all(1).any(), "some image repeats its left edge four times"
    assert (made[:, 0, :, -4:] > 1 - 1e-6).all(2).all(1).any(), "some image repeats its right edge four times"


def test_a_seed_draws_the_same_pictures_and_another_seed_others() -> None:
    ranges, images = Affine(10, 0.1, 10, 0.1), pictures(4)
    assert torch.equal(ranges(images, generator(7)), ranges(images, generator(7)))
    assert not torch.equal(ranges(images, generator(7)), ranges(images, generator(8)))


def test_a_generator_goes_on_from_batch_to_batch() -> None:
    ranges, images, one = Affine(10), pictures(4), generator(7)
    assert not torch.equal(ranges(images, one), ranges(images, one))


def test_images_of_one_batch_are_distorted_differently_and_channels_of_one_image_alike() -> None:
    same = pictures(1).expand(5, 3, HEIGHT, WIDTH)
    made = Affine(20, 0.1, 10, 0.1)(same, generator(4))
    assert made.shape == same.shape
    for index in range(1, 5):
        assert not torch.allclose(made[index], made[0], atol=1e-3)
    assert torch.equal(made[:, 0], made[:, 1])
    assert torch.equal(made[:, 0], made[:, 2])


STROKE = torch.ones(200, 1, 24, 9)
STROKE[:, :, :, 4] = 0  # a dark line, one pixel wide


def test_without_amounts_nothing_changes_and_affine_alone_is_affine() -> None:
    images = pictures(4)
    assert torch.equal(Augment()(images, generator(0)), images)
    affine = Affine(10, 0.1, 10, 0.1)
    assert torch.equal(Augment(affine)(images, generator(5)), affine(images, generator(5)))


def test_strokes_become_thicker_and_thinner_in_as_many_images_as_asked() -> None:
    made = Augment(stroke_fraction=0.25)(STROKE, generator(1))
    dark = (made[:, 0, 4] == 0).sum(1)  # pixels across the line
    thicker, thinner = (dark == 3).float().mean().item(), (dark == 0).float().mean().item()
    assert (thicker, thinner) == (pytest.approx(0.25, abs=0.1), pytest.approx(0.25, abs=0.1))
    assert set(dark.tolist()) == {0, 1, 3}


def test_strokes_of_small_images_stay_as_they_are() -> None:
    assert torch.equal(Augment(stroke_fraction=0.5)(STROKE[:, :, :23], generator(1)), STROKE[:, :, :23])


PAPER, INK = 0.9, 0.2


def crossed(fraction: float, n: int = 400) -> torch.Tensor:
    """Light paper with a dark dot, that lines are drawn over; how far each pixel is from paper to ink, (N, H, W)."""
    images = torch.full((n, 1, 50, 200), PAPER)
    images[:, :, 25, 100] = INK
    made = Augment(lines_fraction=fraction)(images, generator(8))
    made[:, :, 25, 100] = PAPER
    return ((PAPER - made) / (PAPER - INK))[:, 0]


def test_lines_cross_as_many_images_as_asked_in_about_the_color_of_the_ink() -> None:
    assert torch.equal(crossed(0.0), torch.zeros(400, 50, 200))
    strongest = crossed(0.3).amax((1, 2))
    visible = strongest > 0.1
    assert 0.35 < visible.float().mean() < 0.55  # 1 - .7^2, less those that begin at the edge and lead out
    assert strongest.max() <= 1 + 1e-5
    assert strongest[visible].median() > 0.6


def test_lines_are_a_sixtieth_to_a_fifteenth_of_the_height_thick_and_longer_than_wide() -> None:
    """Coverage fades over a pixel at either side, so what is covered is as if a line were sharp."""
    few = [covers for covers in crossed(0.05, 4000) if (covers > 0.1).sum() > 60]  # of which hardly one has two lines
    thickness, shape = [], []
    for covers in few:
        rows, columns = (covers > 0.1).nonzero(as_tuple=True)
        wide, high = columns.max() - columns.min() + 1, rows.max() - rows.min() + 1
        strength = covers[covers > 0.1].quantile(0.95)
        thickness.append(float(covers.sum() / strength / torch.hypot(wide.float(), high.float())))
        shape.append(float(wide / high))
    assert len(few) > 100
    assert np.quantile(thickness, 0.05) > 50 / 60
    assert np.quantile(thickness, 0.95) < 50 / 15 + 1
    assert np.median(shape) > 2


def test_colors_that_were_measured_before_give_the_same_lines() -> None:
    images = torch.randint(0, 256, (40, 3, 20, 60), generator=generator(1), dtype=torch.uint8)
    images[:20] //= 3
    colors = Arithmetic(torch.device("cpu"), bf16=False).to_colors(paper_and_ink(images))
    assert colors is not None
    inputs = images.float() / 255
    measured_before = Augment(lines_fraction=1.0)(inputs, generator(2), colors)
    torch.testing.assert_close(measured_before, Augment(lines_fraction=1.0)(inputs, generator(2)))
    others = Augment(lines_fraction=1.0)(inputs, generator(2), colors.flip(1))
    assert (others - measured_before).abs().max() > 0.1


def test_lines_on_dark_paper_are_light() -> None:
    images = torch.full((100, 1, 50, 200), 0.1)
    images[:, :, 25, 100] = 0.8
    made = Augment(lines_fraction=1.0)(images, generator(8))
    assert made.min() >= 0.1 - 1e-6
    assert (made.amax((1, 2, 3)) <= 0.8 + 1e-6).all()
    assert (made > 0.3).float().mean() > 0.01


def test_as_many_images_as_asked_are_inverted_and_no_others_touched() -> None:
    images = pictures(300)
    made = Augment(invert_fraction=0.3)(images, generator(9))
    inverted = torch.tensor([torch.allclose(a, 1 - b) for a, b in zip(made, images, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(made, images, strict=True)])
    assert (inverted | same).all()
    assert inverted.float().mean().item() == pytest.approx(0.3, abs=0.08)


def test_colors_change_each_on_its_own() -> None:
    made = Augment(contrast_fraction=0.3)(torch.full((50, 3, 8, 8), 0.5), generator(3))
    assert (made[:, 0] - made[:, 1]).abs().amax((1, 2)).median() > 0.02


def test_elastic_distortion_moves_by_about_so_many_pixels_and_neighbors_alike() -> None:
    ramp = torch.arange(48.0).expand(64, 1, 24, 48) / 48
    moved = (Augment(elastic_fraction=1 / 24)(ramp, generator(2)) - ramp) * 48
    inner = moved[..., 8:16, 12:36]
    assert 0.4 < inner.std() < 1.2
    assert (inner[..., 1:] - inner[..., :-1]).abs().mean() < inner.abs().mean()


def test_contrast_brightness_and_noise_stay_within_their_amounts() -> None:
    flat = torch.full((500, 1, 8, 8), 0.5)
    made = Augment(contrast_fraction=0.3)(flat, generator(3))
    assert torch.equal(made[:, :, :1, :1].expand_as(made), made)
    assert 0.5 * 0.7 - 0.2 <= made.min() < 0.3
    assert 0.7 < made.max() <= 0.5 * 1.3 + 0.2
    noisy = Augment(noise_fraction=0.1)(flat, generator(3))
    spread = noisy.std((1, 2, 3))
    assert 0.09 < spread.max() < 0.13
    assert spread.min() < 0.01


def test_a_seed_draws_the_same_distortions_again() -> None:
    augment, images = Augment(Affine(5), 0.5, 0.02, 0.2, 0.2, 0.5, 0.1), pictures(4)
    assert torch.equal(augment(images, generator(6)), augment(images, generator(6)))
    assert not torch.equal(augment(images, generator(6)), augment(images, generator(7)))
