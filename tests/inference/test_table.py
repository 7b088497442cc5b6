"""The table of predictions: what is done, what is left, and that whatever dies at any moment, every object has one row.

Rows are made by hand; there is no Ray and no network here. A `Writer` does what one job does with the table.
"""

import contextlib
import datetime
import itertools
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import obstore
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from captcha_ray.inference import schema
from captcha_ray.inference import table as inference_table
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.table import (
    FOOTER,
    NO_DATE,
    STAGED_SCHEMA,
    Committed,
    Counts,
    PredictionTable,
    Run,
    _partition_of,
)
from captcha_ray.storage import filesystem, objectstore
from tests.support.s3_server import serve_s3

MODEL, OTHER = "a" * 64, "b" * 64
NOW = datetime.datetime(2026, 11, 21, 3, 4, 5, 678901, datetime.UTC)
DATES = r"(\d{4})-(\d\d)-(\d\d)"

Object = tuple[str, str]
"""(uri, etag)."""


def objects(*names: str, etag: str = "1") -> list[Object]:
    return [(f"s3://images/{name}", etag) for name in names]


FIVE = objects("2026-11-20/a", "2026-11-20/b", "2026-11-21/c", "2026-11-21/d", "e")


def made(uri: str, etag: str, model: str = MODEL, error: str | None = None) -> dict[str, Any]:
    """A row as a worker stages it."""
    ok = error is None
    return {
        "uri": uri,
        "etag": etag,
        "size": len(uri),
        "last_modified": NOW,
        "text": uri[-1] if ok else None,
        "confidence": 0.5 if ok else None,
        "char_confidence": [0.5, 0.75] if ok else None,
        "status": "ok" if ok else "error",
        "error": error,
        "model_id": model,
        "predicted_at": NOW,
    }


class Writer:
    """A job at work on a table. errors: the sentences of objects that cannot be read, by URI."""

    def __init__(self, out: str, model: str = MODEL, **changes: Any) -> None:
        self._spool = Path(tempfile.mkdtemp(dir=os.environ["SPOOLS"]))
        self.model = model
        self.table = PredictionTable(InferConfig(out=out, **changes), model, self._spool)
        self.adopted = self.table.open()
        self.blocks = [self.table.adopted_block] if self.adopted.total else []

    def plan(self, listed: list[Object], **changes: Any) -> list[Object]:
        """What of a listing is to be read, sorted. changes: to the size and date it says."""
        source, path = self._spool / "listed.parquet", self._spool / "todo.parquet"
        rows = [{"uri": uri, "etag": etag, "size": len(uri), "last_modified": NOW, **changes} for uri, etag in listed]
        pq.write_table(pa.Table.from_pylist(rows, schema.LISTING_SCHEMA), source)
        count = self.table.plan(source, path)
        found = pq.read_table(path)
        assert found.schema.names == schema.LISTING_SCHEMA.names
        assert len(found) == count
        return sorted(zip(found["uri"].to_pylist(), found["etag"].to_pylist(), strict=True))

    def stage(self, read: list[Object], errors: dict[str, str] | None = None, folder: str = "") -> str:
        """URI of a new block of this attempt, or in another's folder."""
        uri = filesystem.join(folder or self.table.attempt, f"block-{len(self.blocks):06d}.staged")
        rows = [made(uri, etag, self.model, (errors or {}).get(uri)) for uri, etag in read]
        inference_table.stage(pa.Table.from_pylist(rows, STAGED_SCHEMA), uri)
        return uri

    def commit(self) -> Committed:
        """Commits all that is staged."""
        committed = self.table.commit(self.blocks, lambda counts: {"counts": counts.to_dict(), "ünï": 1})
        self.blocks = []
        return committed

    def read(self, pending: list[Object], errors: dict[str, str] | None = None, size: int = 2) -> Committed:
        """Stages blocks of `size` and commits every other time, as a night of several runs does."""
        committed = Committed()
        for start in range(0, len(pending), size):
            self.blocks.append(self.stage(pending[start : start + size], errors))
            if len(self.blocks) == 2:
                committed += self.commit()
        return committed + self.commit() if self.blocks else committed

    def night(self, listed: list[Object], errors: dict[str, str] | None = None, size: int = 2) -> Committed:
        """A whole night."""
        committed = self.read(self.plan(listed), errors, size)
        self.table.close()
        return committed


