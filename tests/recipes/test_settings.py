"""Check that settings change what they say of a resolved config, once, and that only those that do are tried."""

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
        ("random-weights", {"init": "", "head": "deep"}),
        ("wide", {"init": "", "head": "deep", "filters": 32}),
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


@pytest.mark.parametrize("setting", ["random-weights", "wide"])
def test_random_weights_have_the_learning_rate_that_they_have_without_a_race(setting: Setting) -> None:
    few = factories.manifest(num_images={"train": 2, "val": 0, "test": 0}, num_characters={"train": {"a": 8}})
    rules = auto_config.resolve(get("auto"), few)
    scratch = auto_config.resolve(dataclasses.replace(get("auto"), from_scratch=True), few)
    found = auto_config.resolve(dataclasses.replace(get("auto"), setting=setting), few)
    assert rules.learning_rate < found.learning_rate == scratch.learning_rate
    assert found.head == scratch.head


def test_a_setting_that_cannot_be_is_not_tried() -> None:
    assert "strong" not in settings.worth_a_trial(dataclasses.replace(RESOLVED, zoom_fraction=0.5))


def test_the_fields_that_settings_change_are_known() -> None:
    assert settings.fields(RESOLVED) == {
        "init", "head", "filters", "dropout", "learning_rate", "noise_fraction", "contrast_fraction",
        *settings.DISTORTIONS,
    }  # fmt: skip


def test_a_setting_is_named_or_found_but_not_both() -> None:
    with pytest.raises(InputError, match="setting is strong, and auto thorough says to find one by trial"):
        TrainConfig(setting="strong", auto="thorough")
