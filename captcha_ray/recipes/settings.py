"""Name changes to a recipe that no rule can choose beforehand; a race tries them, see `tuning.race`."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, get_args

from captcha_ray.errors import InputError
from captcha_ray.recipes.config import Setting, TrainConfig

LEARNING_RATE = 3e-3
"""Learning rate that nobody set, of `column_cnn` with random weights."""

DISTORTIONS = ("rotation_degrees", "shift_fraction", "shear_degrees", "zoom_fraction", "elastic_fraction")
"""Fields that gentle and strong multiply."""

WIDE = 32
"""Filters of wide, four times the operations of 16."""

NOISE, CONTRAST = 0.2, 0.3
"""Amounts of noisy."""

DROPOUT = 0.1
"""Dropout of low-dropout."""


def changed(config: TrainConfig) -> TrainConfig:
    """Return a resolved config with what its setting changes, and the setting `rules`."""
    return dataclasses.replace(config, **_CHANGES[config.setting](config), setting="rules")


def fields(config: TrainConfig) -> set[str]:
    """Return the names of the fields that some setting changes in a config."""
    return {name for change in _CHANGES.values() for name in change(config)}


def worth_a_trial(config: TrainConfig) -> list[Setting]:
    """Return the settings that give different trainings; config: resolved, with the setting `rules`."""
    found: dict[TrainConfig, Setting] = {}
    for setting in get_args(Setting):
        with contextlib.suppress(InputError):  # twice the distortions may be more than there can be
            found.setdefault(changed(dataclasses.replace(config, setting=setting)), setting)
    return list(found.values())


def _at_random(config: TrainConfig) -> dict[str, Any]:
    """Return what a network has that begins with random weights instead of others.

    The learning rate that rules have lowered, so that few images do not undo the weights, is the usual one again.
    """
    if not config.init:
        return {}
    return {"init": "", "head": "deep", "learning_rate": max(config.learning_rate, LEARNING_RATE)}


def _distorted(config: TrainConfig, factor: float) -> dict[str, float]:
    return {name: factor * getattr(config, name) for name in DISTORTIONS}


_CHANGES: dict[Setting, Callable[[TrainConfig], Mapping[str, Any]]] = {
    "rules": lambda _: {},
    "random-weights": _at_random,
    "wide": lambda config: _at_random(config) | {"filters": WIDE} if config.network == "column_cnn" else {},
    "gentle": lambda config: _distorted(config, 0.5),
    "strong": lambda config: _distorted(config, 2.0),
    "noisy": lambda _: {"noise_fraction": NOISE, "contrast_fraction": CONTRAST},
    "low-dropout": lambda _: {"dropout": DROPOUT},
    "slow": lambda config: {"learning_rate": config.learning_rate / 3},
}
