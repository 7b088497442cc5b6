"""Make empty tables, on a disk and in a bucket."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.s3_server import client_of, serve_s3


@pytest.fixture
def spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a place for the spools of `prediction_tables.Writer`."""
    (tmp_path / "spools").mkdir()
    monkeypatch.setenv("SPOOLS", str(tmp_path / "spools"))


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
    """Give an empty table of each kind."""
    found: str = request.getfixturevalue("local" if request.param == "local" else "remote")
    return found
