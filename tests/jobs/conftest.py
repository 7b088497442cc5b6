"""Offers fixtures of bulk inference that several test modules share."""

import shutil
from pathlib import Path

import pytest

from tests.factories import draw_glyphs, glyph_texts, network_of_size


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Draw 4,000 files, alike in tens: enough to keep a job busy for seconds."""
    texts = glyph_texts(400, 2)
    folder = draw_glyphs(tmp_path / "images/0", texts)
    for copy in range(1, 10):
        shutil.copytree(folder, tmp_path / f"images/{copy}")
    return tmp_path / "images"


@pytest.fixture
def slow_network(tmp_path: Path) -> Path:
    """Save a network that keeps a job busy for seconds."""
    return network_of_size(tmp_path / "slow", 128, 192)
