"""Fixtures of bulk inference that several test modules share."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.factories import GLYPHS, draw_glyphs, glyph_texts, save_network


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """4,000 files, alike in tens: enough that a job is at it for seconds."""
    texts = glyph_texts(400, 2)
    folder = draw_glyphs(tmp_path / "images/0", texts)
    for copy in range(1, 10):
        shutil.copytree(folder, tmp_path / f"images/{copy}")
    return tmp_path / "images"


def network_of_size(folder: Path, height: int, width: int) -> Path:
    """Saves a network of more pixels: how many says how long a job is at it."""
    image = dataclasses.replace(GLYPHS.image, height=height, width=width)
    return save_network(folder, dataclasses.replace(GLYPHS, image=image))


@pytest.fixture
def slow_network(tmp_path: Path) -> Path:
    """One that a job is at for seconds."""
    return network_of_size(tmp_path / "slow", 128, 192)
