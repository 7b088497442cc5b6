"""Checks jobs that run out of disk, memory or object store: they end with a sentence and go on later."""

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset
import pytest

from captcha_ray.datasets.shards import Shards
from captcha_ray.errors import full_disk
from captcha_ray.storage.database import connect
from tests import factories
from tests.factories import SHORT_RECIPE
from tests.support.processes import PREPROCESS, TRAIN, Job, run_job
from tests.support.ray_nodes import Nodes

pytestmark = pytest.mark.slow


class SmallDisk:
    """A file system in memory at `path`; mounting it takes root."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, kilobytes: int) -> None:
        """Change the size and keep the files."""
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


def ends_full_and_goes_on(disk: SmallDisk, kilobytes: int, *command: str | Path, cwd: Path) -> None:
    """Check that the job fails on a small disk and succeeds on a larger one."""
    disk.resize(kilobytes)
    status, _, err = run_job(*map(str, command), cwd=cwd)
    assert status == 1
    assert err.splitlines()[-1].startswith("error: the disk is full: ")
    assert "Traceback" not in err
    disk.resize(64_000)
    status, _, err = run_job(*map(str, command), cwd=cwd)
    assert status == 0, err


def test_a_training_ends_with_a_sentence_and_goes_on_once_there_is_space(
    disk: SmallDisk, glyph_shards: Shards, tmp_path: Path
) -> None:
    train = (*TRAIN, "--shards", glyph_shards.uri, "--run", disk.path / "run", "--epochs", "3", "--resume")
    ends_full_and_goes_on(disk, 900, "train", *train, cwd=tmp_path)  # a state of the training, but not two
    assert len((disk.path / "run/metrics.jsonl").read_text().splitlines()) == 3


def test_bulk_inference_ends_with_a_sentence_and_goes_on_once_there_is_space(disk: SmallDisk, tmp_path: Path) -> None:
    images = factories.draw_glyphs(tmp_path / "images", factories.glyph_texts(2000, 2))
    run = factories.save_network(tmp_path / "run", factories.GLYPHS)
    night = ("--images", images, "--run", run, "--out", disk.path / "out", "--num-workers", "2")
    ends_full_and_goes_on(disk, 100, "infer", *night, cwd=tmp_path)
    table = pyarrow.dataset.dataset(str(disk.path / "out"), partitioning="hive").to_table(["uri"])
    assert sorted(table["uri"].to_pylist()) == sorted(str(path) for path in images.iterdir())


def test_preprocessing_and_a_search_end_with_a_sentence_and_go_on_once_there_is_space(
    disk: SmallDisk, tmp_path: Path
) -> None:
    images = factories.draw_glyphs(tmp_path / "images", factories.glyph_texts(2000, 2))
    shards = disk.path / "shards"
    ends_full_and_goes_on(disk, 200, "preprocess", "--corpus", images, *PREPROCESS, "--out", shards, cwd=tmp_path)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(SHORT_RECIPE.to_dict()))
    search = ("--recipe", recipe, "--shards", shards, "--run", disk.path / "run", "--num-trials", "2", "--epochs", "2")
    free = shutil.disk_usage(disk.path).used // 1024 + 900  # a network, but not all that a search keeps
    ends_full_and_goes_on(disk, free, "tune", *search, "--final-seeds", "0", "--resume", cwd=tmp_path)
    outcomes = [json.loads(path.read_text())["status"] for path in (disk.path / "run").glob("trials/*/outcome.json")]
    assert len(outcomes) == 2
    assert "failed" not in outcomes


def test_a_database_that_finds_no_space_to_write_says_so(disk: SmallDisk) -> None:
    disk.resize(100)
    with pytest.raises(OSError, match="No space left on device") as caught, connect(disk.path) as database:
        database.execute(f"COPY (SELECT random() FROM range(1000000)) TO '{disk.path}/table.parquet'")
    assert full_disk(caught.value)


@contextlib.contextmanager
def two_nodes(folder: Path, *options: str, **env: str) -> Iterator[Nodes]:
    """Start a head without CPUs, and one node with these options and environment."""
    nodes = Nodes(folder)
    with nodes.head(0), nodes.add(2, "", (), *options, **env):
        nodes.await_alive(2)
        yield nodes


@pytest.mark.parametrize("name", ["train", "infer"])
def test_workers_without_memory_end_a_job_with_a_sentence(name: str, glyph_shards: Shards, tmp_path: Path) -> None:
    """Set the threshold of memory, at which Ray ends workers, so low that it is always passed."""
    if name == "train":
        flags: tuple[str | Path, ...] = (*TRAIN, "--shards", glyph_shards.uri, "--run", "run", "--num-workers", "2")
    else:
        images = factories.draw_glyphs(tmp_path / "images", factories.glyph_texts(20, 2))
        flags = ("--images", images, "--run", factories.save_network(tmp_path / "network", factories.GLYPHS))
        flags = (*flags, "--out", "out", "--stall-timeout-s", "60")
    scarce = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    with two_nodes(tmp_path, **scarce) as nodes:
        with Job(name, *flags, cwd=tmp_path, env=nodes.env, address=nodes.address) as one:
            assert one.wait() == 1, one.said
        last = one.said.splitlines()[-1]
        assert last.startswith("error: "), one.said
        # As soon as Ray strikes: in a task of our own, in a worker that has reported, or before it could.
        sentences = ("memory was used up", "workers died 10 times", "for lack of memory perhaps, Ray's log says so")
        assert any(sentence in last for sentence in sentences), last
        assert "Traceback" not in one.said


def test_a_full_object_store_ends_a_job_with_a_sentence(tmp_path: Path) -> None:
    """Train on more pixels than the store holds, while Ray calls the disk full."""
    images = factories.draw_glyphs(tmp_path / "images", factories.glyph_texts(203, 2))
    made = ("--labels", "filename", "--label-pattern", "^([a-d]+)", "--height", "512", "--width", "1024")
    assert run_job("preprocess", "--corpus", images, *made, "--out", "shards", cwd=tmp_path)[0] == 0
    train = ("--shards", "shards", "--run", "run", "--num-workers", "2", "--max-failures", "0")
    full = {"RAY_local_fs_capacity_threshold": "0.0001"}
    with two_nodes(tmp_path, "--object-store-memory", str(80 << 20), **full) as nodes:
        with Job("train", *train, cwd=tmp_path, env=nodes.env, address=nodes.address) as one:
            assert one.wait() == 1, one.said
        assert re.match("error: .*Ray's object store.* full, and so", one.said.splitlines()[-1]), one.said
        assert "\nTraceback" not in one.said, "but in what workers log"
