"""Work in a thread that must get on: what it gives, or, after too long without progress, an error that says where."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from captcha_ray.errors import InputError, JobError

T = TypeVar("T")

INTERVAL_S = 1.0
"""Seconds between two looks at the evidence of progress."""


def watch(
    task: Callable[[Callable[[T], None]], None],
    timeout_s: float,
    stage: Callable[[], str],
    evidence: Callable[[], Any] = lambda: None,
) -> Iterator[T]:
    """Starts `work` in a thread at once; yields what it gives.

    Raises what it raises, and JobError where for `timeout_s` seconds it gives nothing and `evidence` stays the same.
    """
    given: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            task(lambda item: given.put(("item", item)))
            given.put(("end", None))
        except BaseException as error:
            given.put(("error", error))

    def items() -> Iterator[T]:
        last, seen = time.monotonic(), evidence()
        while True:
            try:
                kind, value = given.get(timeout=INTERVAL_S)
            except queue.Empty:
                if (now := evidence()) != seen:
                    last, seen = time.monotonic(), now
                if time.monotonic() - last > timeout_s:
                    where = f"no progress for {timeout_s:g} s at the stage: {stage()}"
                    raise JobError(f"{where}; what was finished is kept") from None
                continue
            if kind == "error":
                raise _plain(value)
            if kind == "end":
                return
            yield value
            last = time.monotonic()

    threading.Thread(target=run, daemon=True).start()
    return items()


def _plain(error: BaseException) -> BaseException:
    """The sentence meant for the user, where there is one among the causes that others have wrapped."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (InputError, JobError)):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error
