"""Save and load what a training resumes from: weights, optimizer, epochs."""

import json
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from captcha_ray.storage import filesystem


def save_state(uri: str, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Write all that continues a training into one file. progress: JSON types."""
    state = optimizer.state_dict()
    tensors = {f"model.{name}": t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    for index, states in state["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": torch.as_tensor(t).detach().cpu().contiguous() for name, t in states.items()
        }
    filesystem.write(uri, save(tensors, metadata={"progress": json.dumps(progress)}))


def load_state(uri: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore what `save_state` wrote, and return its progress.

    An optimizer's tensors get the memory layout of their parameter: fused updates walk both by address, not by index.
    """
    data = filesystem.read(uri)
    length = int.from_bytes(data[:8], "little")
    progress: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["progress"])
    tensors = load(data)
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, name_of_state = name.split(".", 2)
            parameter = parameters[int(index)].detach()
            same = tensor.shape == parameter.shape
            states.setdefault(int(index), {})[name_of_state] = (
                torch.empty_like(parameter).copy_(tensor) if same else tensor
            )
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress
