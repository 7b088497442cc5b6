"""What tests are made of: small corpora of real image files, untrained networks, a short recipe, trials."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.datasets.schema import Manifest
from captcha_ray.images.spec import ImageSpec
from captcha_ray.models import checkpoint
from captcha_ray.models.networks import build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.tuning.trials import Trial, TrialOutcome

GLYPHS = ModelSpec(network="multi_head_cnn", image=ImageSpec(height=16, width=24), charset="abcd", max_length=2)
"""A network for what `draw_glyphs` draws."""

COLUMNS = dataclasses.replace(GLYPHS, network="column_cnn", variable=True, filters=4)
"""The default kind of network for the same."""

SHORT_RECIPE = TrainConfig(
    recipe="test", network="multi_head_cnn", epochs=6, batch_size=16, learning_rate=3e-3, dropout=0.1
)


def draw_glyphs(folder: Path, texts: list[str], seed: int = 0, size: tuple[int, int] = (24, 16)) -> Path:
    """Writes `<text>-<k>.png`, gray, width x height: vertical bars whose place tells the characters a to d, and noise.

    Easy enough that a network learns it in a few steps.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    for k, text in enumerate(texts):
        pixels = rng.integers(0, 60, (height, width), np.uint8)
        pitch = width // len(text)
        for position, character in enumerate(text):
            start = position * pitch + "abcd".index(character) * pitch // 4
            pixels[:, start : start + pitch // 4] = 230
        Image.fromarray(pixels).save(folder / f"{text}-{k}.png")
    return folder


def glyph_texts(count: int, length: int, seed: int = 0) -> list[str]:
    """Random texts of the characters a to d."""
    rows = np.random.default_rng(seed).integers(0, 4, (count, length))
    return ["".join("abcd"[k] for k in row) for row in rows]


def config_for(folder: Path, **changes: Any) -> PreprocessConfig:
    """From `corpus` in the folder to `shards` beside it, as `draw_glyphs` names and sizes its images."""
    base = PreprocessConfig(
        corpus=str(folder / "corpus"),
        labels="filename",
        label_pattern="^([^-]+)",
        height=16,
        width=24,
        out=str(folder / "shards"),
    )
    return dataclasses.replace(base, **changes)


def manifest(**changes: Any) -> Manifest:
    """Of gray images of 32x160 with four of the characters a to d, unless changes say otherwise."""
    values: dict[str, Any] = {
        "source": "corpus",
        "label_rule": {},
        "image": {"height": 32, "width": 160, "channels": 1},
        "charset": "abcd",
        "min_length": 4,
        "max_length": 4,
        "splits": (0.8, 0.1, 0.1),
        "split_seed": 0,
        "num_images": {"train": 400, "val": 50, "test": 50},
        "num_characters": {},
        "num_quarantined": {},
        "num_hidden": 0,
        "parts": {},
        "seconds": 0.0,
        "config": {},
        "versions": {},
    }
    return Manifest(**(values | changes))


def save_network(run: Path, spec: ModelSpec, seed: int = 0) -> Path:
    """A run folder with the checkpoint of an untrained network: what it reads is arbitrary, but always the same."""
    torch.manual_seed(seed)
    checkpoint.save_model(str(run / "checkpoint"), build_model(spec), spec)
    return run


def network_of_size(folder: Path, height: int, width: int) -> Path:
    """Save an untrained network for larger images: the more pixels, the longer a job takes."""
    image = dataclasses.replace(GLYPHS.image, height=height, width=width)
    return save_network(folder, dataclasses.replace(GLYPHS, image=image))


def epoch(number: int, strings: float | None, loss: float | None = 1.0, characters: float = 0.5) -> dict[str, Any]:
    return {
        "epoch": number,
        "train_loss": loss,
        "val_loss": loss,
        "train_char_accuracy": characters,
        "val_char_accuracy": characters,
        "val_exact_match": strings,
        "val_position_accuracy": [0.1],
        "learning_rate": 1e-3,
        "images_per_second": 100.0,
        "seconds": 2.0,
    }


def trial(number: int, *strings: float, status: str = "finished", reason: str = "") -> Trial:
    epochs = [epoch(k, value) for k, value in enumerate(strings, start=1)]
    return Trial(
        number, {"dropout": number / 10, "optimizer": "sgd"}, epochs, TrialOutcome(status, reason, 1.0 + number)
    )
