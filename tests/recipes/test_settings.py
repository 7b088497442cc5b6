"""Settings change what they say of a resolved config, once, and only those that change something are tried."""

import dataclasses
from typing import Any

import pytest

from captcha_ray.errors import InputError
from captcha_ray.recipes import auto_config, settings
from captcha_ray.recipes.catalog import get
from captcha_ray.recipes.config import Setting, TrainConfig
from tests import factories

RESOLVED = auto_config.resolve(get("auto"), factories.manifest())


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ("rules", {}),
        ("random-weights", {"init": ""}),
        ("wide", {"init": "", "filters": 32}),
        ("noisy", {"noise_fraction": 0.2, "contrast_fraction": 0.3}),
        ("low-dropout", {"dropout": 0.1}),
        ("slow", {"learning_rate": RESOLVED.learning_rate / 3}),
        ("strong", {name: 2 * getattr(RESOLVED, name) for name in settings.DISTORTIONS}),
        ("gentle", {name: getattr(RESOLVED, name) / 2 for name in settings.DISTORTIONS}),
    ],
)
def test_a_setting_changes_the_fields_that_it_names(setting: Setting, changes: dict[str, Any]) -> None:
    resolved = auto_config.resolve(dataclasses.replace(get("auto"), setting=setting), factories.manifest())
    assert resolved == dataclasses.replace(RESOLVED, **changes)
    assert auto_config.resolve(resolved, factories.manifest()) == resolved, "it is applied once"


def test_every_setting_is_tried_that_changes_something() -> None:
    assert settings.worth_a_trial(RESOLVED) == [
        "rules", "random-weights", "wide", "gentle", "strong", "noisy", "low-dropout", "slow",
    ]  # fmt: skip
    other = auto_config.resolve(get("isfahan"), factories.manifest())
    assert settings.worth_a_trial(other) == ["rules", "noisy", "low-dropout", "slow"]


def test_a_setting_is_named_or_found_but_not_both() -> None:
    with pytest.raises(InputError, match="setting is strong, and auto thorough says to find one by trial"):
        TrainConfig(setting="strong", auto="thorough")
