"""Fixtures of bulk inference that several test modules share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from captcha_ray.inference import block, job, listing, schema
from tests.factories import GLYPHS, draw_glyphs, glyph_texts, save_network
from tests.support.s3_server import client_of, serve_s3


@pytest.fixture
def spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place for the spools of `prediction_tables.Writer`."""
    (tmp_path / "spools").mkdir()
    monkeypatch.setenv("SPOOLS", str(tmp_path / "spools"))


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
    for module in (job, block):
        monkeypatch.setattr(module, "BATCH_SIZE", 8)
    monkeypatch.setattr(block, "MAX_BLOCK", 8)


@pytest.fixture
def local(tmp_path: Path) -> str:
    (tmp_path / "o'ut ä").mkdir()  # in a job the lease makes it; a quote and a space must not matter
    return str(tmp_path / "o'ut ä")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("s3")
    (folder / "tables").mkdir()
    with serve_s3(folder) as environment:
        yield folder, environment


@pytest.fixture
def remote(server: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with client_of(server[1]):
        yield f"s3://tables/{tmp_path.name}"


@pytest.fixture(params=["local", "s3"])
def out(request: pytest.FixtureRequest) -> str:
    """An empty table of each kind."""
    found: str = request.getfixturevalue("local" if request.param == "local" else "remote")
    return found


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
        assert listing.write_listing(str(images), path, match, counts.append) == num_hidden
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
