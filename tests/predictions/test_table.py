"""The table of predictions: what is done, what is left, and that whatever dies at any moment, every object has one row.

Rows are made by hand; there is no Ray and no network here. A `Writer` does what one job does with the table.
"""

import datetime
import json
import os
import re
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from captcha_ray.predictions import schema
from captcha_ray.predictions.table import (
    NO_DATE,
    Run,
    _partition_of,
)
from captcha_ray.storage import filesystem
from tests.support.prediction_tables import (
    DATES,
    FIVE,
    NOW,
    OTHER,
    PARTS,
    Object,
    Writer,
    arrow,
    check_whole,
    made,
    names,
    objects,
    once,
    seen,
)

# ---------------------------------------------------------------- what is committed

pytestmark = pytest.mark.usefixtures("spools")


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
    filesystem.write(filesystem.join(writer.table.attempt, "part-000000.blocks"), b"x")
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


def test_a_work_that_has_committed_a_run_is_not_forgotten(local: str) -> None:
    writer = Writer(local, skip="never")
    writer.blocks = [writer.stage(FIVE[:2])]
    writer.commit()
    writer.table.give_up()
    assert Writer(local, skip="never").plan(FIVE) == FIVE[2:]


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
