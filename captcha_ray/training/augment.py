"""Distort a batch at random, on its device, seeded by a generator.

The affine parameters mean what they mean in Keras' `ImageDataGenerator` since its axes were corrected
(keras-preprocessing pull request 318, 2020): each image draws a rotation, a shift per axis, a shear (a slant along x)
and a zoom per axis, uniformly; pixels from outside repeat the nearest edge. Unlike there, the center of an image that
is not square is its own.
"""

import dataclasses
import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from captcha_ray.recipes.config import TrainConfig

MIN_STROKE_HEIGHT = 24
"""Height of an image in pixels below which a stroke is too thin to lose a pixel."""


@dataclasses.dataclass(frozen=True)
class Affine:
    """Ranges of an affine distortion; zeros leave images as they are."""

    rotation_degrees: float = 0.0
    shift_fraction: float = 0.0
    shear_degrees: float = 0.0
    zoom_fraction: float = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Distort float (N, C, H, W). The generator must be on the images' device."""
        if not any(dataclasses.astuple(self)):
            return images
        return _sample(images, self.grid(images.shape, generator))

    def grid(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Return where each pixel comes from, in normalized coordinates, float (N, H, W, 2)."""
        return F.affine_grid(affine_matrices(self, shape, generator), list(shape), align_corners=False)


@dataclasses.dataclass(frozen=True)
class Augment:
    """Lines, affine and elastic distortion, stroke width, contrast, brightness, inversion and noise, in this order.

    lines_fraction: share of images crossed by a line in about their ink's color, and of those crossed by a second one.
    elastic_fraction: standard deviation of local displacements, of the height; they vary over 12 pixels, as in P.
    Simard et al., "Best practices for convolutional neural networks" (2003). stroke_fraction: share of images whose
    dark parts grow by a pixel, and share whose light parts do. contrast_fraction: largest change of contrast, of each
    color on its own; brightness changes by up to two thirds of it. invert_fraction: share of images whose light and
    dark change places. noise_fraction: largest standard deviation of noise, of the range.
    """

    affine: Affine = Affine()
    lines_fraction: float = 0.0
    elastic_fraction: float = 0.0
    stroke_fraction: float = 0.0
    contrast_fraction: float = 0.0
    invert_fraction: float = 0.0
    noise_fraction: float = 0.0

    @classmethod
    def of(cls, config: TrainConfig) -> "Augment":
        """Return the distortion that a config names."""
        affine = Affine(config.rotation_degrees, config.shift_fraction, config.shear_degrees, config.zoom_fraction)
        own = (field.name for field in dataclasses.fields(cls) if field.name != "affine")
        return cls(affine, **{name: getattr(config, name) for name in own})

    def __call__(self, images: Tensor, generator: torch.Generator, colors: Tensor | None = None) -> Tensor:
        """Distort images.

        Args:
            images: float (N, C, H, W) in [0, 1].
            generator: On the images' device.
            colors: Paper and ink of each image, float (N, 2, C), see `paper_and_ink`; None to measure them.
        """
        n, channels, height, width = images.shape
        device = images.device

        def draw(*shape: int) -> Tensor:  # uniform in [-1, 1)
            return torch.rand(shape, generator=generator, device=device) * 2 - 1

        if self.lines_fraction:
            colors = paper_and_ink(images) if colors is None else colors
            images = _cross(images, self.lines_fraction, colors, generator)
        if self.elastic_fraction:
            coarse = (n, 2, max(height // 12, 2), max(width // 12, 2))
            waves = torch.randn(coarse, generator=generator, device=device)
            pixels = 2 * self.elastic_fraction * height
            waves = waves * _constant(device, (pixels / width, pixels / height))[:, None, None]
            waves = F.interpolate(waves, (height, width), mode="bicubic", align_corners=False)
            images = _sample(images, self.affine.grid(images.shape, generator) + waves.permute(0, 2, 3, 1))
        else:
            images = self.affine(images, generator)
        if self.stroke_fraction or self.invert_fraction or self.noise_fraction:
            stroke, invert, noise = draw(3, n, 1, 1, 1)
        if self.stroke_fraction and height >= MIN_STROKE_HEIGHT:
            images = torch.where(stroke < 2 * self.stroke_fraction - 1, -F.max_pool2d(-images, 3, 1, 1), images)
            images = torch.where(stroke >= 1 - 2 * self.stroke_fraction, F.max_pool2d(images, 3, 1, 1), images)
        if self.contrast_fraction:
            contrast, brightness = draw(2, n, channels, 1, 1) * self.contrast_fraction
            images = torch.addcmul(images, images, contrast).add(brightness, alpha=2 / 3)
        if self.invert_fraction:
            images = torch.where(invert < 2 * self.invert_fraction - 1, 1 - images, images)
        if self.noise_fraction:
            spread = torch.randn(images.shape, generator=generator, device=device)
            images = torch.addcmul(images, noise, spread, value=self.noise_fraction)
        return images


def paper_and_ink(images: Tensor) -> Tensor:
    """Return the median of each channel, and of its darkest and its lightest value the one farther from the median.

    Args:
        images: (N, C, H, W), of any type.

    Returns:
        (N, 2, C) of the same type.
    """
    values = images.flatten(2)
    paper, dark, light = values.median(2).values, values.amin(2), values.amax(2)
    return torch.stack([paper, torch.where(paper - dark > light - paper, dark, light)], 1)


def _cross(images: Tensor, fraction: float, colors: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a straight line over that share of the images, and then another one.

    A line is anywhere, rather flat than steep, a tenth to seven tenths of the width long, 1/60 to 1/15 of the height
    thick, and from halfway between paper and ink to ink.
    """
    n, channels, height, width = images.shape
    device = images.device
    angle, flatness, right, down, length, thickness, chosen = torch.rand(
        (7, 2, n, 1, 1), generator=generator, device=device
    )
    share = torch.rand((2, n, channels), generator=generator, device=device)
    color = torch.lerp(colors[:, 0], colors[:, 1], 0.5 + 0.5 * share)
    angle = (angle - 0.5) * flatness * math.pi
    cos, sin = torch.cos(angle), torch.sin(angle)
    x = torch.arange(width, device=device) - right * width  # (2, N, 1, W)
    y = torch.arange(height, device=device)[:, None] - down * height  # (2, N, H, 1)
    along = (x * cos + y * sin).clamp(min=0).minimum((0.1 + 0.6 * length) * width)
    distance = torch.hypot(x - along * cos, y - along * sin)  # (2, N, H, W)
    covers = ((1 + 3 * thickness) / 120 * height + 0.5 - distance).clamp(0, 1) * (chosen < fraction)
    for line in range(2):
        images = torch.lerp(images, color[line, :, :, None, None], covers[line, :, None])
    return images


@functools.cache
def _constant(device: torch.device, values: tuple[float, ...]) -> Tensor:
    """Return numbers on a device, float32 (len(values),); they are copied there once."""
    return torch.tensor(values, device=device)


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def affine_matrices(ranges: Affine, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return random output-to-input maps in normalized coordinates, float (N, 2, 3), for images of (N, C, H, W).

    R(rotation) @ T(shift) @ S(shear) @ Z(zoom) about the center, in pixels, as Keras composes them. Width and height
    are divided out last, so that a rotation stays one on images that are not square.
    """
    n, _, height, width = shape
    device = generator.device
    turn, slant = math.radians(ranges.rotation_degrees), math.radians(ranges.shear_degrees)
    shift = ranges.shift_fraction
    limits = (turn, slant, ranges.zoom_fraction, ranges.zoom_fraction, shift * width, shift * height)
    draw = torch.rand((6, n), generator=generator, device=device) * 2 - 1  # uniform in [-1, 1)
    angle, shear, zoom_x, zoom_y, shift_x, shift_y = draw * _constant(device, limits)[:, None]
    zoom_x, zoom_y = 1 + zoom_x, 1 + zoom_y
    angles = torch.stack([angle, angle + shear])
    (cos, cos_slanted), (sin, sin_slanted) = torch.cos(angles), torch.sin(angles)
    # R(angle) @ [[1, -sin(shear)], [0, cos(shear)]] = [[cos, -sin(angle + shear)], [sin, cos(angle + shear)]]
    rows = [
        *(cos * zoom_x, -sin_slanted * zoom_y, cos * shift_x - sin * shift_y),
        *(sin * zoom_x, cos_slanted * zoom_y, sin * shift_x + cos * shift_y),
    ]
    # affine_grid's coordinates run from -1 to 1 over width and over height
    normalized = _constant(device, (1.0, height / width, 2 / width, width / height, 1.0, 2 / height))
    return (torch.stack(rows, 1) * normalized).view(n, 2, 3)
