"""Share what tests of object stores need: keys of any form, and each kind of request."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session

from captcha_ray.storage import bucket_listing, objectstore
from captcha_ray.storage.objectstore import Entry
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY

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
    "get range": ("GET", "/bucket/key", lambda: objectstore.get_range("s3://bucket/key", 250, 500)),
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


Plan = Callable[[str, str, int], Fault | None]
