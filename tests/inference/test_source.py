"""Checks that a night looks at the dates it is told, and passes over what is older or stands before."""

import datetime
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from captcha_ray.errors import InputError
from captcha_ray.inference import source
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.job import NightSummary, open_table, transcribe
from captcha_ray.inference.source import Source, resolve
from captcha_ray.models.fingerprint import load_spec_and_fingerprint
from captcha_ray.storage import filesystem
from tests.factories import draw_glyphs

TODAY = datetime.date(2026, 11, 25)
DAYS = "s3://b/{date:%Y/%m/%d}/in"


def uris(images: str, date: str) -> list[str]:
    return [uri.removeprefix("s3://b/") for uri in resolve(InferConfig(images=images, date=date), TODAY).uris]


@pytest.mark.parametrize(
    ("images", "date", "expected"),
    [
        (DAYS, "today", ["2026/11/25/in"]),
        (DAYS, "yesterday", ["2026/11/24/in"]),
        (DAYS, "2024-02-29", ["2024/02/29/in"]),
        (DAYS, "2026-10-31..2026-11-01", ["2026/10/31/in", "2026/11/01/in"]),
        (DAYS, "2026-11-24..today", ["2026/11/24/in", "2026/11/25/in"]),
        ("s3://b/{date:%Y}/{date:%j}", "today", ["2026/329"]),
        ("s3://b/{date:%Y-%m}", "2026-10-30..2026-11-02", ["2026-10", "2026-11"]),
        ("s3://b/{x} {date}", "", ["{x} {date}"]),
    ],
)
def test_dates_are_put_in_their_places(images: str, date: str, expected: list[str]) -> None:
    assert uris(images, date) == expected


