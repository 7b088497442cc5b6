"""A trained network on a disk or in a bucket: safetensors weights and a JSON description. No pickle anywhere.

What `identity` says of a checkpoint is verified when it is loaded. `resume.safetensors` is one file, and so is written
whole or not at all.
"""

import dataclasses
import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from captcha_ray import identity, runs, storage
from captcha_ray.config import InputError
from captcha_ray.identity import DESCRIPTION, WEIGHTS
from captcha_ray.models import Network, build_model
from captcha_ray.spec import ModelSpec


def save_model(folder: str, model: nn.Module, spec: ModelSpec) -> None:
    """Writes the weights, then the description, below a folder URI."""
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    storage.write(storage.join(folder, WEIGHTS), weights)
    _describe(folder, spec, weights)


def set_temperature(uri: str, temperature: float) -> None:
    """Has the network of a run or checkpoint folder divide its outputs by that; it is another network from then on.

    Raises InputError where there is none, or its parts do not belong together.
    """
    folder = identity.find_checkpoint(uri)
    spec, _, weights = identity.load_verified(folder)
    _describe(folder, dataclasses.replace(spec, temperature=temperature), weights)


def _describe(folder: str, spec: ModelSpec, weights: bytes) -> None:
    description = {
        "model": spec.to_dict(),
        "fingerprint": identity.fingerprint(spec, weights),
        "versions": runs.versions(),
    }
    storage.write(storage.join(folder, DESCRIPTION), runs.to_json(description))


def load_model(uri: str) -> tuple[Network, ModelSpec, str]:
    """(network, what it reads, fingerprint) of a run or of a checkpoint folder, on the CPU, in evaluation mode.

    Raises InputError where there is none, or where weights, description and architecture do not belong together.
    """
    folder = identity.find_checkpoint(uri)
    spec, model_id, weights = identity.load_verified(folder)
    model = build_model(spec)
    try:
        model.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError) as error:
        sentence = " ".join(str(error).split())[:300]
        raise InputError(f"{folder}/{WEIGHTS} does not fit the described {spec.network}: {sentence}") from error
    return model.eval(), spec, model_id


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
