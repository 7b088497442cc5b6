"""Run an ONNX model with OpenVINO on the CPU."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino

from captcha_ray.engines.engine import Precision

VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""Instructions, as Linux names them, without which int8 is no faster than floats."""


class OpenVINOEngine:
    """An ONNX model on the CPU.

    onnx: The model. precision: int8 if the model is one of int8. num_threads: 0 for one per core.
    """

    def __init__(self, onnx: bytes, precision: Precision, num_threads: int = 0) -> None:
        self.name = f"openvino {precision}"
        core = openvino.Core()
        threads = {"INFERENCE_NUM_THREADS": num_threads} if num_threads else {}
        self._model = core.compile_model(
            core.read_model(onnx),
            "CPU",
            {
                "NUM_STREAMS": 1,
                "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
                "ENABLE_CPU_PINNING": False,  # several workers of one node would be pinned to the same cores
                **threads,
            },
        )

    def log_probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map pixels to log-probabilities, see `Engine`."""
        return np.array(self._model(np.ascontiguousarray(pixels))[0], np.float32)  # OpenVINO uses its memory again


def best_precision(*, int8: bool, bf16: bool) -> Precision:
    """Return the precision that this machine's CPU is fastest in. int8, bf16: the network loses nothing in it."""
    if int8 and VNNI & _cpu_flags():
        return "int8"
    return "bf16" if bf16 and "BF16" in _capabilities() else "fp32"


def _capabilities() -> list[str]:
    capabilities: list[str] = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return capabilities


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
