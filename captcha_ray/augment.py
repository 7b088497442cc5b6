"""Random affine distortion of a batch, on the device the batch is on, seeded by a generator.

The parameters mean what they mean in Keras' `ImageDataGenerator` since its axes were put right (keras-preprocessing
pull request 318, 2020): each image draws a rotation, a shift per axis, a shear (a slant along x) and a zoom per axis,
uniformly; pixels from outside repeat the nearest edge. Unlike there, the center is the image's own where it is not
square.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Affine:
    """Ranges of the distortion; zero everywhere leaves images alone."""

    rotation_degrees: float = 0.0
    shift_fraction: float = 0.0
    shear_degrees: float = 0.0
    zoom_fraction: float = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """float (N, C, H, W) -> the same shape. The generator must live on the images' device."""
        if not any(dataclasses.astuple(self)):
            return images
        theta = affine_matrices(self, images.shape, generator)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def affine_matrices(ranges: Affine, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Random output-to-input maps in normalized coordinates, float (N, 2, 3), for images of (N, C, H, W).

    R(rotation) @ T(shift) @ S(shear) @ Z(zoom) about the center, in pixels, as Keras composes them; width and height
    are divided out last, so that a rotation stays one on images that are not square.
    """
    n, _, height, width = shape
    device = generator.device
    draw = torch.rand((6, n), generator=generator, device=device) * 2 - 1  # uniform in [-1, 1)
    angle = draw[0] * math.radians(ranges.rotation_degrees)
    shear = draw[1] * math.radians(ranges.shear_degrees)
    zoom_x, zoom_y = 1 + draw[2:4] * ranges.zoom_fraction
    shift_x, shift_y = draw[4] * ranges.shift_fraction * width, draw[5] * ranges.shift_fraction * height
    cos, sin = torch.cos(angle), torch.sin(angle)
    # R(angle) @ [[1, -sin(shear)], [0, cos(shear)]] = [[cos, -sin(angle + shear)], [sin, cos(angle + shear)]]
    xx, xy, x = cos * zoom_x, -torch.sin(angle + shear) * zoom_y, cos * shift_x - sin * shift_y
    yx, yy, y = sin * zoom_x, torch.cos(angle + shear) * zoom_y, sin * shift_x + cos * shift_y
    # affine_grid's coordinates run from -1 to 1 over width and over height
    row_x = torch.stack([xx, xy * (height / width), x * (2 / width)], dim=1)
    row_y = torch.stack([yx * (width / height), yy, y * (2 / height)], dim=1)
    return torch.stack([row_x, row_y], dim=1)
