"""Describe a trained network without loading it: its description, fingerprint and files. Needs no torch.

`model.json` holds the ModelSpec and a fingerprint of it and the weights; both must agree, so half a checkpoint is never
taken for a whole one.
"""

import hashlib
import json
from pathlib import Path

from captcha_ray.errors import InputError
from captcha_ray.models.spec import BUILTIN, EARLIER_NAMES, ModelSpec
from captcha_ray.runs.directory import read_json
from captcha_ray.storage import filesystem

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"


def fingerprint(spec: ModelSpec, weights: bytes, *, earlier: bool = False) -> str:
    """Return the SHA-256 of all that decides what a network recognizes.

    That is the weights, and the spec but for dropout and aspect ratios. earlier: by the earlier names of its fields.
    """
    decisive = spec.to_dict()
    del decisive["dropout"], decisive["aspect_ratios"]  # neither changes what is recognized
    # Left out at their defaults, so that older checkpoints keep their fingerprint.
    before = {"variable": False, "temperature": 1.0, "bidirectional": False, "filters": 32, "head": "light"}
    for name, value in before.items():
        if decisive[name] == value:
            del decisive[name]
    for name in ("pad", "crop", "two_lines"):
        if not decisive["image"][name]:
            del decisive["image"][name]
    if earlier:
        decisive = {EARLIER_NAMES.get(name, name): value for name, value in decisive.items()}
    description = json.dumps(decisive, sort_keys=True).encode()
    return hashlib.sha256(len(description).to_bytes(8, "big") + description + weights).hexdigest()


def load_spec(uri: str) -> ModelSpec:
    """Return the description of a run's or checkpoint's network. Raises InputError if there is no checkpoint."""
    return _load_description(find_checkpoint(uri))[0]


def load_spec_and_fingerprint(uri: str) -> tuple[ModelSpec, str]:
    """Return description and fingerprint of a run's or checkpoint's network.

    Raises InputError if there is none, or if its weights do not have the fingerprint in the description.
    """
    spec, model_id, _ = load_verified(find_checkpoint(uri))
    return spec, model_id


def load_verified(folder: str) -> tuple[ModelSpec, str, bytes]:
    """Return description, fingerprint and weights of a checkpoint folder whose files belong together."""
    spec, expected = _load_description(folder)
    try:
        weights = filesystem.read(filesystem.join(folder, WEIGHTS))
    except FileNotFoundError:
        raise InputError(f"{folder} has no {WEIGHTS}") from None
    if not any(fingerprint(spec, weights, earlier=earlier) == expected for earlier in (False, True)):
        raise InputError(f"{folder}/{WEIGHTS} and {DESCRIPTION} do not belong together: the fingerprint differs")
    return spec, expected, weights


def _load_description(folder: str) -> tuple[ModelSpec, str]:
    """Return the description and the fingerprint that the weights must have."""
    description = read_json(filesystem.join(folder, DESCRIPTION))
    try:
        return ModelSpec.from_dict(description["model"]), description["fingerprint"]
    except InputError as error:
        raise InputError(f"{folder}/{DESCRIPTION} describes no model: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/{DESCRIPTION} describes no model: {type(error).__name__}, {error}") from error


def absolute(uri: str) -> str:
    """Return the URI of a run from the working directory; `BUILTIN` stays a name, as each machine has its own copy."""
    return uri if uri == BUILTIN else filesystem.absolute(uri)


def shared(uri: str) -> str:
    """Return the URI of a run if machines must see the same one; nothing for `BUILTIN`."""
    return "" if uri == BUILTIN else uri


def find_checkpoint(uri: str) -> str:
    """Return the checkpoint folder of a run, or the folder itself if it is one. Raises InputError for neither."""
    uri = str(Path(__file__).with_name(BUILTIN)) if uri == BUILTIN else filesystem.absolute(uri)
    for folder in (filesystem.join(uri, "checkpoint"), uri):
        if filesystem.exists(filesystem.join(folder, DESCRIPTION)):
            return folder
    raise InputError(f"{uri} holds no checkpoint; jobs/train.py makes one")