@pytest.fixture(autouse=True)
def spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server[1].items():
        monkeypatch.setenv(name, value)
    objectstore.forget_clients()
    yield f"s3://tables/{tmp_path.name}"
    objectstore.forget_clients()


@pytest.fixture(params=["local", "s3"])
def out(request: pytest.FixtureRequest) -> str:
    """An empty table of each kind."""
    found: str = request.getfixturevalue("local" if request.param == "local" else "remote")
    return found


def arrow(out: str) -> pa.Table:
    """All that a plain reader sees; an empty table where there is no row yet."""
    disk, path = pyarrow.fs.LocalFileSystem(), out
    if filesystem.is_remote(out):
        endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
        disk = pyarrow.fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1")
        path = out.removeprefix("s3://")
    if not any(name.endswith(".parquet") for name in filesystem.list_files(out)):
        return schema.PREDICTION_SCHEMA.empty_table()
    return pyarrow.dataset.dataset(path, filesystem=disk, partitioning="hive").to_table()


def seen(out: str) -> Counter[Object]:
    """How many rows each object has."""
    found = arrow(out)
    return Counter(zip(found["uri"].to_pylist(), found["etag"].to_pylist(), strict=True))


def once(listed: list[Object], times: int = 1) -> Counter[Object]:
    return Counter(dict.fromkeys(listed, times))


def names(out: str) -> list[str]:
    """Files of the table, without those of a job that is at work."""
    return [name for uri in filesystem.list_files(out) if not (name := uri.removeprefix(f"{out}/")).startswith("_")]


def check_whole(out: str, expected: Counter[Object]) -> None:
    """The table holds what it should, and nothing that is half done or left over."""
    assert seen(out) == expected
    files = [uri.removeprefix(f"{out}/") for uri in filesystem.list_files(out)]
    runs = [run for name in files if (run := Run.parse(name))]
    assert sorted(files) == sorted(f"{run.folder}/{name}" for run in runs for name in PARTS)
    for run in runs:
        data = filesystem.read(filesystem.join(out, run.file))
        footer = pq.read_schema(pa.BufferReader(data)).metadata[FOOTER]
        manifest = json.loads(filesystem.read(filesystem.join(out, f"{run.folder}/_manifest.json")))
        assert json.loads(footer) == manifest
        rows = pq.read_table(pa.BufferReader(data))
        assert manifest["run_id"] == run.run_id == set(rows["run_id"].to_pylist()).pop()
        assert manifest["counts"] == Counts.of(rows).to_dict()
    for partition in {run.partition for run in runs}:
        numbers = sorted(run.number for run in runs if run.partition == partition)
        assert numbers == list(range(1, len(numbers) + 1))


PARTS = ("_manifest.json", "predictions.parquet")


# ---------------------------------------------------------------- what is committed


def test_runs_are_numbered_from_one_and_each_is_a_file_and_its_manifest(out: str) -> None:
    first = Writer(out).night(FIVE[:2])
    second = Writer(out).night(FIVE, {FIVE[2][0]: "Missing: there is no such object"})
    assert [run.folder for run in first.runs] == ["run=000001"]
    assert [run.run_id for run in second.runs] == ["000002"]
    assert (first.counts.ok, first.counts.errors) == (2, {})
    assert (second.counts.ok, second.counts.errors, second.counts.total) == (2, {"Missing": 1}, 3)
    assert names(out) == [f"run=00000{k}/{name}" for k in (1, 2) for name in PARTS]
    manifest = json.loads(filesystem.read(filesystem.join(out, "run=000002/_manifest.json")))
    counts = {"objects": 3, "ok": 2, "uncertain": 0, "errors": {"Missing": 1}}
    assert manifest == {"run_id": "000002", "counts": counts, "ünï": 1}
    check_whole(out, once(FIVE))


