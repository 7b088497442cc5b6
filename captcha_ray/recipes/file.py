"""Find a recipe by its name, or read one from a JSON file."""

import dataclasses

from captcha_ray.errors import check
from captcha_ray.recipes.catalog import get
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runs.directory import read_json
from captcha_ray.storage import filesystem


def load_recipe(name: str) -> TrainConfig:
    """Return the recipe of that name, or the config in a JSON file, such as a search's `best.json`.

    Raises InputError if there is no such recipe or file, or the file holds no training config.
    """
    if not name.endswith(".json"):
        return get(name)
    values = read_json(filesystem.absolute(name))
    check(isinstance(values, dict), f"{name} holds no config of a training")
    return dataclasses.replace(TrainConfig.from_dict(values), recipe=name, resume=False)
