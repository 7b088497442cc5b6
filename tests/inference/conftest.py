"""Fixtures of bulk inference that several test modules share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from captcha_ray.inference import block, block_plan, job, listing
from captcha_ray.inference.source import Source
from captcha_ray.predictions import schema
from tests.factories import GLYPHS, draw_glyphs, glyph_texts, save_network
from tests.support.s3_server import client_of


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a network that nobody has taught."""
    return save_network(tmp_path_factory.mktemp("network") / "run", GLYPHS)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Draw 40 files."""
    return draw_glyphs(tmp_path / "images", glyph_texts(40, 2))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut nights into blocks of 8 objects, and so 40 into five."""
    for module in (job, block, block_plan):
        monkeypatch.setattr(module, "BATCH_SIZE", 8)
    monkeypatch.setattr(block, "MAX_BLOCK", 8)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder for tables whose name is no easy one in SQL, nor in a pattern of file names."""
    folder = tmp_path / 'it\'s "a" [p]l*ce {x} 100%'
    folder.mkdir()
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Gives a function that writes the listing, checks what holds for all of them, and gives its rows by URI."""

    def write(images: object, match: str = "", num_hidden: int = 0) -> list[dict[str, Any]]:
        spool = tmp_path / 'spool\'s "own" [0]'
        spool.mkdir(exist_ok=True)
        path = spool / "it's listed.parquet"
        counts: list[int] = []
        assert listing.write_listing(Source((str(images),), match), path, counts.append) == (num_hidden, 0)
        table = pq.read_table(path)
        assert table.schema.names == schema.LISTING_SCHEMA.names
        assert table.schema.types == schema.LISTING_SCHEMA.types
        assert sum(counts) == len(table)
        assert table["uri"].null_count == table["etag"].null_count == 0
        assert os.listdir(spool) == [path.name]
        return sorted(table.to_pylist(), key=lambda row: row["uri"])

    return write


@pytest.fixture
def bucket(moto_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """URI of an empty prefix."""
    with client_of(moto_server):
        yield f"s3://bucket/{tmp_path.name}"
