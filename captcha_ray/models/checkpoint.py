"""Save and load networks as safetensors weights and a JSON description. No pickle anywhere.

The fingerprint is verified on loading.
"""

import dataclasses

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from captcha_ray.errors import InputError
from captcha_ray.models import fingerprint
from captcha_ray.models.fingerprint import DESCRIPTION, WEIGHTS
from captcha_ray.models.networks import Network, build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.runs.directory import to_json
from captcha_ray.runs.environment import versions
from captcha_ray.storage import filesystem


def save_model(folder: str, model: nn.Module, spec: ModelSpec) -> None:
    """Write the weights, then the description."""
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    filesystem.write(filesystem.join(folder, WEIGHTS), weights)
    _describe(folder, spec, weights)


def set_temperature(uri: str, temperature: float) -> None:
    """Set the divisor of a network's logits: its fingerprint changes, and its ONNX models are forgotten.

    Raises InputError if there is no checkpoint, or its parts do not belong together.
    """
    folder = fingerprint.find_checkpoint(uri)
    spec, _, weights = fingerprint.load_verified(folder)
    _describe(folder, dataclasses.replace(spec, temperature=temperature), weights)


def _describe(folder: str, spec: ModelSpec, weights: bytes) -> None:
    description = {
        "model": spec.to_dict(),
        "fingerprint": fingerprint.fingerprint(spec, weights),
        "versions": versions(),
    }
    filesystem.write(filesystem.join(folder, DESCRIPTION), to_json(description))


def load_model(uri: str) -> tuple[Network, ModelSpec, str]:
    """Return network, description and fingerprint of a run or checkpoint folder, on the CPU, in evaluation mode.

    Raises InputError if there is none, or if weights, description and architecture do not belong together.
    """
    folder = fingerprint.find_checkpoint(uri)
    spec, model_id, weights = fingerprint.load_verified(folder)
    model = build_model(spec)
    try:
        model.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError) as error:
        sentence = " ".join(str(error).split())[:300]
        raise InputError(f"{folder}/{WEIGHTS} does not fit the described {spec.network}: {sentence}") from error
    return model.eval(), spec, model_id
