"""A disk that is full: jobs end with a sentence, and go on once there is room. Takes root, to mount a small one."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset
import pytest

from captcha_ray import corpus
from tests import conftest
from tests.test_jobs import TRAIN, job

pytestmark = pytest.mark.slow


class SmallDisk:
    """A file system in memory at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, kilobytes: int) -> None:
        """What it holds stays."""
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)], check=False)
    if mounted.returncode:
        pytest.skip("mounting takes root")
    yield SmallDisk(path)
    subprocess.run(["umount", str(path)], check=True)


def test_a_training_ends_with_a_sentence_and_goes_on_once_there_is_room(
    disk: SmallDisk, glyph_shards: corpus.Shards, tmp_path: Path
) -> None:
    train = (*TRAIN, "--shards", glyph_shards.uri, "--run", disk.path / "run", "--epochs", "3", "--resume")
    disk.resize(900)  # a state of the training, but not two
    status, _, err = job("train", *train, cwd=tmp_path)
    assert status == 1
    assert err.splitlines()[-1].startswith("error: the disk is full: ")
    assert "Traceback" not in err
    disk.resize(64_000)
    status, _, err = job("train", *train, cwd=tmp_path)
    assert status == 0, err
    assert len((disk.path / "run/metrics.jsonl").read_text().splitlines()) == 3


def test_bulk_inference_ends_with_a_sentence_and_goes_on_once_there_is_room(disk: SmallDisk, tmp_path: Path) -> None:
    images = conftest.draw_glyphs(tmp_path / "images", conftest.glyph_texts(2000, 2))
    run = conftest.save_network(tmp_path / "run", conftest.GLYPHS)
    night = ("--images", images, "--run", run, "--out", disk.path / "out", "--num-workers", "2")
    disk.resize(100)
    status, _, err = job("infer", *night, cwd=tmp_path)
    assert status == 1
    assert err.splitlines()[-1].startswith("error: the disk is full: ")
    assert "Traceback" not in err
    disk.resize(64_000)
    status, _, err = job("infer", *night, cwd=tmp_path)
    assert status == 0, err
    table = pyarrow.dataset.dataset(str(disk.path / "out"), partitioning="hive").to_table(["uri"])
    assert sorted(table["uri"].to_pylist()) == sorted(str(path) for path in images.iterdir())
