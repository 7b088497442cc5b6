"""Buckets of real S3 servers give all they hold, whatever its name, through whatever trouble passes."""

import contextlib
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captcha_ray.errors import InputError
from captcha_ray.storage import bucket_listing, filesystem, objectstore
from captcha_ray.storage.objectstore import ATTEMPTS, DeniedError, Entry, StoreError
from tests.support.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY, create_bucket, serve_s3

ODD_KEYS = [
    *("a//b", "a/../b", "./b", "/lead", "//two", "..", "../up", ".", "a/.", "end/..", "/"),
    *("tab\there", "line\nfeed", "\r\n", "\x01", "\x7f", "back\\slash", " lead and trail ", "two  spaces"),
    *("a%2Fb", "%41", "100%", "q?x", "h#sh", "pl+us", "a&b=c", "'\"", "<xml>&amp;", "~", "*", "[x]", "{x}", "a:b"),
    *("ünï/日本", "😀", "caf\u00e9", "cafe\u0301", "ends/with/a/slash/", "x" * 1024, "é" * 512),
]

SHAPES = {
    "flat": [f"{i:05d}" for i in range(2500)],
    "folders": [f"{i:05d}/x" for i in range(1200)],
    "both": [f"{i}/{j}/{k}" for i in range(12) for j in range(3) for k in range(20)]
    + [f"{i}" for i in range(99, 1109)],
    "many": [f"{i}/{j}" for i in range(300) for j in range(3)],
    "deep": ["z", "a/x", *(f"a/b/{i:05d}" for i in range(1500)), "a/b/c/d/e/f"],
    "large": [f"{i}/{j:04d}" for i in range(3) for j in range(1001)],
}
"""Buckets' keys. A page holds a thousand."""

DATA = bytes(range(250)) * 400
PASSING = [Fault.SLOW_DOWN, Fault.INTERNAL, Fault.RESET, Fault.CUT]


def downloaded(uri: str) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        objectstore.download(uri, Path(file.name))
        return file.read()


CALLS: dict[str, tuple[str, str, Callable[[], Any]]] = {
    "get": ("GET", "/bucket/key", lambda: objectstore.get("s3://bucket/key")[0]),
    "get odd": ("GET", "/bucket/an//odd/../key", lambda: objectstore.get("s3://bucket/an//odd/../key")[0]),
    "download": ("GET", "/bucket/key", lambda: downloaded("s3://bucket/key")),
    "put": ("PUT", "/bucket/new", lambda: objectstore.put("s3://bucket/new", DATA)),
    "put exclusive": ("PUT", "/bucket/own", lambda: objectstore.put("s3://bucket/own", DATA, exclusive=True)),
    "head": ("HEAD", "/bucket/key", lambda: objectstore.head("s3://bucket/key")),
    "delete": ("POST", "/bucket?delete", lambda: objectstore.delete("s3://bucket/gone")),
    "list": ("GET", "/bucket?list-type=2&prefix=", lambda: sorted(keys("s3://bucket"))),
}
"""Of each kind of request: its method, how its path begins, and how it is made."""


def entries(uri: str) -> list[Entry]:
    return [entry for page in bucket_listing.list_pages(uri) for entry in page]


def keys(uri: str) -> list[str]:
    return [objectstore.split(entry.uri)[1] for entry in entries(uri)]


SESSION = botocore.session.Session()


def client() -> Any:
    """Amazon's own, to write what objectstore only reads."""
    return SESSION.create_client(
        "s3",
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )


def count(proxy: FaultProxy, call: str) -> int:
    method, start, _ = CALLS[call]
    return sum(n for (requested, path), n in proxy.requests.items() if requested == method and path.startswith(start))


def check_sentence(error: BaseException, uri: str) -> None:
    sentence = str(error)
    assert sentence.startswith(uri)
    for unwanted in ("\n", "<", "{", "Debug", "Signature=", ACCESS_KEY, SECRET_KEY, "token-of-tests"):
        assert unwanted not in sentence


@pytest.fixture(scope="module")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Checks signatures. Holds a bucket of each of `SHAPES`, and one of one object."""
    folder = tmp_path_factory.mktemp("s3")
    for bucket, names in {**SHAPES, "bucket": ["key"]}.items():
        for name in names:
            path = folder / bucket / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(DATA if bucket == "bucket" else b"")
    with serve_s3(folder) as environment:
        yield environment


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Gives a function that makes its argument all that the clients know of any store."""

    def use(environment: dict[str, str], **more: str) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        nowhere = {
            "AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/none",
            "AWS_CONFIG_FILE": f"{tmp_path}/none",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9",
        }
        for name, value in {**nowhere, **environment, **more}.items():
            monkeypatch.setenv(name, value)
        objectstore.forget_clients()

    monkeypatch.setattr(objectstore, "BACKOFF_S", 0.001)
    yield use
    objectstore.forget_clients()