def test_a_committed_row_is_what_was_staged_and_its_run_in_the_public_schema(out: str) -> None:
    error = {FIVE[1][0]: "Damaged: SyntaxError: broken"}
    Writer(out).night(FIVE[:2], error)
    table = pq.read_table(pa.BufferReader(filesystem.read(filesystem.join(out, "run=000001/predictions.parquet"))))
    assert table.schema.equals(schema.PREDICTION_SCHEMA)
    assert [field.nullable for field in table.schema] == [field.nullable for field in schema.PREDICTION_SCHEMA]
    assert table.to_pylist() == [
        {**made(uri, etag, error=error.get(uri)), "run_id": "000001"} for uri, etag in FIVE[:2]
    ]


def test_plain_readers_see_the_committed_rows_and_none_of_the_staged_ones(local: str) -> None:
    Writer(local, date_pattern=DATES).night(FIVE[:3])
    writer = Writer(local, date_pattern=DATES)
    writer.blocks.append(writer.stage(FIVE[3:]))
    filesystem.write(filesystem.join(local, "_lease.json"), b"{}")
    expected = sorted(uri for uri, _ in FIVE[:3])
    assert sorted(arrow(local)["uri"].to_pylist()) == expected
    assert sorted(pd.read_parquet(local)["uri"]) == expected
    place = local.replace("'", "''")
    table = f"read_parquet('{place}/**/*.parquet', hive_partitioning = true)"
    assert sorted(uri for (uri,) in duckdb.sql(f"SELECT uri FROM {table}").fetchall()) == expected
    writer.commit()
    assert len(pd.read_parquet(local)) == 5
    columns = "error, char_confidence, epoch_us(predicted_at)"
    found = duckdb.sql(f"SELECT {columns} FROM {table} WHERE uri = '{FIVE[4][0]}'").fetchall()
    assert found == [(None, [0.5, 0.75], round(NOW.timestamp() * 1e6))]


def test_pandas_reads_the_same_rows_from_a_bucket(remote: str) -> None:
    writer = Writer(remote)
    writer.night(FIVE[:3])
    writer.blocks.append(writer.stage(FIVE[3:]))
    assert sorted(pd.read_parquet(remote)["uri"]) == sorted(uri for uri, _ in FIVE[:3])


def test_nothing_is_left_in_staging_when_a_work_is_closed(out: str) -> None:
    writer = Writer(out)
    filesystem.write(filesystem.join(writer.table.attempt, "block-000000.block"), b"x")
    writer.blocks.append(writer.stage(FIVE))
    left_by_another = Writer(out, skip="never")
    writer.commit()
    assert not [uri for uri in filesystem.list_files(out) if uri.endswith(".staged")], "a commit removes its blocks"
    writer.table.close()
    assert all("_staging" not in uri or "begun.json" in uri for uri in filesystem.list_files(out))
    left_by_another.table.close()
    check_whole(out, once(FIVE))
    if not filesystem.is_remote(out):
        assert not os.path.exists(filesystem.join(out, "_staging"))


def test_a_name_of_a_run_is_parsed_and_other_names_are_none() -> None:
    for run in (Run("", 1), Run("date=2026-11-20", 12), Run("", 1_234_567), Run(NO_DATE, 1)):
        assert Run.parse(run.file) == run
    for name in (
        "run=000001/_manifest.json",
        "run=000001/.predictions.parquet.0f.tmp",
        "_staging/x/run=000001/predictions.parquet",
        "run=x/predictions.parquet",
        "predictions.parquet",
        "run=000001/predictions.parquet.bak",
    ):
        assert Run.parse(name) is None


def test_files_of_others_in_the_table_are_left_alone(out: str) -> None:
    for name in ("notes.txt", "run=000001/note.txt", "_staging/other/attempt-1/block-000000.staged"):
        filesystem.write(filesystem.join(out, name), b"mine")
    Writer(out).night(FIVE)
    for name in ("notes.txt", "run=000001/note.txt", "_staging/other/attempt-1/block-000000.staged"):
        assert filesystem.read(filesystem.join(out, name)) == b"mine"


# ---------------------------------------------------------------- what is left to do


@pytest.mark.parametrize(
    ("skip", "expected"),
    [("same-model", FIVE[2:]), ("any-model", FIVE[3:]), ("never", FIVE)],
    ids=["same-model", "any-model", "never"],
)
def test_what_counts_as_done_is_told_by_skip(skip: str, expected: list[Object], out: str) -> None:
    Writer(out).night(FIVE[:2], {FIVE[0][0]: "Missing: x"})
    Writer(out, model=OTHER).night(FIVE[2:3])
    assert Writer(out, skip=skip).plan(FIVE) == sorted(expected)


