"""Find a recipe by its name, or read one from a JSON file."""

import dataclasses
from typing import Any

from captcha_ray.errors import check
from captcha_ray.recipes.catalog import get
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runs.directory import read_json
from captcha_ray.storage import filesystem


def load_recipe(name: str, **changes: Any) -> TrainConfig:
    """Return the recipe of that name, or the config in a JSON file, such as a search's `best.json`.

    changes: fields to set, such as `shards` and `run`. Raises InputError if there is no such recipe or file, the file
    holds no training config, or a value is out of its limits.
    """
    return dataclasses.replace(_load(name), **changes)


def _load(name: str) -> TrainConfig:
    if not name.endswith(".json"):
        return get(name)
    values = read_json(filesystem.absolute(name))
    check(isinstance(values, dict), f"{name} holds no config of a training")
    return dataclasses.replace(TrainConfig.from_dict(values), recipe=name, resume=False)
