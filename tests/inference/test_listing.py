"""Folders, buckets and tables become one Parquet file of the same form, with each object once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from captcha_ray.errors import InputError
from captcha_ray.inference import listing
from captcha_ray.storage import filesystem, objectstore
from captcha_ray.storage.database import connect
from tests.support.listings import DAYS, fill, uris

# --- folders and buckets


def test_a_folder_is_listed_with_what_tells_its_files_apart(tmp_path: Path, write: Callable[..., Any]) -> None:
    folder = tmp_path / "im'ages"
    fill(folder, "b.png", "deep/er/a.png", "no-ending", "empty/", "line\nfeed.png", "日本.png")
    (tmp_path / "elsewhere.png").write_bytes(b"12345")
    (folder / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (folder / "deep/loop").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "none")
    os.utime(folder / "b.png", (DAYS[0].timestamp(),) * 2)
    names = ["b.png", "deep/er/a.png", "empty", "gone.png", "line\nfeed.png", "link.png", "no-ending", "日本.png"]
    rows = write(folder)
    assert uris(rows) == [f"{folder}/{name}" for name in names]
    assert rows[0]["last_modified"] == DAYS[0]
    assert [row["size"] for row in rows] == [5, 13, 6, 0, 13, 5, 9, len("日本.png".encode())]
    for row in rows:
        if row["size"]:
            assert row == filesystem.fetch(row["uri"], 100)[1]._asdict()


def test_a_file_that_has_changed_has_another_etag(tmp_path: Path, write: Callable[..., Any]) -> None:
    images = fill(tmp_path / "images", "a.png", "b.png")
    before = write(images)
    (tmp_path / "images/a.png").write_bytes(b"y.png")  # of the same size
    os.utime(tmp_path / "images/a.png", (DAYS[0].timestamp(),) * 2)
    after = write(images)
    assert after[0]["etag"] != before[0]["etag"]
    assert after[1] == before[1]


def test_a_name_that_is_not_utf_8_stands_escaped(tmp_path: Path, write: Callable[..., Any]) -> None:
    images = fill(tmp_path / "images", "a.png")
    Path(os.fsdecode(os.fsencode(images) + b"/b\xff\xfe.png")).write_bytes(b"x")
    rows = write(images)
    assert uris(rows) == [f"{images}/a.png", f"{images}/b\\udcff\\udcfe.png"]
    assert rows[1]["size"] == 1


HIDDEN_FILES = (
    ".hidden.png",
    ".cache/a.png",
    "x/.DS_Store",
    "x/Thumbs.db",
    "__MACOSX/a.png",
    "desktop.ini",
    "x/._a.png",
)


def test_hidden_files_and_those_of_systems_are_counted_and_left_out(
    tmp_path: Path, bucket: str, write: Callable[..., Any]
) -> None:
    for base in (tmp_path / ".above/images", f"{bucket}/.above/images"):
        images = fill(base, "a.png", "x/b.png", "x/not.hidden.png", *HIDDEN_FILES)
        rows = write(images, num_hidden=len(HIDDEN_FILES))
        assert uris(rows) == [f"{images}/{name}" for name in ("a.png", "x/b.png", "x/not.hidden.png")]


def test_a_bucket_is_listed_as_its_objects_are_read(bucket: str, write: Callable[..., Any]) -> None:
    names = ["a.png", "deep/er/b.png", "日本 x.png", "q?x#y%2Fz.png"]
    fill(bucket, *names)
    fill(f"{bucket}-beside", "no.png")
    client = objectstore.s3_client("s3://bucket")
    for name in ("double//slash.png", "line\nfeed.png", "folder/"):
        client.put_object(Bucket="bucket", Key=f"{bucket.removeprefix('s3://bucket/')}/{name}", Body=b"")
    rows = write(bucket)
    assert uris(rows) == sorted(f"{bucket}/{name}" for name in [*names, "double//slash.png", "line\nfeed.png"])
    assert all(row == filesystem.fetch(row["uri"], 100)[1]._asdict() for row in rows)


def test_keys_of_buckets_with_dots_for_folders_are_not_hidden(bucket: str, write: Callable[..., Any]) -> None:
    keys = [f"{bucket.removeprefix('s3://bucket/')}/{name}" for name in ("../a.png", "./a.png", "x/../a.png")]
    for key in keys:
        objectstore.s3_client("s3://bucket").put_object(Bucket="bucket", Key=key, Body=b"x")
    assert uris(write(bucket)) == [f"s3://bucket/{key}" for key in keys]


def test_one_file_is_a_listing_of_one(tmp_path: Path, bucket: str, write: Callable[..., Any]) -> None:
    for base in (tmp_path / ".hidden", bucket):
        fill(base, "one.png", "two.png")
        assert uris(write(f"{base}/one.png")) == [f"{base}/one.png"]


def test_a_pattern_is_searched_in_the_whole_uri(tmp_path: Path, bucket: str, write: Callable[..., Any]) -> None:
    for base in (tmp_path / "images", bucket):
        images = fill(base, "2026/a.png", "2026/b.txt", "2025/a.png", ".hidden/2026.png")
        assert uris(write(images, match=r"/2026/.*\.png$", num_hidden=1)) == [f"{images}/2026/a.png"]
        assert uris(write(images, match=r"/2026/.*\.gif$", num_hidden=1)) == []


def test_more_than_is_held_at_once_is_written_in_groups(
    tmp_path: Path, write: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "PAGE_FILES", 3)
    monkeypatch.setattr(listing, "GROUP_ROWS", 7)
    images = fill(tmp_path / "images", *(f"{i:02d}.png" for i in range(25)))
    assert uris(write(images)) == [f"{images}/{i:02d}.png" for i in range(25)]
    (path,) = tmp_path.rglob("*.parquet")
    groups = [pq.read_metadata(path).row_group(k).num_rows for k in range(pq.read_metadata(path).num_row_groups)]
    assert [group for group in groups if group] == [9, 9, 7]


def test_nothing_of_that_name_is_one_sentence(tmp_path: Path, bucket: str, write: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="none does not exist"):
        write(tmp_path / "none")
    assert write(f"{bucket}/none") == []


def test_an_absent_bucket_is_one_sentence(bucket: str, write: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"^s3://nowhere/none.* or its bucket does not exist$"):
        write("s3://nowhere/none")


def test_long_queries_draw_nothing(tmp_path: Path) -> None:
    with connect(tmp_path) as database:
        assert database.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(False,)]
