"""Nights of bulk inference on the session's Ray: what is read, what is committed, and what ends a night early."""

import io
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captcha_ray import Recognizer
from captcha_ray.errors import InputError, JobError
from captcha_ray.inference import pipeline
from captcha_ray.inference.block import BATCH_SIZE, MAX_BLOCK, block_sizes
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.job import READER, NightSummary, transcribe
from captcha_ray.predictions.table import Committed, Counts, PredictionTable, Run
from captcha_ray.runtime import ray_session
from captcha_ray.storage.lock import Lease
from tests.factories import draw_glyphs
from tests.support.readers import Unheard
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def jobs_given_up_are_over() -> Iterator[None]:
    """Ray Data ends a job that nobody waits for in a thread of its own; Ray must outlive it."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor"):
            thread.join(timeout=60)
            assert not thread.is_alive()


@pytest.mark.parametrize(("num_batches", "num_workers"), [(1, 1), (1, 8), (7, 2), (1000, 2), (40_000, 100)])
def test_blocks_are_large_at_first_and_small_at_the_end(num_batches: int, num_workers: int) -> None:
    sizes = block_sizes(num_batches, num_workers)
    assert sum(sizes) == num_batches
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= MAX_BLOCK // BATCH_SIZE
    assert sizes[-1] == 1
    left = num_batches
    for size in sizes:
        assert size == 1 or size <= left / (2 * num_workers), "nobody waits long for the one who has the last block"
        left -= size


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> None:
        raise AssertionError("there is nothing to read, and Ray is asked for")

    monkeypatch.setattr(ray_session, "connect", connect)


def night(images: Path | str, network: Path, out: Path, reader: str = READER, **changes: Any) -> NightSummary:
    config = InferConfig(images=str(images), run=str(network), out=str(out), **{"num_workers": 1, **changes})
    return transcribe(config, time.monotonic(), reader)


def rows(out: Path) -> list[dict[str, Any]]:
    found = pyarrow.dataset.dataset(str(out), partitioning="hive").to_table().to_pylist()
    return sorted(found, key=lambda row: (row["uri"], row["run_id"]))


def once(images: Path) -> Counter[str]:
    return Counter(str(path) for path in images.iterdir())


def read_again(out: Path) -> Counter[str]:
    return Counter(row["uri"] for row in rows(out))


def no_job_is_left(out: Path) -> bool:
    return not list(out.glob("_*"))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 24), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


# ---------------------------------------------------------------- nights


def test_three_nights_read_what_is_new_and_nothing_twice(
    ray_cluster: ray_session.Cluster, network: Path, images: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "out"
    (images / "empty.png").write_bytes(b"")
    (images / ".DS_Store").write_bytes(b"x")
    first = night(images, network, out, num_workers=2)
    assert (first.listed, first.skipped, first.committed.runs) == (41, 0, [Run("", 1)])
    assert (first.committed.counts.ok, first.committed.counts.errors) == (40, {"EmptyFile": 1})
    table = rows(out)
    assert [row["uri"] for row in table] == sorted(once(images) - Counter([str(images / ".DS_Store")]))
    good = [row for row in table if row["status"] == "ok"]
    predictions = Recognizer.load(str(network)).predict([row["uri"] for row in good])
    assert [row["text"] for row in good] == [prediction.text for prediction in predictions]
    for row, prediction in zip(good, predictions, strict=True):
        assert row["char_confidence"] == pytest.approx(prediction.char_confidence, rel=1e-3)
    manifest = json.loads((out / "run=000001/_manifest.json").read_text())
    assert manifest["counts"] == {"objects": 41, "ok": 40, "uncertain": 0, "errors": {"EmptyFile": 1}}
    assert (manifest["listed"], manifest["skipped"], manifest["images"]) == (41, 0, str(images))
    assert manifest["model_id"] == table[0]["model_id"]
    assert manifest["engines"] == [Recognizer.load(str(network)).engine.name]
    assert manifest["cost"]["cores"] == 2
    assert {"list", "plan", "start Ray", "fetch", "decode", "recognize", "write", "wall"} <= set(manifest["seconds"])
    assert no_job_is_left(out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_session, "connect", lambda: pytest.fail("a night with nothing new starts Ray"))
        second = night(images, network, out)
    assert (second.listed, second.skipped, second.committed) == (41, 41, Committed())
    assert rows(out) == table
    assert no_job_is_left(out)

    deleted, changed, *_ = sorted(images.glob("*.png"))
    deleted.unlink()
    changed.write_bytes(png(1))
    (images / "new.png").write_bytes(png(2))
    third = night(images, network, out)
    assert (third.listed, third.skipped, third.committed.counts.total) == (41, 39, 2)
    added = [row for row in rows(out) if row["run_id"] == "000002"]
    assert [row["uri"] for row in added] == [str(changed), str(images / "new.png")]
    assert [row for row in rows(out) if row["run_id"] == "000001"] == table
    assert read_again(out)[str(changed)] == 2


@pytest.mark.usefixtures("small_blocks")
def test_too_many_errors_end_the_night_and_a_later_one_that_allows_them_reads_all(
    ray_cluster: ray_session.Cluster, network: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for number, path in enumerate(sorted(images.iterdir())):
        path.write_bytes(path.read_bytes() if number % 4 else b"")
    with pytest.raises(JobError) as caught:
        night(images, network, out, max_error_fraction=0.24)
    said, first = str(caught.value).split("; the first is ")
    assert said == (
        "10 of 40 objects cannot be recognized (10 EmptyFile), more than --max-error-fraction 0.24 allows; "
        "nothing of them was committed"
    )
    empty = {str(path) for path in images.iterdir() if not path.stat().st_size}
    assert first in {f"'{uri}: EmptyFile: the file has zero bytes'" for uri in empty}  # of whichever worker was first
    assert not list(out.rglob("*.parquet"))
    assert not list(out.rglob("*.staged"))
    assert not (out / "_lease.json").exists()
    done = night(images, network, out, max_error_fraction=0.25)
    assert (done.committed.counts.ok, done.committed.counts.errors) == (30, {"EmptyFile": 10})
    assert read_again(out) == once(images)
    assert no_job_is_left(out)


@pytest.mark.usefixtures("small_blocks")
def test_a_long_night_makes_several_runs_with_every_object_in_one_of_them(
    ray_cluster: ray_session.Cluster, network: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = night(images, network, out, objects_per_run=9)
    assert [run.number for run in done.committed.runs] == [1, 2, 3]
    assert Counter(row["run_id"] for row in rows(out)) == {"000001": 16, "000002": 16, "000003": 8}
    assert read_again(out) == once(images)
    assert (done.listed, done.skipped, done.committed.counts.ok) == (40, 0, 40)
    for run in done.committed.runs:
        seconds = json.loads((out / run.folder / "_manifest.json").read_text())["seconds"]
        assert {"fetch", "decode", "recognize", "write"} <= set(seconds)
    assert no_job_is_left(out)


@pytest.mark.usefixtures("small_blocks")
def test_nothing_is_committed_while_too_many_have_failed_so_far(
    ray_cluster: ray_session.Cluster, network: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first 16 of 40 cannot be read: less than half of the night, but all of what would be its first run."""
    for path in sorted(images.iterdir())[:16]:
        path.write_bytes(b"")
    commit, staged = PredictionTable.commit, []

    def watched(table: PredictionTable, blocks: list[str], describe: Any) -> Committed:
        staged.append(len(list(Path(table.attempt).glob("*.staged"))))
        return commit(table, blocks, describe)

    monkeypatch.setattr(PredictionTable, "commit", watched)
    done = night(images, network, tmp_path / "out", objects_per_run=9)
    assert staged[0] >= 4, "32 objects, half of them good, were read before the first run"
    assert done.committed.counts.errors == {"EmptyFile": 16}
    sizes = Counter(row["run_id"] for row in rows(tmp_path / "out"))
    assert max(sizes.values()) == 16, "what has gathered is not one run"
    assert read_again(tmp_path / "out") == once(images)


