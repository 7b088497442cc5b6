"""Whatever dies at any moment, and whoever writes meanwhile, every object has its row once."""

import contextlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import obstore
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pytest

from captcha_ray.predictions.table import (
    Committed,
    Counts,
)
from captcha_ray.storage import filesystem
from tests.support.prediction_tables import (
    DATES,
    FIVE,
    OTHER,
    Writer,
    arrow,
    check_whole,
    names,
    objects,
    once,
    seen,
)

pytestmark = pytest.mark.usefixtures("spools")

# ---------------------------------------------------------------- two writers


def test_a_run_number_that_another_writer_took_costs_no_row_and_doubles_none(out: str) -> None:
    Writer(out).night(FIVE[:1])
    slow, fast = Writer(out), Writer(out)
    pending = slow.plan(FIVE[:4])
    fast.night(FIVE[2:])
    slow.blocks.append(slow.stage(pending))
    committed = slow.commit()
    slow.table.close()
    assert ([run.number for run in committed.runs], committed.counts.total) == ([3], 1)
    check_whole(out, once(FIVE))
    assert arrow(out).filter(pa.compute.field("run_id") == "000003")["uri"].to_pylist() == [FIVE[1][0]]


def test_a_writer_that_finds_several_runs_taken_and_all_its_rows_in_them_commits_nothing(out: str) -> None:
    slow, fast = Writer(out), Writer(out)
    fast.read(FIVE)
    fast.table.close()
    slow.blocks.append(slow.stage(FIVE))
    assert slow.commit() == Committed()
    slow.table.close()
    assert len([name for name in names(out) if name.endswith(".parquet")]) == 2
    check_whole(out, once(FIVE))


@pytest.mark.parametrize(("skip", "kept"), [("same-model", 2), ("never", 2), ("any-model", 1)])
def test_rows_of_another_model_in_a_taken_run_take_no_row_out_unless_any_will_do(
    skip: str, kept: int, local: str
) -> None:
    slow, fast = Writer(local, skip=skip), Writer(local, model=OTHER)
    fast.night(FIVE[:1])
    slow.blocks.append(slow.stage(FIVE[:2]))
    assert slow.commit().counts.total == kept


def test_a_changed_object_in_a_taken_run_is_another_object(local: str) -> None:
    slow, fast = Writer(local), Writer(local)
    changed = objects("2026-11-20/a", etag="2")
    fast.night(changed)
    slow.blocks.append(slow.stage(FIVE[:1]))
    slow.commit()
    assert seen(local) == once(changed + FIVE[:1])


# ---------------------------------------------------------------- interruptions


class Killed(BaseException):
    """The process is gone: nothing catches this, and no further change to the table succeeds."""


