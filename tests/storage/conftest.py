"""Buckets of real S3 servers, and what a client knows of them."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from captcha_ray.storage import objectstore, retries
from tests.support.buckets import DATA, SHAPES, Plan, client
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.s3_server import create_bucket, serve_s3


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

    monkeypatch.setattr(retries, "BACKOFF_S", 0.001)
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