@pytest.fixture
def rclone(rclone_server: dict[str, str], use: Callable[..., None]) -> dict[str, str]:
    use(rclone_server)
    return rclone_server


@pytest.fixture
def bucket(moto_server: dict[str, str], use: Callable[..., None]) -> str:
    """URI of an empty bucket of moto's."""
    use(moto_server)
    name = f"b{uuid.uuid4().hex}"
    create_bucket(moto_server, name)
    return f"s3://{name}"


Plan = Callable[[str, str, int], Fault | None]


@pytest.fixture
def behind(moto_server: dict[str, str], use: Callable[..., None]) -> Callable[..., AbstractContextManager[FaultProxy]]:
    """Gives a context whose requests, to a bucket that holds what `CALLS` ask for, meet what a plan says."""
    use(moto_server)
    for name in ("own", "new"):
        client().delete_object(Bucket="bucket", Key=name)
    for name in ("key", "an//odd/../key", "gone"):
        client().put_object(Bucket="bucket", Key=name, Body=DATA)

    @contextlib.contextmanager
    def behind(plan: Plan, slow_seconds: float = 2.0) -> Iterator[FaultProxy]:
        with fault_proxy(moto_server["AWS_ENDPOINT_URL"], plan, slow_seconds) as proxy:
            use(moto_server, AWS_ENDPOINT_URL=proxy.url, AWS_SESSION_TOKEN="token-of-tests")
            yield proxy

    return behind


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


# --- trouble


def check_done(call: str, answer: Any) -> None:
    """That a call of `CALLS` has done what it should."""
    expected = {"get": DATA, "get odd": DATA, "download": DATA, "list": ["an//odd/../key", "gone", "key"]}
    if call == "head":
        assert answer.size == len(DATA)
    else:
        assert answer == expected.get(call)
    written = {"put": "new", "put exclusive": "own"}
    if call in written:
        assert objectstore.get(f"s3://bucket/{written[call]}")[0] == DATA
    assert (objectstore.head("s3://bucket/gone") is None) == (call == "delete")


@pytest.mark.parametrize("call", CALLS)
def test_trouble_of_each_kind_is_only_seen_in_the_number_of_requests(behind: Callable[..., Any], call: str) -> None:
    method, start, make = CALLS[call]
    assert len(PASSING) == ATTEMPTS - 1

    def plan(requested: str, path: str, attempt: int) -> Fault | None:
        if requested == method and path.startswith(start) and attempt < len(PASSING):
            return PASSING[attempt]
        return None

    with behind(plan) as proxy:
        answer = make()
        folders = 5 if call == "list" else 1
        assert count(proxy, call) == ATTEMPTS * folders
        check_done(call, answer)


@pytest.mark.parametrize("call", CALLS)
def test_trouble_that_lasts_is_one_sentence_after_the_last_attempt(behind: Callable[..., Any], call: str) -> None:
    method, start, make = CALLS[call]
    now = Fault.DENIED

    def plan(requested: str, path: str, _: int) -> Fault | None:
        return now if requested == method and path.startswith(start) else None

    with behind(plan) as proxy:
        for number, now in enumerate(PASSING, start=1):
            with pytest.raises(StoreError) as caught:
                make()
            assert not isinstance(caught.value, PermissionError)
            assert count(proxy, call) == ATTEMPTS * number
            check_sentence(caught.value, "s3://bucket/")
            if now is Fault.SLOW_DOWN and method != "HEAD":
                assert re.search("SlowDown.* Please reduce your request rate.", str(caught.value))


@pytest.mark.parametrize(("refusal", "code"), [(Fault.DENIED, "AccessDenied"), (Fault.SKEWED, "RequestTimeTooSkewed")])
@pytest.mark.parametrize("call", CALLS)
def test_a_refusal_is_one_sentence_after_one_request(
    behind: Callable[..., Any], call: str, refusal: Fault, code: str
) -> None:
    method, start, make = CALLS[call]

    def plan(requested: str, path: str, _: int) -> Fault | None:
        return refusal if requested in (method, "GET") and path.startswith(start) else None

    with behind(plan) as proxy, pytest.raises(DeniedError) as caught:
        make()
    assert isinstance(caught.value, PermissionError)
    assert count(proxy, call) == 1
    check_sentence(caught.value, "s3://bucket/")
    assert code in str(caught.value)


