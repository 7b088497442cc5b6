"""On a machine alone a job begins in its own process: short nights end there, and long ones go on with Ray."""

import contextlib
import errno
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest

from captcha_ray.engines import choice
from captcha_ray.errors import InputError, JobError
from captcha_ray.inference import job, pipeline
from captcha_ray.inference.block import Finished
from captcha_ray.inference.block_decoder import Chunk
from captcha_ray.inference.block_reader import BlockReader
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.job import READER, NightSummary, transcribe
from captcha_ray.inference.source import Source
from captcha_ray.predictions.table import PredictionTable
from captcha_ray.runtime import ray_session
from captcha_ray.storage import parquet
from tests.support.processes import environment
from tests.support.waiting import wait_until


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the session's Ray, as from a process that has not started one, and has one core of two to itself."""
    monkeypatch.setattr(pipeline, "_num_cpus", lambda: 2)
    monkeypatch.setattr(pipeline, "MAX_THREADS_HERE", 1)
    monkeypatch.setattr(pipeline, "RAY_S", 3600.0)  # however busy the machine is
    monkeypatch.setattr(pipeline, "is_connected", lambda: False)
    monkeypatch.setattr(job, "is_connected", lambda: False)


def no_ray() -> None:
    raise AssertionError("Ray is asked for")


def night(images: Path, network: Path, out: Path, reader: str = READER, **changes: Any) -> NightSummary:
    return transcribe(
        InferConfig(images=str(images), run=str(network), out=str(out), **changes), time.monotonic(), reader
    )


def read(out: Path) -> Counter[str]:
    found = pyarrow.dataset.dataset(str(out), partitioning="hive").to_table(["uri"])
    return Counter(found["uri"].to_pylist())


def once(images: Path) -> Counter[str]:
    return Counter(map(str, images.iterdir()))


def own_blocks(monkeypatch: pytest.MonkeyPatch, meanwhile: Any = lambda reader, block: None) -> list[int]:
    """Return a list that will hold the blocks that this process recognizes, each before a call of `meanwhile`."""
    blocks: list[int] = []

    class Own(BlockReader):
        def _stage(self, chunks: Iterable[Chunk]) -> Iterator[Finished]:
            return super()._stage(map(self.note, chunks))

        def note(self, chunk: Chunk) -> Chunk:
            blocks.append(chunk.block)
            meanwhile(self, chunk.block)
            return chunk

    monkeypatch.setattr(pipeline, "load_reader", lambda name, task, report: Own(task, report))
    return blocks


def test_a_short_night_imports_neither_ray_nor_torch_and_one_with_nothing_new_no_engine(
    network: Path, images: Path, tmp_path: Path
) -> None:
    choice.export(str(network))  # which takes torch
    program = (
        "import sys, captcha_ray\nfrom captcha_ray.inference.config import InferConfig\n"
        f"night = InferConfig(images={str(images)!r}, run={str(network)!r}, out={str(tmp_path / 'out')!r})\n"
        "done = captcha_ray.infer(night)\n"
        "print(done.skipped, done.committed.counts.ok, {'ray', 'torch', 'openvino'} & set(sys.modules), done.engines)"
    )
    for said in ("0 40 {'openvino'} ['openvino ", "40 0 set() []"):
        done = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=environment(), text=True,
                              stdout=subprocess.PIPE)  # fmt: skip
        assert said in done.stdout
    assert read(tmp_path / "out") == once(images)


@pytest.mark.usefixtures("alone", "small_blocks")
def test_a_short_night_is_all_its_own(
    network: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "connect", no_ray)
    blocks = own_blocks(monkeypatch)
    done = night(images, network, tmp_path / "out")
    assert blocks == [0, 1, 2, 3, 4]
    assert (done.committed.counts.ok, len(done.engines)) == (40, 1)
    assert read(tmp_path / "out") == once(images)


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> list[threading.Event]:
    """Gather what tells this process, of each night, to leave the rest to Ray."""
    found: list[threading.Event] = []
    run_here = pipeline.Pipeline._run_here

    def kept(self: pipeline.Pipeline, num_blocks: int) -> Iterator[pipeline.Finished]:
        found.append(self._stop)
        return run_here(self, num_blocks)

    monkeypatch.setattr(pipeline.Pipeline, "_run_here", kept)
    return found


