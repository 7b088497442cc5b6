"""Buckets of real S3 servers give all they hold, whatever its name, and take what is written once."""

import contextlib
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captcha_ray.storage import bucket_listing, filesystem, objectstore
from captcha_ray.storage.objectstore import Entry
from captcha_ray.storage.retries import StoreError
from tests.support.buckets import DATA, ODD_KEYS, PASSING, SHAPES, client, count, entries, keys
from tests.support.fault_proxy import Fault, fault_proxy

# --- names and listings


def test_keys_of_any_form_are_listed_and_read_back_and_touch_no_local_file(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "above/here/a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above/here")
    decoys = [tmp_path / "above/here/a/b", tmp_path / "above/here/b", tmp_path / "above/up", tmp_path / "absolute"]
    for decoy in decoys:
        decoy.write_bytes(b"a local file")
    odd = [*ODD_KEYS, str(decoys[-1]), "../../absolute"]
    for key in odd:
        client().put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=f"{key} in the store".encode())
    listed = entries(bucket)
    assert Counter(entry.uri for entry in listed) == Counter(f"{bucket}/{key}" for key in odd)
    for entry in listed:
        data = f"{objectstore.split(entry.uri)[1]} in the store".encode()
        assert objectstore.get(entry.uri) == (data, entry)
        assert filesystem.read(entry.uri) == data
        assert filesystem.fetch(entry.uri, 10_000) == (data, entry)
        assert entry.size == len(data)
        assert set(entry.etag) <= set("0123456789abcdef"), "no quotes"
    assert [decoy.read_bytes() for decoy in decoys] == [b"a local file"] * 4
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 4


