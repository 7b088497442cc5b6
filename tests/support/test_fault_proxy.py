"""The servers and the faults that other tests rely on, seen through obstore, which is told to try nothing twice."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from datetime import timedelta
from urllib.parse import urlsplit

import botocore.session
import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, GenericError, PermissionDeniedError
from obstore.store import S3Store

from tests.support.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.support.s3_server import create_bucket, serve_s3

DATA = bytes(range(250)) * 400
GET = ("GET", "/bucket/key")


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    (folder / "bucket/key").write_bytes(DATA)
    with serve_s3(folder) as environment:
        yield environment


def store(env: dict[str, str], url: str, timeout_s: float = 20, max_retries: int = 0) -> S3Store:
    return S3Store(
        "bucket",
        endpoint=url,
        access_key_id=env["AWS_ACCESS_KEY_ID"],
        secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region=env["AWS_REGION"],
        client_options={"allow_http": True, "timeout": timedelta(seconds=timeout_s)},
        retry_config={"max_retries": max_retries, "backoff": {"init_backoff": timedelta(milliseconds=1)}},
    )


def read(env: dict[str, str], proxy: FaultProxy, timeout_s: float = 20) -> bytes:
    return bytes(obstore.get(store(env, proxy.url, timeout_s), "key").bytes())


def always(fault: Fault | None, env: dict[str, str], slow_seconds: float = 0.8) -> AbstractContextManager[FaultProxy]:
    return fault_proxy(env["AWS_ENDPOINT_URL"], lambda *_: fault, slow_seconds)


def test_without_a_fault_signed_requests_pass(rclone: dict[str, str]) -> None:
    threads = set(threading.enumerate())
    with always(None, rclone) as proxy:
        bucket = store(rclone, proxy.url)
        for _ in range(20):
            assert bytes(obstore.get(bucket, "key").bytes()) == DATA
        obstore.put(bucket, "ünï code", b"written")
        assert bytes(obstore.get(bucket, "ünï code").bytes()) == b"written"
        assert obstore.head(bucket, "key")["size"] == len(DATA)
        assert {entry["path"] for entry in obstore.list(bucket).collect()} == {"key", "ünï code"}
        assert set(threading.enumerate()) - threads, "connections are kept, each by its thread"
    assert proxy.requests[GET] == 20
    assert proxy.requests["PUT", "/bucket/%C3%BCn%C3%AF%20code"] == 1
    assert proxy.requests["HEAD", "/bucket/key"] == proxy.requests["GET", "/bucket?list-type=2"] == 1
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        (Fault.SLOW_DOWN, GenericError, "503 Service Unavailable.*<Code>SlowDown</Code>"),
        (Fault.INTERNAL, GenericError, "500 Internal Server Error.*<Code>InternalError</Code>"),
        (Fault.DENIED, PermissionDeniedError, "403 Forbidden.*<Code>AccessDenied</Code>"),
        (Fault.RESET, GenericError, "error sending request.*ConnectionReset"),
        (Fault.CUT, GenericError, "body error.*ConnectionReset"),
    ],
)
def test_what_a_client_says_of_a_fault(rclone: dict[str, str], fault: Fault, error: type, text: str) -> None:
    with always(fault, rclone) as proxy:
        with pytest.raises(error, match=f"(?s){text}"):
            read(rclone, proxy)
    assert proxy.requests == {GET: 1}


def test_a_connection_serves_one_request_after_another_and_refusals_too(moto_server: dict[str, str]) -> None:
    plan = {("GET", 0): Fault.SLOW_DOWN, ("HEAD", 0): Fault.DENIED}
    with fault_proxy(moto_server["AWS_ENDPOINT_URL"], lambda method, _, attempt: plan.get((method, attempt))) as proxy:
        bucket = store(moto_server, proxy.url)
        urls = {method: obstore.sign(bucket, method, "kept", timedelta(hours=1)) for method in ("GET", "HEAD", "PUT")}
        with closing(http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=20)) as connection:
            connection.connect()
            connected = connection.sock
            for method, status in [("GET", 503), ("HEAD", 403), ("PUT", 200), ("HEAD", 200), ("GET", 200)]:
                connection.request(method, urls[method].removeprefix(proxy.url), b"x" if method == "PUT" else None)
                answer = connection.getresponse()
                body = answer.read()
                assert answer.status == status
                assert connection.sock is connected
    assert body == b"x"


def test_a_cut_comes_after_half_of_the_body(rclone: dict[str, str]) -> None:
    received = b""
    with always(Fault.CUT, rclone) as proxy:
        answer = obstore.get(store(rclone, proxy.url), "key")
        assert answer.meta["size"] == len(DATA)
        with pytest.raises(GenericError):  # noqa: PT012
            for chunk in answer.stream(min_chunk_size=1):
                received += bytes(chunk)
    assert received == DATA[: len(DATA) // 2]


def test_a_cut_answer_without_body_comes_after_the_deed(moto_server: dict[str, str]) -> None:
    with always(Fault.CUT, moto_server) as proxy, pytest.raises(GenericError, match="error sending request"):
        obstore.put(store(moto_server, proxy.url), "done", b"1", mode="create", use_multipart=False)
    with pytest.raises(AlreadyExistsError):
        obstore.put(
            store(moto_server, moto_server["AWS_ENDPOINT_URL"]), "done", b"2", mode="create", use_multipart=False
        )


def test_a_slow_answer_takes_its_time_and_passes_a_timeout(rclone: dict[str, str]) -> None:
    with always(Fault.SLOW, rclone) as proxy:
        start = time.monotonic()
        assert read(rclone, proxy) == DATA
        assert 0.75 < time.monotonic() - start < 5
        with pytest.raises(GenericError, match=r"(?s)body error.*TimedOut"):
            read(rclone, proxy, timeout_s=0.3)


def test_a_request_that_hangs_is_answered_by_the_end_of_the_proxy(rclone: dict[str, str]) -> None:
    threads = set(threading.enumerate())
    errors: list[Exception] = []

    def ask() -> None:
        try:
            read(rclone, proxy)
        except GenericError as error:
            errors.append(error)

    with always(Fault.HANG, rclone) as proxy:
        with pytest.raises(GenericError, match=r"(?s)error sending request.*TimedOut"):
            read(rclone, proxy, timeout_s=0.2)
        client = threading.Thread(target=ask)
        client.start()
        client.join(timeout=0.3)
        assert client.is_alive()
        assert not errors
    client.join(timeout=5)
    assert len(errors) == 1
    assert set(threading.enumerate()) <= threads


def test_the_plan_knows_what_was_asked_before(rclone: dict[str, str]) -> None:
    requested = []

    def plan(method: str, path: str, attempt: int) -> Fault | None:
        requested.append((method, path, attempt))
        return Fault.SLOW_DOWN if attempt < 2 else None

    with fault_proxy(rclone["AWS_ENDPOINT_URL"], plan) as proxy:
        bucket = store(rclone, proxy.url, max_retries=2)
        assert bytes(obstore.get(bucket, "key").bytes()) == DATA
        assert obstore.head(bucket, "key")["size"] == len(DATA)
    assert requested == [(*GET, 0), (*GET, 1), (*GET, 2)] + [("HEAD", "/bucket/key", k) for k in range(3)]


def test_a_plan_that_raises_fails_the_test(rclone: dict[str, str]) -> None:
    def plan(*_: object) -> Fault | None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), fault_proxy(rclone["AWS_ENDPOINT_URL"], plan) as proxy:
        with pytest.raises(GenericError):
            read(rclone, proxy)


def test_moto_refuses_to_create_what_exists(moto_server: dict[str, str]) -> None:
    bucket = store(moto_server, moto_server["AWS_ENDPOINT_URL"])
    obstore.put(bucket, "once", b"first", mode="create", use_multipart=False)
    with pytest.raises(AlreadyExistsError):
        obstore.put(bucket, "once", b"second", mode="create", use_multipart=False)
    assert bytes(obstore.get(bucket, "once").bytes()) == b"first"


def test_moto_keeps_any_key_through_the_proxy(moto_server: dict[str, str]) -> None:
    keys = ["a//b", "/a", "..", "a/../b", ".", "line\nbreak", "\x01", "a%2Fb", "q?x", "pl+us", "日本", "x" * 1024]
    with always(None, moto_server) as proxy:
        client = botocore.session.Session().create_client(
            "s3",
            endpoint_url=proxy.url,
            region_name=moto_server["AWS_REGION"],
            aws_access_key_id=moto_server["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=moto_server["AWS_SECRET_ACCESS_KEY"],
        )
        create_bucket(moto_server, "keys")
        for key in keys:
            client.put_object(Bucket="keys", Key=key, Body=key.encode())
        assert {key: client.get_object(Bucket="keys", Key=key)["Body"].read().decode() for key in keys} == {
            key: key for key in keys
        }
        assert sorted(found["Key"] for found in client.list_objects_v2(Bucket="keys")["Contents"]) == sorted(keys)
        client.close()
