"""Watch work in a thread: yield its results, or raise an error that names the stage after too long without progress."""

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
    """Start work in a thread at once, and yield its results.

    Args:
        task: Called with the function that takes a result.
        timeout_s: Seconds without a result and with unchanged evidence after which the work has stalled.
        stage: Names the stage of the work for the error.
        evidence: Changes while there is progress.

    Raises:
        JobError: The work has stalled. Otherwise what the work raises.
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
    """Return the error whose sentence is meant for the user, if others have wrapped one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (InputError, JobError)):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error