@pytest.mark.usefixtures("small_blocks")
def test_a_worker_that_is_killed_is_replaced_and_its_block_read_once(
    ray_cluster: ray_session.Cluster, network: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = night(images, network, out, "tests.support.readers.DyingOnce")
    assert (tmp_path / "died").exists()
    assert done.committed.counts.ok == 40
    assert read_again(out) == once(images)


@pytest.fixture
def watched_once_it_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers take seconds to start; the clock runs from when they hang."""
    watch = pipeline.Watch

    def watch_once_it_hangs(task: Callable[..., None], timeout_s: float, *arguments: Any) -> Iterator[Any]:
        found = watch(task, timeout_s, *arguments)
        wait_until((tmp_path / "hangs").exists, None, explain=lambda: "the worker does not start")
        return found

    monkeypatch.setattr(pipeline, "Watch", watch_once_it_hangs)


@pytest.mark.usefixtures("watched_once_it_hangs")
def test_a_stall_is_named_by_its_stage_and_what_was_finished_before_it_is_kept(
    ray_cluster: ray_session.Cluster, network: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    try:
        with pytest.raises(JobError, match="no progress for 3 s at the stage: polish the lenses; what was finished"):
            night(images, network, out, "tests.support.readers.Hanging", stall_timeout_s=3)
    finally:
        (tmp_path / "released").touch()
    assert not list(out.rglob("*.parquet"))
    assert not (out / "_lease.json").exists()


@pytest.mark.usefixtures("watched_once_it_hangs")
def test_workers_of_which_nothing_is_heard_end_the_job_with_a_hint(
    ray_cluster: ray_session.Cluster, network: Path, images: Path, tmp_path: Path
) -> None:
    """Let each die as of too little memory while it imports."""
    try:
        with pytest.raises(JobError, match=r"start the workers \(none has reported; .* memory .* Ray's log says so\)"):
            night(images, network, tmp_path / "out", Unheard(tmp_path), stall_timeout_s=3)
    finally:
        (tmp_path / "released").touch()


def test_a_network_that_is_replaced_under_way_is_said_so_in_a_sentence(
    ray_cluster: ray_session.Cluster, network: Path, images: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(network, tmp_path / "run")
    with pytest.raises(InputError, match=f"^{run} is not the network it was when this job began$"):
        night(images, run, tmp_path / "out", "tests.support.readers.Replaced")
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_worker_that_dies_again_and_again_ends_the_night(
    ray_cluster: ray_session.Cluster, network: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "MAX_DEATHS", 1)
    try:
        with pytest.raises(JobError, match="workers died 1 times without finishing a block"):
            night(images, network, tmp_path / "out", "tests.support.readers.Dying")
    finally:
        (tmp_path / "released").touch()


def test_more_workers_than_fit_are_refused_before_anything_is_read(
    ray_cluster: ray_session.Cluster, network: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="do not fit"):
        night(images, network, tmp_path / "out", num_workers=10_000)
    assert not list((tmp_path / "out").rglob("*.blocks"))


# ---------------------------------------------------------------- without Ray


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(("source", "out"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/b/../..", "a/c")])
def test_a_table_among_the_images_is_refused(source: str, out: str, network: Path, tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "a/b", ["ab"])
    with pytest.raises(InputError, match="the table and the images must stand apart"):
        night(tmp_path / source, network, tmp_path / out)
    assert not list(tmp_path.rglob("_lease.json"))


@pytest.mark.usefixtures("no_ray")
def test_a_place_whose_name_begins_like_the_other_is_another_place(network: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=r"images holds no objects$"):
        night(tmp_path / "images", network, tmp_path / "images-read")


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": "hidden"}, "hidden holds no objects"),
        ({"images": "images", "match": "jpg$"}, "images holds no objects that match 'jpg\\$'"),
        ({"images": "absent"}, "absent does not exist"),
        ({"images": "images", "run": "images"}, "images holds no checkpoint"),
        ({"images": "ftp://host/images"}, "ftp://host/images has a scheme this project does not read"),
        ({"images": "images/list.csv"}, "list.csv cannot be read"),
    ],
)
def test_nothing_to_read_is_bad_input_and_leaves_no_lease(
    changes: dict[str, str], sentence: str, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_glyphs(tmp_path / "images", ["ab"])
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/.DS_Store").write_bytes(b"x")
    with pytest.raises(InputError, match=sentence):
        transcribe(InferConfig(**{"run": str(network), "out": "out", **changes}), time.monotonic())
    assert not (tmp_path / "out/_lease.json").exists()


@pytest.mark.usefixtures("no_ray")
def test_a_table_that_another_job_is_at_work_on_is_refused(network: Path, images: Path, tmp_path: Path) -> None:
    with Lease(str(tmp_path / "out/_lease.json")):
        with pytest.raises(InputError, match=f"process {os.getpid()} on .* is at work on {tmp_path}/out; wait for it"):
            night(images, network, tmp_path / "out")


def a_night(ok: int, errors: dict[str, int], runs: int, skipped: int = 0) -> NightSummary:
    committed = Committed([Run("", k + 1) for k in range(runs)], Counts(ok, 0, Counter(errors)))
    return NightSummary("s3://b/out", ok + sum(errors.values()) + skipped, skipped, 0, committed, 2.0)


@pytest.mark.parametrize(
    ("done", "line"),
    [
        (
            a_night(0, {}, 0, skipped=1234),
            "0 of 1,234 objects done: 0 ok, 0 errors; 1,234 skipped as done; nothing to add to s3://b/out; "
            "2.0 s, 0 objects/s",
        ),
        (
            a_night(2000, {"Missing": 1, "Denied": 3}, 1, skipped=5),
            "2,004 of 2,009 objects done: 2,000 ok, 4 errors (3 Denied, 1 Missing); 5 skipped as done; "
            "committed as run=000001 in s3://b/out; 2.0 s, 1,002 objects/s",
        ),
        (
            a_night(10, {}, 5),
            "10 of 10 objects done: 10 ok, 0 errors; 0 skipped as done; committed as run=000001, run=000002, "
            "run=000003 and 2 more in s3://b/out; 2.0 s, 5 objects/s",
        ),
    ],
    ids=["nothing", "errors", "many runs"],
)
def test_a_night_is_said_in_one_line(done: NightSummary, line: str) -> None:
    assert done.describe() == line


@pytest.mark.usefixtures("ray_cluster")
def test_a_night_tells_uncertain_predictions_from_certain_ones(images: Path, network: Path, tmp_path: Path) -> None:
    every = night(images, network, tmp_path / "every")
    assert " uncertain, " not in every.describe()
    confidences = sorted(row["confidence"] for row in pq.read_table(tmp_path / "every").to_pylist())
    middle = (confidences[9] + confidences[10]) / 2
    found = night(images, network, tmp_path / "some", min_confidence=middle)
    assert "40 of 40 objects done: 30 ok, 10 uncertain, 0 errors" in found.describe()
    rows = pq.read_table(tmp_path / "some").to_pylist()
    assert all((row["status"] == "ok") == (row["confidence"] >= middle) for row in rows)
    manifest = json.loads((tmp_path / "some/run=000001/_manifest.json").read_text())
    assert manifest["counts"] == {"objects": 40, "ok": 30, "uncertain": 10, "errors": {}}
    assert night(images, network, tmp_path / "some", min_confidence=middle).skipped == 40