@contextlib.contextmanager
def watched(step: Callable[[], None]) -> Iterator[None]:
    """Calls `step` before each change to a disk or a bucket, and in the middle of a file on the disk."""
    write_bytes = Path.write_bytes

    def halves(path: Path, data: bytes) -> int:
        step()
        write_bytes(path, bytes(data)[: len(data) // 2])
        step()
        return write_bytes(path, data)

    def stepping(call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **options: Any) -> Any:
            step()
            return call(*arguments, **options)

        return stepped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", halves)
        for place, name in ((Path, "replace"), (Path, "unlink"), (os, "link"), (obstore, "put"), (obstore, "delete")):
            patch.setattr(place, name, stepping(getattr(place, name)))
        yield


def killed_at(moment: int, task: Callable[[], object]) -> bool:
    """Does the work until its `moment`-th change to the table, which it does not survive; whether it was killed."""
    count = itertools.count()

    def step() -> None:
        if next(count) >= moment:
            raise Killed

    with watched(step):
        try:
            task()
        except Killed:
            return True
    return False


THREE = [FIVE[0], FIVE[2], FIVE[4]]


@pytest.mark.parametrize(
    ("changes", "times"),
    [({}, [1, 1, 1]), ({"skip": "never"}, [2, 2, 2]), ({"retry_errors": True}, [1, 2, 2])],
    ids=["same-model", "never", "retry"],
)
def test_a_night_that_is_killed_at_any_moment_and_again_gives_every_object_its_row(
    changes: dict[str, Any], times: list[int], local: str
) -> None:
    """At every change to the disk, from the first to the last; reading anew is killed there a second time."""
    if changes:
        Writer(local, date_pattern=DATES).night(THREE, {uri: "Denied: x" for uri, _ in THREE[1:]})
    before = f"{local}.before"
    shutil.copytree(local, before)
    changes = {"date_pattern": DATES, **changes}
    for moment in itertools.count():
        shutil.rmtree(local)
        shutil.copytree(before, local)
        if not killed_at(moment, lambda: Writer(local, **changes).night(THREE, size=1)):
            break
        if "skip" not in changes or killed_at(moment, lambda: Writer(local, **changes).night(THREE, size=1)):
            Writer(local, **changes).night(THREE, size=1)
        check_whole(local, Counter(dict(zip(THREE, times, strict=True))))
    assert moment > 30


def test_a_night_in_a_bucket_that_is_killed_at_any_moment_gives_every_object_its_row(remote: str) -> None:
    for moment in itertools.count():
        table = f"{remote}/{moment}"
        if not killed_at(moment, lambda table=table: Writer(table).night(FIVE)):  # type: ignore[misc]
            break
        Writer(table).night(FIVE)
        check_whole(table, once(FIVE))
    assert moment > 8


def test_a_reader_in_the_middle_of_a_commit_sees_all_of_a_run_or_none_of_it(out: str) -> None:
    Writer(out).night(FIVE[:1])
    looks: list[int] = []

    def inspect() -> None:
        found = arrow(out)
        looks.append(len(found))
        assert len(found) in (1, 5)
        if not filesystem.is_remote(out):
            assert len(pd.read_parquet(out)) == len(found)
            place = out.replace("'", "''")
            assert duckdb.sql(f"SELECT count(*) FROM '{place}/**/*.parquet'").fetchall() == [(len(found),)]

    writer = Writer(out)
    writer.blocks = [writer.stage(FIVE[1:])]
    with watched(inspect):
        writer.commit()
    assert looks[0] == 1
    assert looks[-1] == 5
    assert looks == sorted(looks)


def test_a_kill_between_rows_and_manifest_is_mended_by_the_next_job(out: str) -> None:
    Writer(out).night(FIVE)
    where = filesystem.join(out, "run=000001/_manifest.json")
    manifest = filesystem.read(where)
    filesystem.delete(where)
    assert Writer(out).plan(FIVE) == []
    assert filesystem.read(where) == manifest


def test_a_kill_between_commit_and_removal_of_its_blocks_commits_nothing_twice(out: str) -> None:
    writer = Writer(out)
    block = writer.stage(FIVE)
    data = filesystem.read(block)
    writer.blocks = [block]
    writer.commit()
    filesystem.write(block, data)
    after = Writer(out)
    assert (after.adopted.total, after.blocks) == (0, [])
    assert not filesystem.exists(block)
    assert after.night(FIVE) == Committed()
    check_whole(out, once(FIVE))


def test_blocks_of_earlier_attempts_are_taken_over_once_whatever_they_share(out: str) -> None:
    error = {FIVE[1][0]: "Denied: x"}
    first, second = Writer(out), Writer(out)  # the second one begins before the first has staged anything
    first.stage(FIVE[:2], error)
    second.stage(FIVE[1:3], error)
    filesystem.write(filesystem.join(first.table.attempt, ".block-000001.staged.0f.tmp"), b"half a bl")
    filesystem.write(filesystem.join(first.table.attempt, "part-000000.blocks"), b"x")
    third = Writer(out)
    assert (third.adopted.ok, third.adopted.errors) == (2, {"Denied": 1})
    staged = [uri for uri in filesystem.list_files(out) if "/attempt-" in uri]
    assert staged == [third.table.adopted_block]
    assert third.plan(FIVE) == sorted(FIVE[3:])
    fourth = Writer(out)
    assert fourth.adopted == third.adopted
    assert fourth.night(FIVE).counts.total == 5
    check_whole(out, once(FIVE))


def test_a_table_below_folders_named_like_columns_is_resumed_with_its_own_rows(tmp_path: Path) -> None:
    out = str(tmp_path / "model=v1" / "uri=z" / "table")
    Path(out).mkdir(parents=True)
    killed = Writer(out)
    killed.blocks.append(killed.stage(FIVE[:2]))
    second = Writer(out)
    assert second.adopted.ok == 2
    assert second.plan(FIVE) == sorted(FIVE[2:])
    second.night(FIVE)
    check_whole(out, once(FIVE))
    assert Writer(out).plan(FIVE) == []


def test_a_block_that_was_torn_when_the_power_failed_is_read_again(local: str) -> None:
    killed = Writer(local)
    whole, torn = killed.stage(FIVE[:2]), filesystem.join(killed.table.attempt, "block-000007.staged")
    filesystem.write(torn, filesystem.read(whole)[:99])
    second = Writer(local)
    assert second.adopted.ok == 2
    second.night(FIVE)
    check_whole(local, once(FIVE))


def test_blocks_of_another_network_or_under_other_limits_are_not_taken_over(local: str) -> None:
    Writer(local).stage(FIVE)
    for other in (
        {"model": OTHER},
        {"skip": "any-model"},
        {"max_bytes": 7},
        {"max_pixels": 7},
        {"max_stretch": 7.0},
        {"min_confidence": 0.7},
    ):
        assert Writer(local, **other).adopted == Counts()  # type: ignore[arg-type]
    assert Writer(local, stall_timeout_s=7, num_workers=3, objects_per_run=7).adopted.ok == 5


def test_rows_that_were_staged_for_an_object_which_changed_since_stand_beside_the_new_ones(local: str) -> None:
    Writer(local).stage(FIVE[:2])
    after = Writer(local)
    changed = objects("2026-11-20/a", etag="2")
    assert after.plan(changed + FIVE[1:2]) == changed
    after.night(changed + FIVE[1:2])
    check_whole(local, once(FIVE[:2] + changed))


def test_a_worker_that_outlives_its_job_and_stages_into_its_folder_does_no_harm(out: str) -> None:
    """It may come while the next job is at work, and after that has ended."""
    dead = Writer(out)
    dead.stage(FIVE[:2])
    after = Writer(out)
    pending = after.plan(FIVE)
    after.stage(FIVE[:4], folder=dead.table.attempt)
    after.read(pending)
    after.table.close()
    check_whole(out, once(FIVE))
    after.stage(FIVE[1:], folder=dead.table.attempt)
    assert seen(out) == once(FIVE)
    last = Writer(out)
    assert last.adopted == Counts()
    assert last.night([*FIVE, *objects("f")]).counts.total == 1
    check_whole(out, once([*FIVE, *objects("f")]))


def test_reading_everything_again_resumes_where_it_was_killed(out: str) -> None:
    Writer(out).night(FIVE)
    writer = Writer(out, skip="never")
    assert writer.plan(FIVE) == sorted(FIVE)
    writer.blocks = [writer.stage(FIVE[:2])]
    writer.commit()
    writer.stage(FIVE[2:3])
    resumed = Writer(out, skip="never")
    assert resumed.adopted.total == 1
    assert resumed.plan(FIVE) == sorted(FIVE[3:])
    resumed.night(FIVE)
    check_whole(out, once(FIVE, 2))
    assert Writer(out, skip="never").plan(FIVE) == sorted(FIVE), "the next night is another"
