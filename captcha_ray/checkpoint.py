"""A trained network on a disk or in a bucket: safetensors weights and a JSON description. No pickle anywhere.

`model.json` holds the ModelSpec and a fingerprint of it and the weights; loading verifies that the two agree, so half a
checkpoint is never taken for a whole one. `resume.safetensors` is one file, and so is written whole or not at all.
"""

import hashlib
import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from captcha_ray import runs, storage
from captcha_ray.config import InputError
from captcha_ray.models import ModelSpec, build_model

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"


def save_model(folder: str, model: nn.Module, spec: ModelSpec) -> None:
    """Writes the weights, then the description, below a folder URI."""
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    storage.write(storage.join(folder, WEIGHTS), weights)
    description = {
        "model": spec.to_dict(),
        "fingerprint": fingerprint(spec, weights),
        "versions": runs.versions(),
    }
    storage.write(storage.join(folder, DESCRIPTION), runs.to_json(description))


def fingerprint(spec: ModelSpec, weights: bytes) -> str:
    """SHA-256, hexadecimal, of all that decides what a network reads: weights, architecture, charset, slots, image."""
    decisive = {name: value for name, value in spec.to_dict().items() if name != "dropout"}
    description = json.dumps(decisive, sort_keys=True).encode()
    return hashlib.sha256(len(description).to_bytes(8, "big") + description + weights).hexdigest()


def load_spec(uri: str) -> ModelSpec:
    """What the network of a run or checkpoint folder reads. Raises InputError where there is no checkpoint."""
    return _load_description(find_checkpoint(uri))[0]


def identify(uri: str) -> tuple[ModelSpec, str]:
    """(what the network reads, its fingerprint), of a run or a checkpoint folder.

    Raises InputError where there is none, or where its weights do not have the fingerprint that its description says.
    """
    spec, model_id, _ = _load_verified(find_checkpoint(uri))
    return spec, model_id


def load_model(uri: str) -> tuple[nn.Module, ModelSpec, str]:
    """(network, what it reads, fingerprint) of a run or of a checkpoint folder, on the CPU, in evaluation mode.

    Raises InputError where there is none, or where weights, description and architecture do not belong together.
    """
    folder = find_checkpoint(uri)
    spec, model_id, weights = _load_verified(folder)
    model = build_model(spec)
    try:
        model.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError) as error:
        sentence = " ".join(str(error).split())[:300]
        raise InputError(f"{folder}/{WEIGHTS} does not fit the described {spec.network}: {sentence}") from error
    return model.eval(), spec, model_id


def _load_verified(folder: str) -> tuple[ModelSpec, str, bytes]:
    """(spec, fingerprint, weights) of a checkpoint folder whose two files belong together."""
    spec, expected = _load_description(folder)
    try:
        weights = storage.read(storage.join(folder, WEIGHTS))
    except FileNotFoundError:
        raise InputError(f"{folder} has no {WEIGHTS}") from None
    if fingerprint(spec, weights) != expected:
        raise InputError(f"{folder}/{WEIGHTS} and {DESCRIPTION} do not belong together: the fingerprint differs")
    return spec, expected, weights


def _load_description(folder: str) -> tuple[ModelSpec, str]:
    """(spec, fingerprint that its weights must give)."""
    description = runs.read_json(storage.join(folder, DESCRIPTION))
    try:
        return ModelSpec.from_dict(description["model"]), description["fingerprint"]
    except InputError as error:
        raise InputError(f"{folder}/{DESCRIPTION} describes no model: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/{DESCRIPTION} describes no model: {type(error).__name__}, {error}") from error


def find_checkpoint(uri: str) -> str:
    """The checkpoint folder of a run, or the folder itself where it is one. Raises InputError for neither."""
    uri = storage.absolute(uri)
    for folder in (storage.join(uri, "checkpoint"), uri):
        if storage.exists(storage.join(folder, DESCRIPTION)):
            return folder
    raise InputError(f"{uri} holds no checkpoint; jobs/train.py makes one")


def save_state(uri: str, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Writes all that continues a training run into one file. progress: JSON types."""
    state = optimizer.state_dict()
    tensors = {f"model.{name}": t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    for index, slots in state["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": torch.as_tensor(t).detach().cpu().contiguous() for name, t in slots.items()
        }
    storage.write(uri, save(tensors, metadata={"progress": json.dumps(progress)}))


def load_state(uri: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restores what `save_state` wrote; returns its progress.

    An optimizer's tensors get the memory layout of their parameter: fused updates walk both by address, not by index.
    """
    data = storage.read(uri)
    length = int.from_bytes(data[:8], "little")
    progress: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["progress"])
    tensors = load(data)
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            parameter = parameters[int(index)].detach()
            same = tensor.shape == parameter.shape
            slots.setdefault(int(index), {})[slot] = torch.empty_like(parameter).copy_(tensor) if same else tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress
