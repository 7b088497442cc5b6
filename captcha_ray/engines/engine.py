"""Define what an engine does, and the flags' words for engine and precision. Imports no engine."""

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Name = Literal["auto", "openvino", "onnxruntime", "torch"]

Precision = Literal["auto", "int8", "bf16", "fp32"]


class Engine(Protocol):
    """A network that is ready to compute.

    name: engine and precision, such as `openvino int8`.
    """

    name: str

    def log_probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map uint8 (N, H, W, C) to log-probabilities at the network's temperature, float32.

        Those are of columns, (N, T, K + 1), for `column_cnn`, and of positions, (N, S, K), for other networks.
        """
