"""Events come from workers to the driver in order, all of them, and what is lost of them costs nothing else."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError

from captcha_ray.runtime import progress_channel
from captcha_ray.runtime.progress_channel import ProgressChannel
from tests.support.waiting import wait_until


@dataclasses.dataclass(frozen=True)
class Number:
    value: int


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_worker_sends_is_delivered_in_order() -> None:
    seen: list[Number] = []
    last = threading.Event()

    def on_event(number: Number) -> None:
        seen.append(number)
        if number.value == 99:
            last.set()

    with ProgressChannel(on_event) as channel:
        send = channel.sender()

        @ray.remote(num_cpus=0)
        def work() -> None:
            for number in range(100):
                send(Number(number))

        ray.get(work.remote())
        assert last.wait(60)
    assert seen == [Number(number) for number in range(100)]


@pytest.mark.usefixtures("ray_cluster")
def test_a_silence_is_told_with_its_length_until_an_event_comes() -> None:
    silences: list[float] = []
    grown, heard = threading.Event(), threading.Event()

    def on_silence(seconds: float) -> None:
        silences.append(seconds)
        if len(silences) >= 3:
            grown.set()

    with ProgressChannel(lambda event: heard.set(), on_silence) as channel:
        assert grown.wait(60)
        so_far = list(silences)
        channel.sender()(Number(1))
        assert heard.wait(60)
    assert so_far == sorted(so_far)
    assert so_far[0] >= progress_channel.LOOK_S / 2


@pytest.mark.usefixtures("ray_cluster")
def test_a_lost_mailbox_costs_progress_and_no_more() -> None:
    seen: list[Number] = []
    looks = threading.Event()
    with ProgressChannel(seen.append, lambda seconds: looks.set()) as channel:
        ray.kill(channel._mailbox)
        looks.clear()
        channel.sender()(Number(1))
        assert looks.wait(60), "it goes on looking"
    assert seen == []


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("trouble", "delivered"), [(GetTimeoutError(), [1]), (ActorUnavailableError("gone", None), [2])]
)
def test_a_late_answer_is_awaited_and_a_failed_one_is_asked_for_anew(
    trouble: Exception, delivered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lose what a failed answer held, and nothing that comes afterwards."""
    seen: list[Number] = []
    channel = ProgressChannel(seen.append)  # nobody looks but this test
    send, get = channel.sender(), ray.get

    def fail(reference: object, timeout: float) -> None:
        get(reference)
        raise trouble

    send(Number(1))
    with monkeypatch.context() as patch:
        patch.setattr(progress_channel.ray, "get", fail)
        assert channel.deliver() == 0
    send(Number(2))
    assert channel.deliver() == 1
    assert [number.value for number in seen] == delivered
    ray.kill(channel._mailbox)


@pytest.mark.usefixtures("ray_cluster")
def test_what_comes_after_a_late_look_is_delivered_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Number] = []
    get = ray.get
    is_late = threading.Event()

    def be_late(reference: object, timeout: float) -> Any:
        found = get(reference, timeout=60)
        if timeout == progress_channel.TIMEOUT_S and (found or is_late.is_set()):
            is_late.set()
            raise GetTimeoutError
        return found

    with monkeypatch.context() as patch, ProgressChannel(seen.append) as channel:
        patch.setattr(progress_channel.ray, "get", be_late)
        send = channel.sender()
        send(Number(1))
        assert is_late.wait(60)
        send(Number(2))
        send.flush()
    assert [number.value for number in seen] == [1, 2]


@dataclasses.dataclass(frozen=True)
class Slow:
    """An event that the channel cannot take before a file is there."""

    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return _wait_for, (self.path,)


def _wait_for(path: Path) -> Slow:
    wait_until(path.exists)
    return Slow(path)


@pytest.mark.usefixtures("ray_cluster")
def test_the_last_look_waits_longer_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Number] = []
    timeouts: list[float] = []
    get = ray.get

    def record(reference: object, timeout: float) -> Any:
        timeouts.append(timeout)
        return get(reference, timeout=60)

    with monkeypatch.context() as patch, ProgressChannel(seen.append, lambda seconds: None) as channel:
        patch.setattr(progress_channel.ray, "get", record)
        channel.sender()(Number(1))
        wait_until(lambda: bool(seen))
        wait_until(lambda: len(timeouts) > 1)
    assert set(timeouts[:-1]) == {progress_channel.TIMEOUT_S}
    assert timeouts[-1] == progress_channel.FLUSH_S


@pytest.mark.usefixtures("ray_cluster")
def test_a_flush_ends_when_all_that_was_sent_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = ProgressChannel(lambda event: None)
    send = channel.sender()
    send.flush()  # of nothing
    path, was_there = tmp_path / "file", []
    waits = threading.Event()
    wait = ray.wait

    def note(*arguments: Any, **named: Any) -> Any:
        waits.set()
        return wait(*arguments, **named)

    def flush() -> None:
        send.flush()
        was_there.append(path.exists())

    monkeypatch.setattr(progress_channel.ray, "wait", note)
    send(Slow(path))
    flushing = threading.Thread(target=flush)
    flushing.start()
    assert waits.wait(60)
    assert was_there == []
    path.touch()
    flushing.join(60)
    assert was_there == [True]
    ray.kill(channel._mailbox)
    send(Number(1))
    send.flush()  # what is lost is not waited for
