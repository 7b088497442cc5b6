"""Export a trained network as ONNX models, and measure what is lost by them on validation images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from captcha_ray.datasets import schema
from captcha_ray.engines.engine import Engine, Precision
from captcha_ray.engines.onnxruntime_engine import ONNXRuntimeEngine
from captcha_ray.engines.openvino_engine import OpenVINOEngine
from captcha_ray.engines.quantize import to_int8
from captcha_ray.engines.torch_engine import TorchEngine
from captcha_ray.evaluation.evaluate import BATCH_SIZE
from captcha_ray.models import checkpoint, exports
from captcha_ray.models.export import to_onnx
from captcha_ray.models.spec import ModelSpec
from captcha_ray.recognizer import Recognizer

MIN_IMAGES = 50
"""Least validation images by which int8 is judged; with fewer there is no such form."""

OFFERED = {"fp32": "so --engine torch is safer", "bf16": "so it is used only if it is asked for"}
"""Say what becomes of a precision that loses texts."""

NUM_RANGE_IMAGES = 300
"""Images from which the ranges of int8 are taken."""


def export(uri: str, val: pa.Table | None) -> dict[str, Any]:
    """Write the ONNX models of a run's network: one of floats and, if it loses nothing, one of 8-bit integers.

    Args:
        uri: Of the run or checkpoint.
        val: Rows of shards that the network has not learned from; None if there are none.

    Returns:
        What was measured, as JSON types: `num_images`, and for torch in fp32, OpenVINO in each precision and ONNX
            Runtime in int8 how many texts are `right` and how many are `as_torch`. Empty without validation images.
    """
    network, spec, _ = checkpoint.load_model(uri)
    model = to_onnx(network, spec)
    if val is None or not len(val):
        exports.save(uri, {"fp32": model})
        return {}
    images, truths = schema.unpack_images(val["image"], spec.image), val["text"].to_pylist()
    expected = _texts(TorchEngine(network, spec, precision="fp32"), spec, images)
    measured: dict[str, Any] = {"num_images": len(truths), "torch": {"right": _num_equal(expected, truths)}}

    def measure(name: str, engine: Engine) -> None:
        texts = _texts(engine, spec, images)
        measured[name] = {"right": _num_equal(texts, truths), "as_torch": _num_equal(texts, expected)}

    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        measure(precision, OpenVINOEngine(model, precision))
    forms: dict[exports.Form, bytes] = {"fp32": model}
    if len(truths) >= MIN_IMAGES:
        int8 = to_int8(model, images[:NUM_RANGE_IMAGES])
        measure("int8", OpenVINOEngine(int8, "int8"))
        measure("onnxruntime int8", ONNXRuntimeEngine(int8, "int8"))
        if exports.loses_little(measured, "int8"):
            forms["int8"] = int8
    exports.save(uri, forms, measured)
    return measured


def describe(measured: Mapping[str, Any]) -> list[str]:
    """Return a line for a person per precision that was measured."""
    if not measured:
        return ["there are no validation images, so nothing was measured, and int8 is not offered; --shards names some"]
    total = measured["num_images"]
    lines = [f"of {total:,} validation texts, torch in fp32 recognizes {measured['torch']['right']:,}"]
    for name, seen in measured.items():
        if isinstance(seen, dict) and "as_torch" in seen:
            lost = "" if exports.loses_little(measured, name) else f": too little, {OFFERED.get(name, 'not offered')}"
            lines.append(f"{name}: {seen['right']:,}; {seen['as_torch']:,} as torch does{lost}")
    if "int8" not in measured:
        lines.append(f"int8: not offered; judging it takes at least {MIN_IMAGES} validation images")
    return lines


def _texts(engine: Engine, spec: ModelSpec, images: npt.NDArray[np.uint8]) -> list[str]:
    recognizer = Recognizer(engine, spec)
    batches = (images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))
    return [one.text for batch in batches for one in recognizer.predictions(recognizer.log_probabilities(batch))]


def _num_equal(texts: list[str], others: list[str]) -> int:
    return sum(text == other for text, other in zip(texts, others, strict=True))
