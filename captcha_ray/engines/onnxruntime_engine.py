"""Run an ONNX model with ONNX Runtime on the CPU."""

import numpy as np
import numpy.typing as npt
import onnxruntime

from captcha_ray.engines.engine import Precision


class ONNXRuntimeEngine:
    """An ONNX model on the CPU.

    onnx: The model. precision: int8 if the model is one of int8, else fp32. num_threads: 0 for one per core.
    """

    def __init__(self, onnx: bytes, precision: Precision, num_threads: int = 0) -> None:
        self.name = f"onnxruntime {precision}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])

    def log_probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map pixels to log-probabilities, see `Engine`."""
        name = self._session.get_inputs()[0].name
        found: npt.NDArray[np.float32] = self._session.run(None, {name: np.ascontiguousarray(pixels)})[0]
        return found
