"""A lease whose store or folder makes trouble: a holder goes on, and a beginner gets one sentence."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from captcha_ray import console
from captcha_ray.errors import InputError
from captcha_ray.storage import filesystem, lock, objectstore, retries
from captcha_ray.storage.lock import Lease
from tests.support.fault_proxy import Fault, fault_proxy
from tests.support.leases import found
from tests.support.waiting import wait_until


@pytest.fixture
def store_away(
    moto_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[str, threading.Event]]:
    """URI of a lease on a store, and what makes that store refuse everything."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    away = threading.Event()
    with fault_proxy(moto_server["AWS_ENDPOINT_URL"], lambda *_: Fault.INTERNAL if away.is_set() else None) as proxy:
        for name, value in {**moto_server, "AWS_ENDPOINT_URL": proxy.url}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(retries, "BACKOFF_S", 0.0001)
        objectstore.forget_clients()
        yield f"s3://bucket/{tmp_path.name}/_lease.json", away
    objectstore.forget_clients()


def test_a_holder_goes_on_while_the_store_is_away(
    store_away: tuple[str, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.01)
    warned: list[str] = []
    monkeypatch.setattr(console, "warn", warned.append)
    uri, away = store_away
    with Lease(uri) as held:
        away.set()
        wait_until(lambda: len(warned) >= 2)
        held.check()
        away.clear()
        renewed = found(uri)["renewed"]
        wait_until(lambda: found(uri)["renewed"] > renewed)
    assert not filesystem.exists(uri)
    assert "the lease cannot be renewed: s3://" in warned[0]


def test_a_store_that_is_away_at_the_end_does_not_hide_how_the_job_ended(
    store_away: tuple[str, threading.Event],
) -> None:
    uri, away = store_away

    def task() -> None:
        with Lease(uri):
            away.set()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        task()


def test_a_store_that_is_away_at_the_end_does_not_undo_what_was_done(store_away: tuple[str, threading.Event]) -> None:
    uri, away = store_away
    with Lease(uri):
        away.set()


def test_a_store_that_is_away_at_the_beginning_is_one_sentence(store_away: tuple[str, threading.Event]) -> None:
    uri, away = store_away
    away.set()
    with pytest.raises(
        InputError,
        match=f"^{uri.removesuffix('/_lease.json')} cannot be written: .*500 Internal Server Error: InternalError",
    ):
        Lease(uri).__enter__()


def test_an_absent_bucket_is_one_sentence(store_away: tuple[str, threading.Event]) -> None:
    with pytest.raises(InputError, match=r"^s3://nowhere/out cannot be written: .* or its bucket does not exist$"):
        Lease("s3://nowhere/out/_lease.json").__enter__()


def test_a_file_where_the_folder_should_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(InputError, match=f"^{tmp_path}/out cannot be written: "):
        Lease(f"{tmp_path}/out/_lease.json").__enter__()


def test_a_place_without_permission_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filesystem, "write", refuse)  # tests may run as root, who may write anywhere
    with pytest.raises(InputError, match=f"^{tmp_path} cannot be written: .*Permission denied"):
        Lease(f"{tmp_path}/_lease.json").__enter__()
