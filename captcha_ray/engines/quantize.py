"""Turn an ONNX model of floats into one of 8-bit integers."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from captcha_ray.engines.engine import images_at_once

BATCH_SIZE = 64
"""Most images at a time, so that what the model computes of them stays within some hundred megabytes."""


def to_int8(model: bytes, pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return an ONNX model whose convolutions and products are of 8 bits.

    Weights are scaled by channel, activations by the range that they have on images; B. Jacob et al., "Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018).

    Args:
        model: As `models.export.to_onnx` makes it.
        pixels: Some hundred images, uint8 (N, H, W, C), such as those that the network will see.
    """
    with tempfile.TemporaryDirectory(prefix="captcha_ray-") as folder:
        path = Path(folder) / "int8.onnx"
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # it advises to optimize the graph first, which torch's exporter has done
        try:
            quantize_static(
                onnx.load_from_string(model),
                path,
                _Images(model, pixels),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            root.setLevel(level)
        return path.read_bytes()


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Batches of images as the quantizer takes them: None after the last."""

    def __init__(self, model: bytes, pixels: npt.NDArray[np.uint8]) -> None:
        self._name = onnx.load_from_string(model).graph.input[0].name
        at_once = min(images_at_once(pixels), BATCH_SIZE)
        self._batches: Iterator[npt.NDArray[np.uint8]] = (
            pixels[start : start + at_once] for start in range(0, len(pixels), at_once)
        )

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}
