"""Define what an engine does, and the flags' words for engine and precision. Imports no engine."""

import math
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Name = Literal["auto", "openvino", "onnxruntime", "torch"]

Precision = Literal["auto", "int8", "bf16", "fp32"]


MAX_PIXELS_AT_ONCE = 4 << 20
"""Pixels in a network at once, 256 images of 64x256: what a layer makes of them takes hundreds of MB already."""


def images_at_once(pixels: npt.NDArray[np.uint8]) -> int:
    """Return how many of images, uint8 (N, H, W, C), a network may be given at once."""
    return max(MAX_PIXELS_AT_ONCE // math.prod(pixels.shape[1:3]), 1)


class Engine(Protocol):
    """A network that is ready to compute.

    name: engine and precision, such as `openvino int8`.
    """

    name: str

    def log_probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map uint8 (N, H, W, C) to log-probabilities at the network's temperature, float32.

        Those are of columns, (N, T, K + 1), for `column_cnn`, and of positions, (N, S, K), for other networks.
        """