def connect_after(num_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ray be there once this process has begun so many blocks."""
    connect = pipeline.Pipeline._connect

    def connect_late(self: pipeline.Pipeline) -> None:
        wait_until(lambda: self._begun == num_blocks)
        connect(self)

    monkeypatch.setattr(pipeline.Pipeline, "_connect", connect_late)


@pytest.mark.usefixtures("alone", "small_blocks")
@pytest.mark.parametrize(
    ("too_long", "own"),
    [
        ({"RAY_S": 0.0}, [0, 1, 2]),
        ({"MANY": 39}, [0]),
        ({"RAY_S": 0.0, "MAX_THREADS_HERE": 2, "_num_cpus": lambda: 4}, [0, 1, 2, 3]),
    ],
    ids=["by its rate", "by its size", "of two threads"],
)
def test_a_longer_night_goes_on_with_ray(
    ray_cluster: ray_session.Cluster,
    network: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stops: list[threading.Event],
    too_long: dict[str, Any],
    own: list[int],
) -> None:
    for name, value in too_long.items():
        monkeypatch.setattr(pipeline, name, value)
    # it works until Ray is there
    blocks = own_blocks(monkeypatch, lambda _, block: block < min(own[-1], 2) or stops[0].wait(60))
    connect_after(len(own), monkeypatch)
    done = night(images, network, tmp_path / "out")
    assert sorted(blocks) == own
    assert done.committed.counts.ok == 40
    assert read(tmp_path / "out") == once(images)
    assert not list((tmp_path / "out").glob("_*"))


@pytest.mark.usefixtures("alone", "small_blocks")
@pytest.mark.parametrize(("num_cores", "many"), [(1, 1), (2, 40)])
def test_a_long_night_on_one_core_or_two_is_all_its_own(
    network: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_cores: int, many: int
) -> None:
    for name, value in {"RAY_S": 0.0, "MANY": many, "_num_cpus": lambda: num_cores, "MAX_THREADS_HERE": 2}.items():
        monkeypatch.setattr(pipeline, name, value)
    monkeypatch.setattr(ray_session, "connect", no_ray)
    together = threading.Barrier(num_cores)
    blocks = own_blocks(monkeypatch, lambda _, block: block < num_cores and together.wait(60))
    done = night(images, network, tmp_path / "out")
    assert sorted(blocks) == [0, 1, 2, 3, 4]
    assert done.committed.counts.ok == 40
    assert read(tmp_path / "out") == once(images)
    manifest = json.loads((tmp_path / "out/run=000001/_manifest.json").read_text())
    assert manifest["cost"]["cores"] == num_cores


def test_two_cores_are_not_enough_for_many_images(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "is_connected", lambda: False)
    for num_cores, num_objects, expected in (
        (2, pipeline.MANY, True),
        (2, pipeline.MANY + 1, False),
        (3, 1, False),
        (1, pipeline.MANY + 1, True),
    ):
        monkeypatch.setattr(pipeline, "_num_cpus", lambda num_cores=num_cores: num_cores)
        one = pipeline.Pipeline(InferConfig(run=str(network)), Source(("i",)), task=None, reader=READER)  # type: ignore[arg-type]
        assert one._is_enough_for(num_objects) == expected


@pytest.mark.usefixtures("alone", "small_blocks")
@pytest.mark.parametrize("hangs", [False, True])
def test_an_error_of_one_thread_ends_the_others_after_a_batch(
    network: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(pipeline, "END_S", 0.1 if hangs else 60.0)
    monkeypatch.setattr(pipeline, "MAX_THREADS_HERE", 2)
    monkeypatch.setattr(ray_session, "connect", no_ray)
    together = threading.Barrier(2)

    def break_down(reader: BlockReader, block: int) -> None:
        together.wait(60)
        if block == 0:
            raise OSError(errno.EIO, "broken")
        wait_until(reader.is_abandoned)
        if hangs:
            released.wait(60)

    blocks, released = own_blocks(monkeypatch, break_down), threading.Event()
    with pytest.raises(OSError, match="broken"):
        night(images, network, tmp_path / "out")
    released.set()
    assert sorted(blocks) == [0, 1]
    assert not list((tmp_path / "out").rglob("*.staged"))


@pytest.mark.usefixtures("alone", "small_blocks")
def test_what_own_process_does_until_ray_is_there_may_be_all(
    network: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "RAY_S", 0.0)
    blocks = own_blocks(monkeypatch)

    @contextlib.contextmanager
    def connect() -> Iterator[None]:
        wait_until(lambda: len(blocks) == 5, None)
        yield

    monkeypatch.setattr(ray_session, "connect", connect)
    monkeypatch.setattr(pipeline, "_group_sizes", lambda *_: (2, 0))
    assert night(images, network, tmp_path / "out").committed.counts.ok == 40
    assert read(tmp_path / "out") == once(images)


@pytest.mark.usefixtures("small_blocks", "alone")
@pytest.mark.parametrize("changes", [{"num_workers": 1}, {"cpus_per_worker": 2}, {"use_gpu": True}])
def test_who_asks_for_workers_of_a_kind_gets_workers(
    network: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(ray_session, "connect", no_ray)
    blocks = own_blocks(monkeypatch)
    with pytest.raises(AssertionError, match="Ray is asked for"):
        night(images, network, tmp_path / "out", **changes)
    assert not blocks


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (InputError("engine x cannot be loaded"), InputError, "^engine x cannot be loaded$"),
        (OSError(errno.ENOSPC, "full", "/x"), JobError, "^the disk is full: /x; make room"),
        (OSError(errno.EIO, "broken"), OSError, "broken"),
    ],
)
def test_what_ends_a_worker_ends_it_too(
    network: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
    sentence: str,
) -> None:
    def load_reader(*_: object) -> BlockReader:
        raise error

    monkeypatch.setattr(ray_session, "connect", no_ray)
    monkeypatch.setattr(pipeline, "load_reader", load_reader)
    with pytest.raises(kind, match=sentence):
        night(images, network, tmp_path / "out")
    assert not (tmp_path / "out/_lease.json").exists()


@pytest.mark.usefixtures("alone")
def test_a_stall_is_named_by_its_stage(
    network: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "connect", no_ray)
    monkeypatch.setattr(pipeline, "END_S", 0.1)
    try:
        with pytest.raises(JobError, match="no progress for 2 s at the stage: polish the lenses"):
            night(images, network, tmp_path / "out", "tests.support.readers.Hanging", stall_timeout_s=2)
    finally:
        (tmp_path / "released").touch()


@pytest.mark.usefixtures("alone", "small_blocks")
def test_an_interruption_keeps_the_blocks_that_are_staged(
    network: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "connect", no_ray)

    def interrupt(reader: BlockReader, block: int) -> None:
        if block == 2:
            raise KeyboardInterrupt

    own_blocks(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        night(images, network, tmp_path / "out")
    blocks = own_blocks(monkeypatch)
    done = night(images, network, tmp_path / "out")
    assert (done.adopted, len(blocks)) == (16, 3)
    assert read(tmp_path / "out") == once(images)


@pytest.mark.usefixtures("alone", "small_blocks")
def test_a_first_night_of_many_objects_starts_ray_while_it_lists_and_no_other_night_does(
    network: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "MANY", 39)
    plan, events = PredictionTable.plan, []

    def note_plan(self: PredictionTable, listed: Path, path: Path) -> int:
        events.append("plan")
        return plan(self, listed, path)

    monkeypatch.setattr(PredictionTable, "plan", note_plan)
    monkeypatch.setattr(pipeline.Pipeline, "_start_ray", lambda self: events.append("start"))
    monkeypatch.setattr(pipeline.Pipeline, "_until_long", lambda self, here, num_objects: here)  # no Ray later on
    for changes, expected in (
        ({}, ["start", "plan"]),
        ({}, ["plan"]),  # nothing is new
        ({"retry_errors": True}, ["plan"]),
        ({"skip": "never"}, ["start", "plan"]),  # the table settles nothing
    ):
        events.clear()
        night(images, network, tmp_path / "out", **changes)
        assert events == expected


@pytest.mark.usefixtures("alone", "small_blocks")
def test_too_many_errors_end_it_after_a_batch_and_nothing_is_staged_afterwards(
    network: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block has errors enough to end the night while the second one is being read."""
    for path in sorted(images.iterdir())[:8]:
        path.write_bytes(b"no image")
    monkeypatch.setattr(ray_session, "connect", no_ray)
    abandoned: list[int] = []

    def wait_for_the_end(reader: BlockReader, block: int) -> None:
        if block == 1:
            wait_until(reader.is_abandoned)
            abandoned.append(block)

    blocks, written, write = own_blocks(monkeypatch, wait_for_the_end), [], parquet.write

    def note_write(uri: str, rows: pa.Table) -> None:
        written.append(uri.rpartition("/")[2])
        write(uri, rows)

    monkeypatch.setattr(parquet, "write", note_write)
    with pytest.raises(JobError, match="of 40 objects cannot be recognized"):
        night(images, network, tmp_path / "out", max_error_fraction=0.1)
    assert blocks == [0, 1]
    assert abandoned == [1]
    assert [name for name in written if name.endswith(".staged")] == ["block-000000.staged"]
    for left in ("*.staged", "*.blocks", "*.parquet"):
        assert not list((tmp_path / "out").rglob(left))


@pytest.mark.usefixtures("alone", "small_blocks")
def test_an_error_of_its_own_ends_a_night_that_ray_is_at_work_on(
    ray_cluster: ray_session.Cluster,
    network: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stops: list[threading.Event],
) -> None:
    monkeypatch.setattr(pipeline, "RAY_S", 0.0)

    def break_down(reader: BlockReader, block: int) -> None:
        if block == 2:
            stops[0].wait(60)
            raise OSError(errno.EIO, "broken")

    run_on_ray, of_ray = pipeline.Pipeline._run_on_ray, []

    def run_on_ray_after_the_error(self: pipeline.Pipeline, blocks: range) -> Iterator[pipeline.Finished]:
        assert self._ended.wait(60)
        for finished in run_on_ray(self, blocks):
            of_ray.append(finished)
            yield finished

    monkeypatch.setattr(pipeline.Pipeline, "_run_on_ray", run_on_ray_after_the_error)
    own_blocks(monkeypatch, break_down)
    with pytest.raises(OSError, match="broken"):
        night(images, network, tmp_path / "out")
    assert len(of_ray) == 1, "Ray has two blocks, and goes on no further than the first"