@pytest.mark.parametrize(
    ("images", "date", "sentence"),
    [
        (DAYS, "", r"images is '.*'; --date must say which dates"),
        ("s3://b", "today", r"images is 's3://b', which has no place for --date today, such as \{date:%Y/%m/%d\}"),
        *(
            (DAYS, date, f"date is '{date}'; it must be today, ")
            for date in ("tomorrow", "2026-02-30", "..", "a..today")
        ),
        *((DAYS, date, "the range must hold 1 to 3660 days") for date in ("today..yesterday", "1900-01-01..today")),
    ],
)
def test_dates_that_are_none_are_refused(images: str, date: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        uris(images, date)


@pytest.mark.parametrize(
    ("uris", "shared"),
    [
        (("/a/b",), "/a/b"),
        (("/a/2026/10/31", "/a/2026/11/01"), "/a/2026"),
        (("/a/b", "/a/bc"), "/a"),
        (("/a", "/a/b"), "/a"),
        (("/2026/a", "/2027/b"), "/"),
        (("s3://in-2026/1", "s3://in-2027/1"), "s3://in-2026/1"),
    ],
)
def test_the_folder_that_nodes_must_see_holds_all_dates(uris: tuple[str, ...], shared: str) -> None:
    assert Source(uris).shared == shared


# ---------------------------------------------------------------- nights


def night(images: str, network: Path, out: Path, **changes: Any) -> NightSummary:
    return transcribe(InferConfig(images=images, run=str(network), out=str(out), **changes), time.monotonic())


def days(folder: Path, **names: list[str]) -> str:
    """Draw images of days of November, and return the pattern of their folders."""
    for day, texts in names.items():
        draw_glyphs(folder / "2026" / f"11-{day.removeprefix('day')}", texts)
    return f"{folder}/{{date:%Y/%m-%d}}"


def test_a_night_over_dates_lists_no_other_and_days_without_images_are_no_error(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = days(tmp_path / "in", day20=["aa"], day21=["ab", "ba"], day24=["bb"])
    done = night(images, network, tmp_path / "out", date="2026-11-21..2026-11-24")
    assert (done.listed, done.committed.counts.total) == (3, 3)
    again = night(images, network, tmp_path / "out", date="2026-11-20..2026-11-21")
    assert (again.listed, again.skipped, again.committed.counts.total) == (3, 2, 1)
    manifest = json.loads((tmp_path / "out/run=000002/_manifest.json").read_text())
    assert manifest["config"]["date"] == "2026-11-20..2026-11-21"
    empty = night(images, network, tmp_path / "out", date="2026-11-22..2026-11-23")
    assert (empty.listed, empty.committed.runs) == (0, [])
    assert f"none of the 2 places from {tmp_path}/in/2026/11-22 to " in capsys.readouterr().err


def test_the_table_may_stand_among_no_date(network: Path, tmp_path: Path) -> None:
    images = days(tmp_path / "in", day20=["aa"])
    with pytest.raises(InputError, match="the table and the images must stand apart"):
        night(images, network, tmp_path / "in/2026/11-21/out", date="2026-11-20..2026-11-21")


def test_objects_of_before_a_date_are_passed_over_and_need_not_be_there(network: Path, tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "in", ["aa", "ab", "ba"])
    old, *new = sorted(folder.iterdir())
    since = datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC)
    for path, seconds in ((old, -1), (new[0], 0), (new[1], 1)):
        os.utime(path, (since.timestamp() + seconds,) * 2)
    found = night(str(folder), network, tmp_path / "out", since="2026-11-20T00:00+00:00")
    assert (found.listed, found.skipped, found.committed.counts.total) == (2, 0, 2)
    nothing = night(str(folder), network, tmp_path / "out", since="2026-11-21T00:00+00:00")
    assert (nothing.listed, nothing.committed.runs) == (0, [])


def test_since_a_run_is_since_its_job_began_less_an_hour(network: Path, tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "in", ["aa", "ab"])
    before = datetime.datetime.now(datetime.UTC)
    night(str(folder), network, tmp_path / "out")
    config = InferConfig(images=str(folder), run=str(network), out=str(tmp_path / "out"), since="000001")
    since = resolve(config, TODAY).since
    assert since is not None
    began = since + source.CLOCKS_DIFFER
    assert abs(began - before) < datetime.timedelta(seconds=2), "committed_at has seconds"
    with pytest.raises(InputError, match=r"the table .*out has no such run"):
        resolve(InferConfig(out=str(tmp_path / "out"), since="2026-11-20/000002"), TODAY)
    with pytest.raises(InputError, match="since is 'monday'; it must be a date or time, "):
        resolve(InferConfig(out=str(tmp_path / "out"), since="monday"), TODAY)


@pytest.mark.parametrize("given", ["{folder}/b/1.png", "b/1.png"])
def test_objects_up_to_one_are_passed_over(given: str, network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    image = next(draw_glyphs(tmp_path / "drawn", ["ab"]).iterdir()).read_bytes()
    for name in ("a/9", "b/0", "b/1", "b/2", "c"):
        filesystem.write(f"{folder}/{name}.png", image)
    found = night(str(folder), network, tmp_path / "out", start_after=given.format(folder=folder))
    assert (found.listed, found.committed.counts.total) == (2, 2)
    nothing = night(str(folder), network, tmp_path / "out", start_after="d")
    assert (nothing.listed, nothing.committed.runs) == (0, [])


def test_a_table_of_uris_is_cut_as_a_folder_is(network: Path, tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "in", ["aa", "ab", "ba", "bb"])
    names = sorted(path.name for path in folder.iterdir())
    dates = ["2026-11-19T00:00:00Z", "2026-11-20T00:00:00Z", "", "2026-11-21T00:00:00Z"]
    lines = [f"{name},{date}" for name, date in zip(names, dates, strict=True)]
    (folder / "list.csv").write_text("\n".join(["path,last_modified", *lines]))
    listed = f"{folder}/list.csv"
    assert night(listed, network, tmp_path / "a", since="2026-11-20T00:00+00:00").listed == 3
    assert night(listed, network, tmp_path / "b", start_after=f"{folder}/{names[2]}").listed == 1


@pytest.mark.parametrize(
    ("images", "given", "expected"),
    [
        ("s3://b/in", "in/x", "s3://b/in/x"),
        ("s3://b/in", "s3://b/y", "s3://b/y"),
        ("/in", "a/x", "/in/a/x"),
        ("/in", "/in/x", "/in/x"),
        ("/in", "file:///in/x", "/in/x"),
        ("/list.csv", "s3://b/y", "s3://b/y"),
        ("s3://b/list.csv", "s3://c/y", "s3://c/y"),
    ],
)
def test_an_object_to_start_after_is_a_uri_a_key_or_a_path(images: str, given: str, expected: str) -> None:
    assert resolve(InferConfig(images=images, start_after=given), TODAY).start_after == expected


@pytest.mark.parametrize(
    ("images", "given", "sentence"),
    [
        ("s3://b/in", "s3://c/x", "which is not in s3://b"),
        ("/in", "s3://b/x", "which is not in a local folder"),
        ("/in/list.csv", "x.png", "with a table it must be a whole URI or path"),
        ("/in", "ftp://b/x", "a scheme this project does not read"),
    ],
)
def test_an_object_to_start_after_that_lies_elsewhere_is_refused(images: str, given: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        resolve(InferConfig(images=images, start_after=given), TODAY)


def test_tables_of_several_dates_are_refused() -> None:
    images = "s3://b/{date:%Y-%m-%d}.csv"
    assert uris(images, "today") == ["2026-11-25.csv"]
    with pytest.raises(InputError, match="of tables only one can be listed"):
        uris(images, "yesterday..today")


def id_of(network: Path) -> str:
    return load_spec_and_fingerprint(str(network))[1]


def test_since_a_run_wants_the_same_objects_and_no_work_that_was_left(network: Path, tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "in", ["aa", "ab"])
    night(str(folder), network, tmp_path / "out", match="png")
    with pytest.raises(InputError, match=r"that run's job looked at .*'match': 'png'.*; give a date instead"):
        night(str(folder), network, tmp_path / "out", since="000001")
    begun = tmp_path / "out/_staging/0123456789abcdef/begun.json"
    filesystem.write(str(begun), b"[]")
    with pytest.raises(InputError, match="did not end, and what it left may be older; repeat its command first"):
        night(str(folder), network, tmp_path / "out", match="png", since="000001")
    filesystem.delete(str(begun))
    own = open_table(
        InferConfig(images=str(folder), out=str(tmp_path / "out"), match="png", since="000001"),
        id_of(network),
        tmp_path,
    )
    own.open()
    assert list((tmp_path / "out").glob("_staging/*/begun.json")), "an interrupted job of the same command goes on"
    assert night(str(folder), network, tmp_path / "out", match="png", since="000001").skipped == 2
    filesystem.write(str(tmp_path / "out/run=000001/predictions.parquet"), b"PAR1")
    with pytest.raises(InputError, match="is damaged"):
        night(str(folder), network, tmp_path / "out", match="png", since="000001")


def test_a_date_is_of_this_machines_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        since = resolve(InferConfig(since="2026-11-20"), TODAY).since
        assert since == datetime.datetime(2026, 11, 19, 15, tzinfo=datetime.UTC)
        assert resolve(InferConfig(since="1800-01-01"), TODAY).since is not None
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_work_that_an_earlier_version_left_is_taken_over() -> None:
    """Pin the hash under which staged rows lie: another one would leave them to nobody."""
    config = InferConfig(images="/images", out="/table")
    table = open_table(config, "a" * 64, Path("/spool"))
    assert table.attempt.startswith("/table/_staging/82f8b1c90354ba72/attempt-")
    dated = open_table(config, "a" * 64, Path("/spool"), ["/images/1"])
    since = open_table(InferConfig(images="/images", out="/table", since="x"), "a" * 64, Path("/spool"))
    after = open_table(InferConfig(images="/images", out="/table", start_after="x"), "a" * 64, Path("/spool"))
    assert len({one.attempt.split("/")[3] for one in (table, dated, since, after)}) == 4
