"""Load a network on the engine that was named, or on the one that is fastest here.

Engines are imported when they are needed: a worker that recognizes with OpenVINO loads no torch.
"""

import contextlib
import importlib
import importlib.util
from typing import Any

from captcha_ray.engines.engine import Engine, Name, Precision
from captcha_ray.errors import InputError
from captcha_ray.models import exports, fingerprint
from captcha_ray.models.exports import Form
from captcha_ray.models.spec import ModelSpec


def load(
    uri: str, name: Name = "auto", precision: Precision = "auto", device: str = "cpu", num_threads: int = 0
) -> tuple[Engine, ModelSpec, str]:
    """Load the network of a run or checkpoint folder; return it with its description and fingerprint.

    Args:
        uri: Local or in a bucket.
        name: auto for OpenVINO on the CPU, torch on another device.
        precision: auto for the fastest that loses nothing: int8 if the network has passed in it and the CPU has
            instructions for it, else bf16 if it has those, else fp32; always fp32 with onnxruntime.
        device: In torch's words; a visible GPU is not taken by itself.
        num_threads: Of OpenVINO and ONNX Runtime; 0 for one per core.

    Raises:
        InputError: There is no checkpoint, its parts do not belong together, the engine is not installed, or it cannot
            compute on this device or in this precision.
    """
    name = check(uri, name, precision, device)
    if name == "torch":
        return _with_torch(uri, precision, device)
    spec, model_id = fingerprint.load_spec_and_fingerprint(uri)
    engine: Any = _import(name)
    if precision == "auto":
        precision = "fp32"
        if name == "openvino":
            bf16 = exports.loses_little(exports.measured(uri), "bf16")
            precision = engine.best_precision(int8=exports.has(uri, "int8"), bf16=bf16)
    form: Form = "int8" if precision == "int8" else "fp32"
    model = exports.load(uri, form)
    if model is None:
        assert form == "fp32", "int8 is chosen where it is there"
        model = export(uri)
    kind = engine.OpenVINOEngine if name == "openvino" else engine.ONNXRuntimeEngine
    return kind(model, precision, num_threads), spec, model_id


def check(uri: str, name: Name, precision: Precision, device: str) -> Name:
    """Return the engine that `load` takes. Raises InputError as `load` does, where nothing need be loaded for it."""
    if name == "auto":
        name = "openvino" if device == "cpu" else "torch"
    if name == "torch":
        if precision == "int8":
            raise InputError("engine torch computes in fp32 or bf16; use openvino for int8")
        return name
    if device != "cpu":
        raise InputError(f"engine {name} computes on the CPU; use torch on {device}")
    if name == "onnxruntime" and precision == "bf16":
        raise InputError("engine onnxruntime computes in fp32 or int8; use openvino or torch for bf16")
    if precision == "int8" and (why := _why_no_int8(uri, name)):
        raise InputError(f"{uri} cannot be run in int8: {why}")
    if importlib.util.find_spec(name) is None:
        raise InputError(f"engine {name} cannot be loaded (it is not installed); pip install {name}, or use torch")
    return name


def _with_torch(uri: str, precision: Precision, device: str) -> tuple[Engine, ModelSpec, str]:
    assert precision != "int8", "which `check` has refused"
    from captcha_ray.engines.torch_engine import TorchEngine  # noqa: PLC0415 -- imports torch
    from captcha_ray.models.checkpoint import load_model  # noqa: PLC0415

    model, spec, model_id = load_model(uri)
    return TorchEngine(model, spec, device, precision), spec, model_id


def _import(name: Name) -> Any:
    try:
        return importlib.import_module(f"captcha_ray.engines.{name}_engine")
    except ImportError as error:
        raise InputError(f"engine {name} cannot be loaded ({error}); pip install {name}, or use torch") from error


def _why_no_int8(uri: str, name: Name) -> str:
    """Return why an engine does not run a checkpoint in int8; empty if it does."""
    measured = exports.measured(uri)
    by = "onnxruntime int8" if name == "onnxruntime" and "onnxruntime int8" in measured else "int8"
    if not exports.loses_little(measured, by):
        total, right, by_torch = measured["num_images"], measured[by]["right"], measured["torch"]["right"]
        return f"of {total:,} validation images {by} recognizes {right:,}, and torch in fp32 {by_torch:,}"
    if exports.has(uri, "int8"):
        return ""
    if exports.is_listed(uri, "int8"):
        return "the file of that form is missing; jobs/export.py makes it anew"
    return "it has no such form; a training with at least 50 validation images makes one"


def prepare(uri: str, name: Name, device: str) -> str:
    """Make the ONNX model of a checkpoint that has none, once for all workers; return a sentence about it, or ""."""
    if name == "torch" or device != "cpu" or exports.has(uri, "fp32"):
        return ""
    export(uri)
    if exports.has(uri, "fp32"):
        return f"{uri} had no ONNX model; one is kept there now"
    return f"{uri} has no ONNX model and cannot be written; each worker makes one for itself"


def export(uri: str) -> bytes:
    """Return an ONNX model of floats of a checkpoint, and keep it there if the folder can be written."""
    from captcha_ray.models import checkpoint  # noqa: PLC0415 -- imports torch
    from captcha_ray.models.export import to_onnx  # noqa: PLC0415

    model, spec, _ = checkpoint.load_model(uri)
    made = to_onnx(model, spec)
    with contextlib.suppress(OSError):  # somebody else's run may be read, and no more
        exports.save(uri, {"fp32": made})
    return made