def test_an_empty_table_leaves_everything_and_a_full_one_nothing(out: str) -> None:
    writer = Writer(out)
    assert writer.plan(FIVE) == sorted(FIVE)
    writer.night(FIVE)
    assert Writer(out).plan(FIVE) == []


def test_a_changed_object_is_read_again_and_a_deleted_one_is_not_missed(out: str) -> None:
    Writer(out).night(FIVE)
    changed, new = objects("2026-11-20/a", etag="2"), objects("f")
    assert Writer(out).plan([*changed, *FIVE[1:3], *new]) == sorted(changed + new)


def test_an_object_that_is_changed_back_is_known(out: str) -> None:
    Writer(out).night(FIVE[:1])
    Writer(out).night(objects("2026-11-20/a", etag="2"))
    assert Writer(out).plan(FIVE[:1]) == []
    assert seen(out) == once(objects("2026-11-20/a", etag="2") + FIVE[:1])


def test_an_object_listed_without_an_etag_is_told_by_its_size_and_date(out: str) -> None:
    Writer(out).night(FIVE[:2])
    listed = [(uri, "") for uri, _ in FIVE]
    for known in ({}, {"size": None}, {"last_modified": None}, {"last_modified": NOW - datetime.timedelta(seconds=1)}):
        assert Writer(out).plan(listed, **known) == sorted(listed[2:])
    for changed in ({"size": 1}, {"last_modified": NOW + datetime.timedelta(seconds=1)}):
        assert Writer(out).plan(listed, **changed) == listed
        assert Writer(out).plan(FIVE, **changed) == FIVE[2:], "an etag decides alone"


def test_a_folder_whose_name_is_a_pattern_is_not_its_neighbor(tmp_path: Path) -> None:
    for name, read in (("o1", FIVE[:3]), ("o[1]", FIVE[2:])):
        (tmp_path / name).mkdir()
        Writer(str(tmp_path / name)).night(read)
    assert Writer(str(tmp_path / "o[1]")).plan(FIVE) == FIVE[:2]
    assert Writer(str(tmp_path / "o[1]"), retry_errors=True).plan(FIVE) == []


def test_a_work_that_was_refused_is_forgotten_unless_something_was_read(local: str) -> None:
    """Else its next try would take for its own, or not see, what other works commit meanwhile."""
    Writer(local, skip="never").table.give_up()
    Writer(local).night(FIVE[:2])
    assert Writer(local, skip="never").plan(FIVE) == FIVE
    again = Writer(local, skip="never")
    again.stage(FIVE[:1])
    again.table.give_up()
    assert Writer(local, skip="never").adopted.total == 1


def test_an_error_without_an_etag_is_read_again_once_its_etag_is_known(out: str) -> None:
    Writer(out).night([(FIVE[0][0], "")], {FIVE[0][0]: "Missing: x"})
    assert Writer(out).plan([(FIVE[0][0], "")]) == []
    assert Writer(out).plan(FIVE[:1]) == FIVE[:1]


def test_uris_with_quotes_and_newlines_are_told_apart(out: str) -> None:
    odd = objects("a'b", 'a"b', "a\nb", "a\\nb", "a b", "ä", "a;--")
    Writer(out).night(odd[::2])
    assert Writer(out).plan(odd) == sorted(odd[1::2])
    Writer(out).night(odd)
    assert seen(out) == once(odd)


def test_retrying_errors_reads_only_objects_that_this_model_never_read(out: str) -> None:
    failed = {uri: "Denied: x" for uri, _ in FIVE[:3]}
    Writer(out).night(FIVE[:4], failed)
    Writer(out, model=OTHER).night(FIVE, {FIVE[3][0]: "Denied: x", FIVE[4][0]: "Denied: x"})
    assert Writer(out, retry_errors=True).plan(FIVE) == sorted(FIVE[:3])
    again = Writer(out, retry_errors=True)
    again.night(FIVE, {FIVE[0][0]: "Denied: still"})
    assert Writer(out, retry_errors=True).plan(FIVE) == FIVE[:1], "those that were read meanwhile are done"
    changed = [(FIVE[0][0], "2"), *objects("new")]
    assert Writer(out, retry_errors=True).plan(changed) == [], "a change and a new object are no failure"
    assert Writer(out, retry_errors=True).plan([(uri, "") for uri, _ in FIVE]) == [(FIVE[0][0], "")]
    assert seen(out)[FIVE[0]] == 3, "the new row stands beside the old one, and beside the other model's"
    assert Writer(out).plan(FIVE) == [FIVE[4]], "an error is done unless it is asked for again"


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
    assert len(names(out)) == 4
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
    filesystem.write(filesystem.join(first.table.attempt, "block-000000.block"), b"x")
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


