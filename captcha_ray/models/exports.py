"""Keep the ONNX models of a checkpoint beside its weights, with what was measured of them. Needs no torch.

`model.json` holds their SHA-256, so that none is run that was made from other weights.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal

from captcha_ray.errors import InputError
from captcha_ray.models.fingerprint import DESCRIPTION, find_checkpoint
from captcha_ray.runs.directory import read_json, to_json
from captcha_ray.storage import filesystem

Form = Literal["fp32", "int8"]

FILES: dict[Form, str] = {"fp32": "model.onnx", "int8": "model_int8.onnx"}
"""Name the file of each form below the checkpoint's folder."""

MAX_LOSS = 0.001
"""Largest share of the validation strings that a precision may lose; of fewer than 1,000, not one."""


def save(uri: str, models: Mapping[Form, bytes], measured: Mapping[str, Any] | None = None) -> None:
    """Write ONNX models of a checkpoint, by form.

    measured: What was measured when they were compared with the network, as JSON types; earlier models are deleted
    then. None keeps them.
    """
    folder = find_checkpoint(uri)
    where = filesystem.join(folder, DESCRIPTION)
    files = dict(_exports(folder)) if measured is None else {"measured": dict(measured)}
    for form in FILES if measured is not None else ():
        if form not in models:
            filesystem.delete(filesystem.join(folder, FILES[form]))  # not one of these weights, or not good enough
    for form, model in models.items():
        filesystem.write(filesystem.join(folder, FILES[form]), model)
        files[form] = {"file": FILES[form], "sha256": hashlib.sha256(model).hexdigest()}
    filesystem.write(where, to_json({**read_json(where), "exports": files}))


def load(uri: str, form: Form) -> bytes | None:
    """Return an ONNX model of a checkpoint; None if it has none of this form.

    Raises InputError if the file is not the one that was made from these weights.
    """
    folder = find_checkpoint(uri)
    known = _exports(folder).get(form)
    if known is None:
        return None
    where = filesystem.join(folder, FILES[form])
    try:
        model = filesystem.read(where)
    except FileNotFoundError:
        return None
    if hashlib.sha256(model).hexdigest() != known["sha256"]:
        raise InputError(f"{where} is not the model that {DESCRIPTION} names; jobs/export.py makes it anew")
    return model


def is_listed(uri: str, form: Form) -> bool:
    """Return whether a checkpoint's description names a model of this form, whose file may be missing."""
    return form in _exports(find_checkpoint(uri))


def has(uri: str, form: Form) -> bool:
    """Return whether a checkpoint has a model of this form."""
    folder = find_checkpoint(uri)
    return is_listed(uri, form) and filesystem.exists(filesystem.join(folder, FILES[form]))


def measured(uri: str) -> dict[str, Any]:
    """Return what was measured when a checkpoint's models were exported; empty if there are none."""
    found: dict[str, Any] = _exports(find_checkpoint(uri)).get("measured", {})
    return found


def loses_little(measured: Mapping[str, Any], name: str) -> bool:
    """Return whether an engine's precision recognizes as many texts as torch in fp32, except for `MAX_LOSS` of them.

    Args:
        measured: As `evaluation.exporting.export` returns it.
        name: A precision, of OpenVINO, or `onnxruntime int8`; if it was not measured, nothing is known to be lost.
    """
    if name not in measured:
        return True
    lost: int = measured["torch"]["right"] - measured[name]["right"]
    allowed: int = math.floor(MAX_LOSS * measured["num_images"])
    return lost <= allowed


def _exports(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(filesystem.join(folder, DESCRIPTION)).get("exports", {})
    return found
