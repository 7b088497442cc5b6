"""Images that a network learns in a few steps, and batches of them."""

import numpy as np
import numpy.typing as npt
import torch

from captcha_ray.images.spec import ImageSpec
from captcha_ray.models.device import Arithmetic
from captcha_ray.models.networks import Network, build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.training.loop import Batch

CPU = torch.device("cpu")
FP32 = Arithmetic(CPU, bf16=False)
TINY = ModelSpec(network="multi_head_cnn", image=ImageSpec(height=10, width=12), charset="abc", max_length=2)
Images = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def labelled(spec: ModelSpec, n: int, seed: int = 0) -> Images:
    """Images whose character k of slot s is a bright row at height (3 k + s) of that slot's columns, in noise."""
    rng = np.random.default_rng(seed)
    height, width, channels = spec.image.shape
    targets = rng.integers(0, len(spec.charset), (n, spec.max_length))
    images = rng.integers(0, 100, (n, height, width, channels), np.uint8)
    side = width // spec.max_length
    for image, row in zip(images, targets, strict=True):
        for position, character in enumerate(row):
            image[(3 * character + position) % height, position * side : (position + 1) * side] = 255
    return images, targets


def batch(images: npt.NDArray[np.uint8], targets: npt.NDArray[np.int64], step_images: int | None = None) -> Batch:
    return Batch(torch.from_numpy(images), torch.from_numpy(targets), step_images or len(images))


def new_model(spec: ModelSpec, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build_model(spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