# ---------------------------------------------------------------- partitions


def test_each_date_has_its_own_sequence_of_runs_and_what_has_none_its_own(out: str) -> None:
    listed = objects(
        "2026-11-20/a",
        "2026-13-40/b",
        "2026-02-30/c",
        "d",
        "2024-02-29/e",
        "2026-11-20/2026-11-21/f",
        "2026-11-20/9999-99-99/g",
    )
    writer = Writer(out, date_pattern=DATES)
    writer.blocks = [writer.stage(listed)]
    committed = writer.commit()
    writer.table.close()
    assert [run.folder for run in committed.runs] == [
        "date=2024-02-29/run=000001",
        "date=2026-11-20/run=000001",
        "date=2026-11-21/run=000001",
        "date=unknown/run=000001",
    ]
    assert (committed.counts.total, committed.runs[0].run_id) == (7, "2024-02-29/000001")
    more = Writer(out, date_pattern=DATES)
    more.blocks = [more.stage(more.plan([*listed, *objects("2026-11-20/h", "2026-11-22/i")]))]
    assert [run.folder for run in more.commit().runs] == ["date=2026-11-20/run=000002", "date=2026-11-22/run=000001"]
    more.table.close()
    check_whole(out, once([*listed, *objects("2026-11-20/h", "2026-11-22/i")]))
    dates = {row["uri"][-1]: str(row["date"]) for row in arrow(out).to_pylist()}
    assert dates == {
        "a": "2026-11-20",
        "b": "unknown",
        "c": "unknown",
        "d": "unknown",
        "e": "2024-02-29",
        "f": "2026-11-21",
        "g": "2026-11-20",
        "h": "2026-11-20",
        "i": "2026-11-22",
    }


def test_all_three_readers_find_a_date_by_its_folder(local: str) -> None:
    Writer(local, date_pattern=DATES).night(FIVE)
    place = local.replace("'", "''")
    table = f"read_parquet('{place}/**/*.parquet', hive_partitioning = true)"
    rows = duckdb.sql(f"SELECT date, count(*) FROM {table} GROUP BY ALL ORDER BY ALL").fetchall()
    assert [(str(date), count) for date, count in rows] == [("2026-11-20", 2), ("2026-11-21", 2), ("unknown", 1)]
    found = pd.read_parquet(local, filters=[("date", "==", "2026-11-21")])
    assert sorted(found["uri"]) == [uri for uri, _ in FIVE[2:4]]
    dated = pyarrow.dataset.dataset(local, partitioning="hive").to_table(filter=pa.compute.field("date") == "unknown")
    assert dated["uri"].to_pylist() == [FIVE[4][0]]


def test_dates_in_any_spelling_are_found_where_the_pattern_has_them() -> None:
    date = re.compile(r"(\d{4})/(\d{1,2})/(\d{1,2})/")
    assert _partition_of("s3://b/2026/3/7/x.png", date) == "date=2026-03-07"
    assert _partition_of("s3://b/2026-03-07/x.png", date) == NO_DATE
    assert _partition_of("s3://b/0000/1/1/x.png", date) == NO_DATE


def test_a_number_taken_in_one_partition_moves_no_other(out: str) -> None:
    slow, fast = Writer(out, date_pattern=DATES), Writer(out, date_pattern=DATES)
    fast.night(FIVE[:1])
    slow.blocks = [slow.stage(FIVE)]
    folders = [run.folder for run in slow.commit().runs]
    assert folders == ["date=2026-11-20/run=000002", "date=2026-11-21/run=000001", "date=unknown/run=000001"]
    slow.table.close()
    check_whole(out, once(FIVE))
