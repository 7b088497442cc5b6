"""The recipes: small functions that return a config. A variant is a difference, not a copy."""

import dataclasses
from collections.abc import Callable

from captcha_ray.config import DEMO
from captcha_ray.errors import check_keys
from captcha_ray.models.spec import BUILTIN
from captcha_ray.recipes.config import TrainConfig


def wmail() -> TrainConfig:
    """Return the recipe for single digits of 18x60 pixels, after the Wmail project: SGD, augmented, 75 epochs.

    The learning rate is Keras' default. The project names rotation, shift, shear and zoom; their amounts here are ours.
    """
    return TrainConfig(
        recipe="wmail",
        network="glyph_vgg",
        width=18,
        height=60,
        max_length=1,
        epochs=75,
        batch_size=32,
        optimizer="sgd",
        learning_rate=0.01,
        dropout=0.5,
        rotation_degrees=5.0,
        shift_fraction=0.1,
        shear_degrees=5.0,
        zoom_fraction=0.1,
    )


def isfahan() -> TrainConfig:
    """Return the recipe for five characters in 200x50 pixels, after the Isfahan project: Adam at 1e-3, 60 epochs."""
    return TrainConfig(
        recipe="isfahan",
        network="multi_head_cnn",
        width=200,
        height=50,
        max_length=5,
        epochs=60,
        batch_size=32,
        optimizer="adam",
        learning_rate=1e-3,
        dropout=0.5,
    )


def demo_digits() -> TrainConfig:
    """Return a short `wmail`: a one-cycle schedule with momentum gets there in a few epochs."""
    return dataclasses.replace(
        wmail(),
        recipe="demo-digits",
        epochs=4,
        momentum=0.9,
        schedule="one_cycle",
        shards=f"{DEMO}/shards/digits",
        run=f"{DEMO}/runs/digits",
    )


def demo_text5() -> TrainConfig:
    """Return a short `isfahan`: one-cycle, and less dropout as there is less time to overfit."""
    return dataclasses.replace(
        isfahan(),
        recipe="demo-text5",
        epochs=10,
        schedule="one_cycle",
        learning_rate=2e-3,
        dropout=0.2,
        shards=f"{DEMO}/shards/text5",
        run=f"{DEMO}/runs/text5",
    )


def auto() -> TrainConfig:
    """Return the best recipe for any images: `text`, `text-ctc` or `glyph`, by the labels of the shards.

    Epochs and batch size follow from the shards as well, see `auto_config`.
    """
    return TrainConfig(
        recipe="auto",
        filters=16,
        init=BUILTIN,
        optimizer="adamw",
        learning_rate=0.0,
        schedule="warmup_stable_decay",
        warmup_fraction=0.15,
        weight_decay=0.01,
        dropout=0.3,
        rotation_degrees=3.0,
        shift_fraction=0.02,
        shear_degrees=6.0,
        zoom_fraction=0.06,
        lines_fraction=0.5,
        elastic_fraction=0.01,
        stroke_fraction=0.15,
        contrast_fraction=0.15,
        noise_fraction=0.05,
    )


def pretrain() -> TrainConfig:
    """Return the recipe of the built-in weights, for a large corpus of `synthesize --scheme varied`.

    The corpus is varied enough by itself, so images are not distorted once more.
    """
    return TrainConfig(
        recipe="pretrain",
        network="column_cnn",
        variable_length=True,
        filters=16,
        epochs=11,
        batch_size=64,
        optimizer="adamw",
        learning_rate=3e-3,
        schedule="one_cycle",
        warmup_fraction=0.02,
        weight_decay=0.01,
        dropout=0.1,
    )


def text() -> TrainConfig:
    """Return the recipe for a fixed number of characters, in images of any size."""
    return dataclasses.replace(auto(), recipe="text", network="column_cnn")


def text_ctc() -> TrainConfig:
    """Return the recipe for 1 to as many characters as the longest label, in images of any size."""
    return dataclasses.replace(text(), recipe="text-ctc", variable_length=True)


def glyph() -> TrainConfig:
    """Return the recipe for single characters, in images of any size."""
    return dataclasses.replace(text(), recipe="glyph", max_length=1)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "wmail": wmail,
    "isfahan": isfahan,
    "auto": auto,
    "text": text,
    "text-ctc": text_ctc,
    "glyph": glyph,
    "pretrain": pretrain,
    "demo-digits": demo_digits,
    "demo-text5": demo_text5,
}


def get(name: str) -> TrainConfig:
    """Return the recipe of that name. Raises InputError for an unknown one, naming the nearest."""
    check_keys([name], list(RECIPES), "recipe")
    return RECIPES[name]()
