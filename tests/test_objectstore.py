"""Buckets of real S3 servers give all they hold, whatever its name, through whatever trouble passes."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captcha_ray import objectstore, storage
from captcha_ray.config import InputError
from captcha_ray.objectstore import ATTEMPTS, DeniedError, Entry, StoreError
from tests.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.s3_server import ACCESS_KEY, SECRET_KEY, create_bucket, serve_moto, serve_s3

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

CALLS: dict[str, tuple[str, str, Callable[[], Any]]] = {
    "get": ("GET", "/bucket/key", lambda: objectstore.get("s3://bucket/key")[0]),
    "get odd": ("GET", "/bucket/an//odd/../key", lambda: objectstore.get("s3://bucket/an//odd/../key")[0]),
    "put": ("PUT", "/bucket/new", lambda: objectstore.put("s3://bucket/new", DATA)),
    "put exclusive": ("PUT", "/bucket/own", lambda: objectstore.put("s3://bucket/own", DATA, exclusive=True)),
    "head": ("HEAD", "/bucket/key", lambda: objectstore.head("s3://bucket/key")),
    "delete": ("DELETE", "/bucket/gone", lambda: objectstore.delete("s3://bucket/gone")),
    "list": ("GET", "/bucket?list-type=2&prefix=", lambda: sorted(keys("s3://bucket"))),
}
"""Of each kind of request: its method, how its path begins, and how it is made."""


def entries(uri: str) -> list[Entry]:
    return [entry for page in objectstore.list_pages(uri) for entry in page]


def keys(uri: str) -> list[str]:
    return [objectstore.split(entry.uri)[1] for entry in entries(uri)]


def client() -> Any:
    """Amazon's own, to write what objectstore only reads."""
    return botocore.session.Session().create_client("s3", region_name="us-east-1")


def count(proxy: FaultProxy, call: str) -> int:
    method, start, _ = CALLS[call]
    return sum(n for (asked, path), n in proxy.requests.items() if asked == method and path.startswith(start))


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


@pytest.fixture(scope="module")
def moto_server() -> Iterator[dict[str, str]]:
    with serve_moto() as environment:
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
def bucket(moto_server: dict[str, str], use: Callable[..., None], request: pytest.FixtureRequest) -> str:
    """URI of an empty bucket of moto's."""
    use(moto_server)
    name = f"b{abs(hash(request.node.nodeid))}"
    create_bucket(moto_server, name)
    return f"s3://{name}"


@pytest.fixture
def trouble(moto_server: dict[str, str], use: Callable[..., None]) -> Callable[..., Any]:
    """Gives a context: a bucket with `key` and an odd one, where every request meets what a plan says."""
    use(moto_server)
    create_bucket(moto_server, "bucket")
    for name in ("own", "new"):
        objectstore.delete(f"s3://bucket/{name}")
    for name in ("key", "an//odd/../key", "gone"):
        client().put_object(Bucket="bucket", Key=name, Body=DATA)

    def behind(plan: Callable[[str, str, int], Fault | None], slow_seconds: float = 2.0) -> Any:
        proxy = fault_proxy(moto_server["AWS_ENDPOINT_URL"], plan, slow_seconds)
        use_proxy = proxy.__enter__
        proxy.__enter__ = lambda: _use(use_proxy())  # type: ignore[attr-defined]
        return proxy

    def _use(proxy: FaultProxy) -> FaultProxy:
        use(moto_server, AWS_ENDPOINT_URL=proxy.url, AWS_SESSION_TOKEN="token-of-tests")
        return proxy

    return behind