@pytest.mark.parametrize("key", ["none", "none//odd"])
def test_what_is_absent_is_asked_for_once(behind: Callable[..., Any], key: str) -> None:
    with behind(lambda *_: None) as proxy:
        with pytest.raises(FileNotFoundError, match=f"^s3://bucket/{key} or its bucket does not exist$"):
            objectstore.get(f"s3://bucket/{key}")
        with pytest.raises(FileNotFoundError, match=r"^s3://nowhere/\S* or its bucket does not exist$"):
            entries("s3://nowhere")
        assert objectstore.head("s3://bucket/none") is None
        objectstore.delete("s3://bucket/none")
    assert set(proxy.requests.values()) == {1}


@pytest.mark.parametrize("call", ["get", "get odd", "list"])
def test_a_store_that_does_not_answer_is_asked_again(
    behind: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(objectstore, "REQUEST_TIMEOUT_S", 1)
    monkeypatch.setattr(objectstore, "PATIENT_TIMEOUT_S", 1)
    method, start, make = CALLS[call]
    first = f"{start}&" if call == "list" else start  # of several folders, the whole bucket's

    def plan(requested: str, path: str, attempt: int) -> Fault | None:
        return Fault.HANG if (requested, attempt) == (method, 0) and path.startswith(first) else None

    with behind(plan) as proxy:
        check_done(call, make())
        assert count(proxy, call) == (6 if call == "list" else 2)


def test_waits_grow_to_a_limit_and_are_drawn_at_random(
    behind: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr(objectstore, "BACKOFF_S", 0.001)
    monkeypatch.setattr(objectstore, "MAX_BACKOFF_S", 0.01)
    monkeypatch.setattr(objectstore.random, "uniform", lambda low, high: drawn.append((low, high)) or low)
    with behind(lambda *_: Fault.INTERNAL), pytest.raises(StoreError):
        objectstore.get("s3://bucket/key")
    assert drawn == [(0, 0.002), (0, 0.004), (0, 0.008), (0, 0.01)]


def test_a_store_that_is_not_there_is_one_sentence(use: Callable[..., None], rclone_server: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    use(rclone_server, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
    for call in CALLS:
        with pytest.raises(StoreError) as caught:
            CALLS[call][2]()
        check_sentence(caught.value, "s3://bucket/")


# --- credentials and endpoints


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_named_in_no_message(
    rclone_server: dict[str, str], use: Callable[..., None], call: str, wrong: str
) -> None:
    use(rclone_server, **{wrong: "token-of-tests"})
    with pytest.raises(DeniedError) as caught:
        CALLS[call][2]()
    check_sentence(caught.value, "s3://bucket/")


def profiles(folder: Path, text: str) -> dict[str, str]:
    """Environment that knows an address and the profiles of a file, no keys."""
    (folder / "credentials").write_text(text)
    return {"AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"), "AWS_REGION": "us-east-1"}


KEYS = f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
OTHERS = "aws_access_key_id = other\naws_secret_access_key = another\n"


@pytest.mark.parametrize("profile", ["night", pytest.param("", id="default")])
def test_a_profile_reads_writes_and_lists(
    rclone_server: dict[str, str], use: Callable[..., None], tmp_path: Path, profile: str
) -> None:
    here, other = (profile, "default") if profile else ("default", "night")
    environment = profiles(tmp_path, f"[{other}]\n{OTHERS}[{here}]\n{KEYS}")
    environment["AWS_ENDPOINT_URL"] = rclone_server["AWS_ENDPOINT_URL"]
    use(environment, **({"AWS_PROFILE": profile} if profile else {}))
    assert keys("s3://bucket") == ["key"]
    assert objectstore.get("s3://bucket/key")[0] == DATA
    objectstore.put("s3://bucket/by-profile", b"x", exclusive=True)
    assert objectstore.head("s3://bucket/by-profile")
    objectstore.delete("s3://bucket/by-profile")
    assert keys("s3://bucket") == ["key"]
    with pytest.raises(StoreError, match="unsupported characters") as caught:  # this server's word: it let us in
        objectstore.get("s3://bucket/an//odd/../key")
    assert not isinstance(caught.value, PermissionError)


def test_a_profile_names_the_address_of_its_store(
    rclone_server: dict[str, str], use: Callable[..., None], tmp_path: Path
) -> None:
    """For listing and for reading alike; else keys meant for one store would be sent to another."""
    address = f"endpoint_url = {rclone_server['AWS_ENDPOINT_URL']}\n"
    use(profiles(tmp_path, f"[night]\n{KEYS}{address}"), AWS_PROFILE="night")
    assert objectstore.endpoint() == rclone_server["AWS_ENDPOINT_URL"]
    assert keys("s3://bucket") == ["key"]
    assert objectstore.get("s3://bucket/key")[0] == DATA


def test_an_object_is_replaced_only_if_it_is_what_it_is_thought_to_be(
    rclone_server: dict[str, str], use: Callable[..., None]
) -> None:
    use(rclone_server)
    objectstore.put("s3://bucket/lease", b"1")
    assert not objectstore.compare_and_swap("s3://bucket/lease", b"3", expected=b"2")
    assert objectstore.get("s3://bucket/lease")[0] == b"1"
    assert objectstore.compare_and_swap("s3://bucket/lease", b"2", expected=b"1")
    assert objectstore.get("s3://bucket/lease")[0] == b"2"
    objectstore.delete("s3://bucket/lease")
    with pytest.raises(FileNotFoundError):
        objectstore.compare_and_swap("s3://bucket/lease", b"2", expected=b"1")


@pytest.mark.parametrize("head", ['<?xml version="1.0"?>\n', ""])
def test_of_a_stores_answer_only_what_is_meant_for_people_is_kept(head: str) -> None:
    answer = f"{head}<Error><Code>Denied</Code><Message>No.</Message><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>"
    said = objectstore._sentence(ValueError(f"refused {answer} Debug source: x"))
    assert said == "ValueError: refused Denied No."
    assert objectstore._sentence(ValueError("plain")) == "ValueError: plain"


@pytest.mark.parametrize("call", CALLS)
def test_an_absent_or_empty_profile_is_named(
    rclone_server: dict[str, str], use: Callable[..., None], tmp_path: Path, call: str
) -> None:
    environment = profiles(tmp_path, "[empty]\nregion = us-east-1\n")
    environment["AWS_ENDPOINT_URL"] = rclone_server["AWS_ENDPOINT_URL"]
    use(environment, AWS_PROFILE="absent")
    with pytest.raises(StoreError, match=r"The config profile \(absent\) could not be found"):
        CALLS[call][2]()
    use(environment, AWS_PROFILE="empty")
    with pytest.raises(InputError, match=r"no credentials|Unable to locate credentials"):
        CALLS[call][2]()


def test_a_profiles_region_is_that_of_all_clients(use: Callable[..., None], tmp_path: Path) -> None:
    environment = profiles(tmp_path, f"[night]\n{KEYS}")
    del environment["AWS_REGION"]
    (tmp_path / "config").write_text("[profile night]\nregion = eu-west-1\n")
    use(environment, AWS_CONFIG_FILE=str(tmp_path / "config"), AWS_PROFILE="night")
    assert objectstore.s3_client("s3://bucket").meta.region_name == "eu-west-1"
    assert objectstore.store_client("s3://bucket").config.get("region") == "eu-west-1"


def test_the_endpoint_of_one_service_is_that_of_all_clients(
    rclone_server: dict[str, str], use: Callable[..., None]
) -> None:
    environment = {name: value for name, value in rclone_server.items() if name != "AWS_ENDPOINT_URL"}
    use(environment, AWS_ENDPOINT_URL_S3=rclone_server["AWS_ENDPOINT_URL"])
    assert keys("s3://bucket") == ["key"]
    assert objectstore.get("s3://bucket/key")[0] == DATA


def test_without_credentials_an_open_bucket_is_read(moto_server: dict[str, str], use: Callable[..., None]) -> None:
    use(moto_server)
    create_bucket(moto_server, "open")
    for key in ("key", "odd//key"):
        client().put_object(Bucket="open", Key=key, Body=DATA, ACL="public-read")
    use({name: moto_server[name] for name in ("AWS_ENDPOINT_URL", "AWS_REGION")}, AWS_SKIP_SIGNATURE="true")
    assert keys("s3://open") == ["key", "odd//key"]
    assert [objectstore.get(f"s3://open/{key}")[0] for key in keys("s3://open")] == [DATA, DATA]


def test_an_endpoint_is_used_from_the_next_request_on(
    moto_server: dict[str, str], rclone_server: dict[str, str], use: Callable[..., None]
) -> None:
    create_bucket(moto_server, "only-there")
    use(rclone_server, AWS_ENDPOINT_URL_S3=rclone_server["AWS_ENDPOINT_URL"])
    with pytest.raises(FileNotFoundError):
        keys("s3://only-there")
    with pytest.raises(FileNotFoundError):
        objectstore.put("s3://only-there/key", b"x")
    objectstore.use_endpoint(moto_server["AWS_ENDPOINT_URL"])
    objectstore.put("s3://only-there/key", b"x")
    assert keys("s3://only-there") == ["key"]


def test_odd_keys_of_other_stores_are_refused_in_a_sentence() -> None:
    with pytest.raises(StoreError, match=r"^gs://bucket: keys with empty, .* are read on S3 only$"):
        objectstore.get("gs://bucket/a//b")
