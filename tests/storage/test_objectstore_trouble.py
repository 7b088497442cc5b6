"""Requests to object stores get through passing trouble, and say what lasting trouble is."""

import re
import socket
from collections.abc import Callable
from typing import Any

import pytest

from captcha_ray.storage import objectstore, retries
from captcha_ray.storage.retries import ATTEMPTS, DeniedError, StoreError
from tests.support.buckets import CALLS, DATA, PASSING, check_sentence, count, entries
from tests.support.fault_proxy import Fault

# --- trouble


def check_done(call: str, answer: Any) -> None:
    """That a call of `CALLS` has done what it should."""
    expected = dict.fromkeys(("get", "get odd", "download"), DATA)
    expected |= {"get range": DATA[250:500], "list": ["an//odd/../key", "gone", "key"]}
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
    monkeypatch.setattr(retries, "BACKOFF_S", 0.001)
    monkeypatch.setattr(retries, "MAX_BACKOFF_S", 0.01)
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: drawn.append((low, high)) or low)
    with behind(lambda *_: Fault.INTERNAL), pytest.raises(StoreError):
        objectstore.get("s3://bucket/key")
    assert drawn == [(0, 0.002), (0, 0.004), (0, 0.008), (0, 0.01)]


def test_patience_goes_on_asking_and_says_so_once(behind: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    def plan(method: str, path: str, attempt: int) -> Fault | None:
        return Fault.INTERNAL if attempt < 3 * ATTEMPTS else None

    with behind(plan) as proxy, retries.patience():
        assert objectstore.get("s3://bucket/key")[0] == DATA
        assert count(proxy, "get") == 3 * ATTEMPTS + 1
    (said,) = [record.getMessage() for record in caplog.records if "asked again" in record.getMessage()]
    assert said.endswith("the store is asked again for up to 600 s")
    with behind(plan), pytest.raises(StoreError):
        objectstore.get("s3://bucket/key")


def test_patience_ends_with_its_time(behind: Callable[..., Any]) -> None:
    with behind(lambda *_: Fault.INTERNAL) as proxy, retries.patience(0.05), pytest.raises(StoreError):
        objectstore.get("s3://bucket/key")
    assert count(proxy, "get") >= ATTEMPTS


def test_a_refusal_finds_no_patience(behind: Callable[..., Any]) -> None:
    with behind(lambda *_: Fault.DENIED) as proxy, retries.patience(), pytest.raises(DeniedError):
        objectstore.get("s3://bucket/key")
    assert count(proxy, "get") == 1


def test_a_store_that_is_not_there_is_one_sentence(use: Callable[..., None], rclone_server: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    use(rclone_server, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
    for call in CALLS:
        with pytest.raises(StoreError) as caught:
            CALLS[call][2]()
        check_sentence(caught.value, "s3://bucket/")
