"""Fixtures that several test modules share: one Ray for the session, and small corpora of real image files."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captcha_ray.datasets import preprocess
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.datasets.shards import Shards, open_shards
from captcha_ray.image_spec import ImageSpec
from captcha_ray.models import checkpoint
from captcha_ray.models.networks import build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.runtime import ray_session
from tests.ray_nodes import Nodes


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[ray_session.Cluster]:
    """An embedded Ray of two CPUs that this session starts and stops."""
    with ray_session.connect() as resources:
        yield resources


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


@pytest.fixture(scope="session")
def glyph_shards(ray_cluster: ray_session.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Finished shards of 203 images of 24x16 pixels with two characters each."""
    folder = tmp_path_factory.mktemp("glyphs")
    draw_glyphs(folder / "corpus", glyph_texts(203, 2))
    config = config_for(folder, splits=(0.6, 0.2, 0.2))
    preprocess.preprocess(config)
    return open_shards(config.out)


def save_network(run: Path, spec: ModelSpec, seed: int = 0) -> Path:
    """A run folder with the checkpoint of an untrained network: what it reads is arbitrary, but always the same."""
    torch.manual_seed(seed)
    checkpoint.save_model(str(run / "checkpoint"), build_model(spec), spec)
    return run


GLYPHS = ModelSpec(network="multi_head_cnn", image=ImageSpec(height=16, width=24), charset="abcd", max_length=2)
"""A network for what `draw_glyphs` draws."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head that takes no work, and a node of two CPUs."""
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    with nodes.head(0), nodes.add(2):
        nodes.await_alive(2)
        yield nodes