@pytest.mark.parametrize("key", ["../up", "a//b", "./b", "/etc/passwd", "up"])
def test_an_absent_key_is_missing_though_a_local_file_bears_its_name(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / "here/a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for name in ("up", "here/up", "here/a/b", "here/b"):
        (tmp_path / name).write_bytes(b"local")
    assert os.path.exists(key)
    with pytest.raises(FileNotFoundError, match=f"^{bucket}/{re.escape(key)} or its bucket does not exist$"):
        filesystem.read(f"{bucket}/{key}")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_key_is_listed_and_read_back(bucket: str, key: str) -> None:
    name = bucket.removeprefix("s3://")
    client().put_object(Bucket=name, Key=key, Body=key.encode())
    (entry,) = entries(bucket)
    assert entry.uri == f"{bucket}/{key}"
    assert objectstore.get(entry.uri) == (key.encode(), entry)
    client().delete_object(Bucket=name, Key=key)


@pytest.mark.parametrize("shape", ["flat", "both", "deep", "large"])
def test_a_listing_that_starts_after_a_key_lacks_none_that_follow(rclone: dict[str, str], shape: str) -> None:
    names = sorted(SHAPES[shape])
    inside = names[len(names) * 9 // 10]
    folder = inside.rpartition("/")[0]
    for start in (inside, f"{folder}/", f"{folder}0", f"{inside}/x", "zz"):
        found = [key for key in keys_after(shape, start) if key > start]
        assert found == [name for name in names if name > start], start


def test_a_store_is_asked_for_keys_after_one_alone_where_that_loses_no_folder(bucket: str) -> None:
    names = ["a", "a/b/1", "a/b/2", "a/b/3", "a/b0", "a/x", "b", "b/c/d/e", "z"]
    for name in names:
        client().put_object(Bucket=bucket.removeprefix("s3://"), Key=name, Body=b"")
    for start in [*names, "a/", "a/b", "a/b/", "a0", "b/c", "b/c/d/e/f", "zz"]:
        found = keys_after(bucket.removeprefix("s3://"), start)
        assert [key for key in found if key > start] == [name for name in names if name > start], start
        assert len(found) <= sum(name > start for name in names) + 2 * start.count("/"), start


def keys_after(bucket: str, start: str) -> list[str]:
    pages = bucket_listing.list_pages(f"s3://{bucket}", f"s3://{bucket}/{start}")
    return sorted(objectstore.split(entry.uri)[1] for page in pages for entry in page)


def test_what_comes_short_of_a_range_is_no_answer(behind: Callable[..., Any]) -> None:
    with behind(lambda *_: None), pytest.raises(StoreError, match=r"99999 bytes came of the range bytes=1-100004"):
        objectstore.get_range("s3://bucket/key", 1, len(DATA) + 5)


def test_many_objects_are_removed_by_one_request_and_absent_ones_are_no_error(behind: Callable[..., Any]) -> None:
    with behind(lambda *_: None) as proxy:
        uris = [f"s3://bucket/many/{k:04d}" for k in range(30)]
        for uri in uris[::2]:
            objectstore.put(uri, b"x")
        objectstore.put("s3://bucket/many/other", b"x")
        objectstore.delete(*uris)
        objectstore.delete()
        assert keys("s3://bucket/many") == ["many/other"]
        assert count(proxy, "delete") == 1
        objectstore.delete("s3://bucket/many/other")


def test_what_marks_a_folder_is_left_out_and_what_has_bytes_is_not(bucket: str) -> None:
    for key, data in {"a/": b"", "a/b/": b"", "a/b/c/": b"1", "a/b/empty": b"", "d/": b"2", "//": b""}.items():
        client().put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=data)
    assert sorted(keys(bucket)) == ["a/b/c/", "a/b/empty", "d/"]
    assert sorted(keys(f"{bucket}/a")) == sorted(keys(f"{bucket}/a/")) == ["a/b/c/", "a/b/empty"]
    assert keys(f"{bucket}/d") == ["d/"]
    assert not filesystem.is_empty(f"{bucket}/d")
    objectstore.delete(f"{bucket}/a/b/empty")
    client().delete_object(Bucket=bucket.removeprefix("s3://"), Key="a/b/c/")
    assert filesystem.is_empty(f"{bucket}/a")


def test_an_empty_bucket_and_an_absent_folder_hold_nothing(bucket: str) -> None:
    assert keys(bucket) == keys(f"{bucket}/none") == list(filesystem.list_files(f"{bucket}/none")) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_a_listing_gives_each_object_once_in_pages_of_a_thousand_though_every_request_fails_at_first(
    rclone_server: dict[str, str], use: Callable[..., None], shape: str
) -> None:
    def plan(_: str, __: str, attempt: int) -> Fault | None:
        return PASSING[attempt] if attempt < 1 else None

    with fault_proxy(rclone_server["AWS_ENDPOINT_URL"], plan) as proxy:
        use(rclone_server, AWS_ENDPOINT_URL=proxy.url)
        pages = list(bucket_listing.list_pages(f"s3://{shape}"))
    assert Counter(objectstore.split(e.uri)[1] for page in pages for e in page) == Counter(SHAPES[shape])
    assert max(map(len, pages)) <= 1000
    assert set(proxy.requests.values()) == {2}


def test_a_thousand_folders_of_one_object_are_not_asked_for_one_by_one(
    rclone_server: dict[str, str], use: Callable[..., None]
) -> None:
    with fault_proxy(rclone_server["AWS_ENDPOINT_URL"], lambda *_: None) as proxy:
        use(rclone_server, AWS_ENDPOINT_URL=proxy.url)
        assert len(keys("s3://folders")) == 1200
    assert proxy.requests.total() == 3


def test_folders_beyond_the_most_are_listed_whole(rclone: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for most in (1, 3):
        monkeypatch.setattr(bucket_listing, "MAX_FOLDERS", most)
        assert Counter(keys("s3://deep")) == Counter(SHAPES["deep"])


def test_a_listing_that_is_not_read_to_its_end_leaves_no_thread(rclone: dict[str, str]) -> None:
    threads = set(threading.enumerate())
    pages = bucket_listing.list_pages("s3://many")
    next(pages)
    pages.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) <= threads


def test_a_listing_and_a_read_say_the_same_of_an_object(rclone: dict[str, str]) -> None:
    (listed,) = entries("s3://bucket")
    data, read = objectstore.get("s3://bucket/key")
    assert data == DATA
    assert (listed.uri, listed.etag, listed.size) == (read.uri, read.etag, read.size) == read[:3]
    assert listed.last_modified.replace(microsecond=0) == read.last_modified, "HTTP's dates are of whole seconds"
    assert objectstore.head("s3://bucket/key") == read
    assert '"' not in read.etag
    assert read.etag


@pytest.mark.parametrize("key", ["key", "an//odd/../key"])
def test_an_object_above_the_limit_is_not_fetched(
    behind: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(objectstore, "REQUEST_TIMEOUT_S", 2)
    monkeypatch.setattr(objectstore, "PATIENT_TIMEOUT_S", 2)
    with behind(lambda *_: Fault.SLOW, slow_seconds=3600) as proxy:  # the body never comes, and nobody waits for it
        data, entry = objectstore.get(f"s3://bucket/{key}", max_bytes=len(DATA) - 1)
    assert data is None
    assert (entry.uri, entry.size) == (f"s3://bucket/{key}", len(DATA))
    assert proxy.requests == {("GET", f"/bucket/{key}"): 1}
    with behind(lambda *_: None):
        assert objectstore.get(f"s3://bucket/{key}", max_bytes=len(DATA)) == (DATA, entry)


# --- writes


def test_of_two_writers_that_see_nothing_and_write_at_once_one_wins(
    behind: Callable[..., Any], moto_server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both_have_asked = threading.Barrier(2, timeout=20)
    head = objectstore.head

    def ask(uri: str) -> Entry | None:
        found = head(uri)
        both_have_asked.wait()
        return found

    def plan(method: str, _: str, attempt: int) -> Fault | None:
        if method == "PUT" and attempt == 1:  # moto, unlike Amazon's, would let in both of two at the same instant
            for _ in range(2000):
                with contextlib.suppress(ClientError):
                    moto.head_object(Bucket="bucket", Key="own")
                    return None
                time.sleep(0.005)
        return None

    def write(data: bytes) -> bool:
        try:
            objectstore.put("s3://bucket/own", data, exclusive=True)
        except FileExistsError:
            return False
        return True

    moto = client()
    with behind(plan) as proxy:
        monkeypatch.setattr(objectstore, "head", ask)
        with ThreadPoolExecutor(2) as pool:
            won = list(pool.map(write, [b"first", b"second"]))
        assert sorted(won) == [False, True]
        assert objectstore.get("s3://bucket/own")[0] == (b"first" if won[0] else b"second")
    assert count(proxy, "put exclusive") == 2


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_write_whose_answer_was_lost_is_done(behind: Callable[..., Any], exclusive: bool) -> None:
    def plan(method: str, _: str, attempt: int) -> Fault | None:
        return Fault.CUT if method == "PUT" and attempt == 0 else None

    with behind(plan) as proxy:
        objectstore.put("s3://bucket/own", DATA, exclusive=exclusive)
        assert objectstore.get("s3://bucket/own")[0] == DATA
    assert count(proxy, "put exclusive") == 2


def test_a_write_that_failed_at_first_does_not_claim_what_another_has_written_meanwhile(
    behind: Callable[..., Any],
) -> None:
    moto = client()

    def plan(method: str, _: str, attempt: int) -> Fault | None:
        if method == "PUT" and attempt == 0:
            moto.put_object(Bucket="bucket", Key="own", Body=b"another's")
            return Fault.SLOW_DOWN
        return None

    with behind(plan) as proxy:
        with pytest.raises(FileExistsError, match=r"^s3://bucket/own exists$"):
            objectstore.put("s3://bucket/own", DATA, exclusive=True)
        assert objectstore.get("s3://bucket/own")[0] == b"another's"
    assert count(proxy, "put exclusive") == 2


def test_an_exclusive_write_over_another_sends_no_bytes(behind: Callable[..., Any]) -> None:
    with behind(lambda *_: None) as proxy, pytest.raises(FileExistsError, match=r"^s3://bucket/key exists$"):
        objectstore.put("s3://bucket/key", b"x", exclusive=True)
    assert proxy.requests == {("HEAD", "/bucket/key"): 1}


@pytest.mark.parametrize(
    "key",
    [
        *("a//b", "a/../b", "./b", "line\nfeed"),
        *("/key", "key/", "/key/"),
    ],
)
def test_a_key_that_can_only_be_read_is_not_written_but_named(bucket: str, key: str) -> None:
    with pytest.raises(StoreError, match=f"^{bucket}/{re.escape(key)}: "):
        objectstore.put(f"{bucket}/{key}", b"x")
    assert keys(bucket) == []


@pytest.mark.parametrize(
    "key",
    [
        *("/key", "key/"),
        *("a//b", "../key", "line\nfeed"),
    ],
)
def test_a_delete_of_a_key_that_can_only_be_read_is_refused_and_leaves_others(bucket: str, key: str) -> None:
    objectstore.put(f"{bucket}/key", b"x")
    with pytest.raises(StoreError, match=f"^{bucket}/{re.escape(key)}: "):
        objectstore.delete(f"{bucket}/{key}")
    assert keys(bucket) == ["key"]


@pytest.mark.parametrize("key", ["a//b", "../key", "/key", "line\nfeed"])
def test_a_key_of_any_form_is_asked_for_and_listed_alone(bucket: str, key: str) -> None:
    objectstore.put(f"{bucket}/key", b"another's")
    assert objectstore.head(f"{bucket}/{key}") is None
    assert list(filesystem.list_files(f"{bucket}/{key}")) == []
    client().put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=b"x")
    assert objectstore.head(f"{bucket}/{key}") == objectstore.get(f"{bucket}/{key}")[1]
    assert list(filesystem.list_files(f"{bucket}/{key}")) == [f"{bucket}/{key}"]
