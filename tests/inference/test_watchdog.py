"""Work in a thread that is given up once it stands still."""

import threading
from collections.abc import Callable

import pytest

from captcha_ray.errors import InputError, JobError
from captcha_ray.inference import watchdog


def test_what_is_watched_is_given_in_order_and_its_end_is_the_end() -> None:
    def task(give: Callable[[int], None]) -> None:
        for k in range(100):
            give(k)

    assert list(watchdog.Watch(task, 60, lambda: "count")) == list(range(100))


def test_what_is_watched_raises_what_it_raises_after_what_it_gave() -> None:
    def task(give: Callable[[int], None]) -> None:
        give(1)
        raise InputError("no more")

    found = watchdog.Watch(task, 60, lambda: "count")
    assert next(found) == 1
    with pytest.raises(InputError, match="no more"):
        next(found)


def test_a_job_stalls_only_once_its_evidence_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes by 1 s each time that anyone asks."""
    monkeypatch.setattr(watchdog, "INTERVAL_S", 0.001)
    clock = iter(range(10**6))
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: next(clock))
    progress = iter([*range(50), *[50] * 10**6])
    done = threading.Event()
    with pytest.raises(JobError, match="no progress for 9 s at the stage: sleep"):
        next(watchdog.Watch(lambda _: done.wait(), 9, lambda: "sleep", lambda: next(progress)))
    done.set()
    assert next(progress) == 50
    assert next(clock) > 50


def test_results_that_are_there_are_taken_without_waiting_for_more() -> None:
    given, more = threading.Event(), threading.Event()

    def task(give: Callable[[int], None]) -> None:
        give(1)
        give(2)
        given.set()
        more.wait(60)
        give(3)
        raise InputError("no more")

    found = watchdog.Watch(task, 60, lambda: "count")
    assert given.wait(60)
    assert list(found.ready()) == [1, 2]
    assert list(found.ready()) == []
    more.set()
    assert next(found) == 3
    with pytest.raises(InputError, match="no more"):
        for _ in iter(lambda: list(found.ready()), None):
            pass
    assert list(found) == []
