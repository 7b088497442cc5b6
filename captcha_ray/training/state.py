"""Save and load what a training resumes from: weights, optimizer, epochs, and how far the next one is."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from captcha_ray.errors import InputError
from captcha_ray.storage import filesystem


def save_state(
    uri: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    others: Mapping[str, Tensor] | None = None,
) -> None:
    """Write all that continues a training into one file. progress: JSON types. others: tensors beside, by name."""
    state = optimizer.state_dict()
    tensors = {f"model.{name}": t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    for index, states in state["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": torch.as_tensor(t).detach().cpu().contiguous() for name, t in states.items()
        }
    tensors |= {f"other.{name}": tensor for name, tensor in (others or {}).items()}
    filesystem.write(uri, save(tensors, metadata={"progress": json.dumps(progress)}))


@dataclasses.dataclass(frozen=True)
class State:
    """Holds what `save_state` wrote. tensors: by their names in the file."""

    progress: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, uri: str) -> Self:
        """Read a file. Raises InputError if it is damaged, and as `filesystem.read` does."""
        data = filesystem.read(uri)
        length = int.from_bytes(data[:8], "little")
        try:
            progress: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["progress"])
            return cls(progress, load(data))
        except (ValueError, KeyError, SafetensorError) as error:
            raise InputError(f"{uri} is damaged: {error}") from error

    @classmethod
    def read_if_there(cls, uri: str) -> Self | None:
        """Read a file that training can do without; return None if it is absent or damaged."""
        with contextlib.suppress(FileNotFoundError, InputError):
            return cls.read(uri)
        return None

    @property
    def others(self) -> dict[str, Tensor]:
        """Return the tensors that are neither the model's nor the optimizer's."""
        return self._below("other.")

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Give model and optimizer what they had.

        An optimizer's tensors get the memory layout of their parameter: fused updates walk both by address, not by
        index.
        """
        model.load_state_dict(self._below("model."))
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self._below("optimizer.").items():
            index, name_of_state = name.split(".", 1)
            parameter = parameters[int(index)].detach()
            same = tensor.shape == parameter.shape
            states.setdefault(int(index), {})[name_of_state] = (
                torch.empty_like(parameter).copy_(tensor) if same else tensor
            )
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})

    def _below(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def load_state(uri: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore what `save_state` wrote, and return its progress."""
    state = State.read(uri)
    state.restore(model, optimizer)
    return state.progress
