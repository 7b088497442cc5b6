"""A local folder and a bucket behave alike; the bucket is a real S3 server's."""

import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captcha_ray.errors import InputError
from captcha_ray.storage import filesystem, objectstore
from tests.support.s3_server import SECRET_KEY, client_of

ODD_NAMES = [
    "two words",
    "ünï/日本",
    "a%2Fb",
    "%41",
    "100%",
    "h#sh",
    "pl+us",
    "q?x",
    "a&b=c",
    "a:b",
    "'\"",
    "[x]",
    "~",
    "é",
]


@pytest.fixture
def s3(rclone_server: dict[str, str]) -> Iterator[str]:
    """URI of the bucket, with clients that know the server."""
    with client_of(rclone_server):
        yield "s3://bucket"


@pytest.fixture(params=["local", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of each kind."""
    if request.param == "local":
        return str(tmp_path / "new")
    bucket: str = request.getfixturevalue("s3")
    return f"{bucket}/{tmp_path.name}"


@pytest.mark.parametrize("data", [b"", b"some bytes", bytes(range(256)) * 9000], ids=len)
def test_what_is_written_is_read_and_written_over(base: str, data: bytes) -> None:
    uri = filesystem.join(base, "folder/file")
    filesystem.write(uri, b"before, and longer than some")
    filesystem.write(uri, memoryview(data))
    assert filesystem.read(uri) == data


def test_a_missing_file_is_missing_everywhere(base: str) -> None:
    uri = filesystem.join(base, "none")
    with pytest.raises(FileNotFoundError, match="none"):
        filesystem.read(uri)
    assert not filesystem.exists(uri)
    filesystem.delete(uri)


def test_a_file_exists_until_it_is_deleted_and_its_folder_is_no_file(base: str) -> None:
    uri = filesystem.join(base, "folder/file")
    filesystem.write(uri, b"")
    assert filesystem.exists(uri)
    assert not filesystem.exists(filesystem.join(base, "folder"))
    filesystem.delete(uri)
    assert not filesystem.exists(uri)
    assert filesystem.is_empty(base)


def test_an_exclusive_write_leaves_what_is_there(base: str) -> None:
    uri = filesystem.join(base, "file")
    filesystem.write(uri, b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        filesystem.write(uri, b"second", exclusive=True)
    assert filesystem.read(uri) == b"first"


def test_listing_gives_everything_below_in_order_and_nothing_beside(base: str) -> None:
    names = ["b/2", "b/1", "a", "c/d/e", "b/10"]
    for name in names:
        filesystem.write(filesystem.join(base, "in", name), b"x")
    filesystem.write(filesystem.join(base, "in-between"), b"x")
    filesystem.write(filesystem.join(base, "inner/x"), b"x")
    expected = [filesystem.join(base, "in", name) for name in sorted(names)]
    assert list(filesystem.list_files(filesystem.join(base, "in"))) == expected


def test_listing_one_file_gives_that_file(base: str) -> None:
    uri = filesystem.join(base, "file.png")
    filesystem.write(uri, b"x")
    assert list(filesystem.list_files(uri)) == [uri]
    assert not filesystem.is_empty(uri)


def test_a_place_is_empty_until_something_stands_in_it(base: str) -> None:
    assert filesystem.is_empty(base)
    filesystem.write(filesystem.join(base, "deep/er/file"), b"")
    assert not filesystem.is_empty(base)
    assert not filesystem.is_empty(filesystem.join(base, "deep"))
    assert filesystem.is_empty(filesystem.join(base, "dee"))


def test_odd_names_are_written_listed_and_read_as_they_are(base: str) -> None:
    for name in ODD_NAMES:
        filesystem.write(filesystem.join(base, f"{name}.png"), name.encode())
    listed = list(filesystem.list_files(base))
    assert sorted(listed) == sorted(filesystem.join(base, f"{name}.png") for name in ODD_NAMES)
    assert sorted(filesystem.read(uri).decode() for uri in listed) == sorted(ODD_NAMES)
    assert all(filesystem.exists(uri) for uri in listed)


def test_a_listing_of_more_than_a_page_is_complete(s3: str) -> None:
    uris = [f"{s3}/many/{i:05d}" for i in range(1010)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda uri: filesystem.write(uri, b""), uris))
    assert list(filesystem.list_files(f"{s3}/many")) == uris


def test_local_readers_see_the_old_bytes_or_the_new(tmp_path: Path) -> None:
    uri = f"{tmp_path}/file"
    wholes = [bytes([k]) * 300_000 for k in range(5)]
    filesystem.write(uri, wholes[0])
    stop = threading.Event()
    seen: list[bytes] = []

    def watch() -> None:
        while not stop.is_set():
            seen.append(filesystem.read(uri))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            for whole in wholes * 4:
                filesystem.write(uri, whole)
        finally:
            stop.set()
        watching.result()
    assert all(data in wholes for data in seen)


def test_an_unfinished_local_write_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        filesystem.write(f"{tmp_path}/file", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "call",
    [
        filesystem.read,
        filesystem.exists,
        filesystem.delete,
        filesystem.is_empty,
        lambda uri: list(filesystem.list_files(uri)),
        lambda uri: filesystem.write(uri, b"x"),
        lambda uri: filesystem.write(uri, b"x", exclusive=True),
    ],
    ids=["read", "exists", "delete", "is_empty", "list", "write", "claim"],
)
def test_wrong_credentials_are_one_sentence_without_the_secret(
    s3: str, monkeypatch: pytest.MonkeyPatch, call: object
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    objectstore.forget_clients()
    # A HEAD's answer has no words. Listings come from another client, with the store's own word for it.
    with pytest.raises(PermissionError, match=f"^{s3}/file/?: .*(403 Forbidden|SignatureDoesNotMatch: )") as caught:
        call(f"{s3}/file")  # type: ignore[operator]
    sentence = str(caught.value)
    assert "\n" not in sentence
    for unwanted in ("a-wrong-secret", SECRET_KEY, "<", "{", "Debug"):
        assert unwanted not in sentence


def test_an_absent_bucket_is_one_sentence(s3: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"^s3://nowhere/file or its bucket does not exist$"):
        filesystem.write("s3://nowhere/file", b"x")
    with pytest.raises(InputError, match=r"^s3://nowhere/file/ or its bucket does not exist$"):
        list(filesystem.list_files("s3://nowhere/file"))


@pytest.mark.parametrize("key", ["a//b", "a/../b", "./b", "line\nfeed"])
def test_a_key_this_server_has_no_room_for_is_an_os_error_that_names_it(s3: str, key: str) -> None:
    refusals = "(: InvalidArgument: Object name contains unsupported characters| or its bucket does not exist$)"
    with pytest.raises(OSError, match=f"^{re.escape(f'{s3}/{key}')}{refusals}"):
        filesystem.read(f"{s3}/{key}")


def test_a_uri_without_a_bucket_is_refused() -> None:
    with pytest.raises(InputError, match="s3:///key names no bucket"):
        filesystem.read("s3:///key")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        filesystem.read(str(tmp_path / "pipe"))


def test_links_are_followed_to_files_and_not_to_folders(tmp_path: Path) -> None:
    (tmp_path / "corpus" / "7").mkdir(parents=True)
    (tmp_path / "image").write_bytes(b"x")
    (tmp_path / "corpus" / "7" / "a").symlink_to(tmp_path / "image")
    (tmp_path / "corpus" / "loop").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "7" / "up").symlink_to("../..")
    assert list(filesystem.list_files(f"{tmp_path}/corpus")) == [f"{tmp_path}/corpus/7/a"]


def test_an_absent_local_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none does not exist"):
        list(filesystem.list_files(f"{tmp_path}/none"))


@pytest.mark.parametrize(
    ("uri", "whole"),
    [
        ("/a/b/", "/a/b"),
        ("/a/../b", "/b"),
        ("file:///a/b", "/a/b"),
        ("s3://bucket/a/", "s3://bucket/a"),
        ("gs://bucket", "gs://bucket"),
        ("~/a", "/home/me/a"),
    ],
)
def test_a_uri_is_made_whole_for_other_processes(uri: str, whole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert filesystem.absolute(uri) == whole


def test_a_relative_path_stands_below_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert filesystem.absolute("a/b") == f"{tmp_path}/a/b"


@pytest.mark.parametrize("uri", ["http://host/a", "hdfs://host/a", "wasbs://container/a"])
def test_other_schemes_are_refused_by_name(uri: str) -> None:
    with pytest.raises(InputError, match=f"{uri} has a scheme this project does not read"):
        filesystem.absolute(uri)


@pytest.mark.parametrize(
    ("base", "parts", "joined"),
    [
        ("/a", ("b", "c/d"), "/a/b/c/d"),
        ("/a/", ("b",), "/a/b"),
        ("/", ("b",), "/b"),
        ("s3://b", ("k",), "s3://b/k"),
        ("/a", (), "/a"),
    ],
)
def test_parts_are_joined_by_single_slashes(base: str, parts: tuple[str, ...], joined: str) -> None:
    assert filesystem.join(base, *parts) == joined


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40))
@settings(deadline=None, max_examples=50)
def test_any_name_a_local_folder_can_hold_comes_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    uri = filesystem.join(str(folder), "x" + name)
    filesystem.write(uri, b"x")
    assert list(filesystem.list_files(str(folder))) == [uri]


def test_a_probe_is_a_file_in_the_nearest_folder_that_is_there_and_gone_afterwards(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "a" / "b"):
        with filesystem.probe(str(path)) as probe:
            assert Path(probe).is_file()
            assert Path(probe).parent == tmp_path
        assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written_the_probe_is_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "touch", lambda _: exec("raise PermissionError"))
    for path, found in (("/etc/hostname", "/etc/hostname"), ("/etc/absent/file", "/etc"), ("/etc", "/etc")):
        with filesystem.probe(path) as probe:
            assert probe == found


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    filesystem.check_writable(str(tmp_path / "new/folder"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="file cannot be written: a file stands where a folder is needed"):
        filesystem.check_writable(str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written: a file stands where a folder is needed"):
        filesystem.check_writable(str(tmp_path / "file/folder"))


def test_a_system_without_locks_says_so_only_where_one_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "fcntl", None)
    filesystem.write(f"{tmp_path}/one", b"1")
    assert filesystem.read(f"{tmp_path}/one") == b"1"
    with pytest.raises(InputError, match="needs a lock on a local disk, which this system has not; use a bucket"):
        filesystem.compare_and_swap(f"{tmp_path}/one", b"2", b"1")
