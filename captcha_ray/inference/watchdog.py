"""Watch work in a thread: yield its results, or raise an error that names the stage after too long without progress."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from captcha_ray.errors import InputError, JobError

T = TypeVar("T")

INTERVAL_S = 1.0
"""Seconds between two looks at the evidence of progress."""


class Watch(Iterator[T]):
    """Work in a thread, which starts at once, and an iterator of its results.

    Args:
        task: Called with the function that takes a result.
        timeout_s: Seconds without a result and with unchanged evidence after which the work has stalled.
        stage: Names the stage of the work for the error.
        evidence: Changes while there is progress.
    """

    def __init__(
        self,
        task: Callable[[Callable[[T], None]], None],
        timeout_s: float,
        stage: Callable[[], str],
        evidence: Callable[[], Any] = lambda: None,
    ) -> None:
        self._task, self._timeout_s, self._stage, self._evidence = task, timeout_s, stage, evidence
        self._given: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._ended = False
        threading.Thread(target=self._run, daemon=True).start()

    def __next__(self) -> T:
        """Return the next result. Raises JobError if the work has stalled, and what the work raises."""
        last, seen = time.monotonic(), self._evidence()
        while not self._ended:
            try:
                kind, value = self._given.get(timeout=INTERVAL_S)
            except queue.Empty:
                if (now := self._evidence()) != seen:
                    last, seen = time.monotonic(), now
                if time.monotonic() - last > self._timeout_s:
                    where = f"no progress for {self._timeout_s:g} s at the stage: {self._stage()}"
                    raise JobError(f"{where}; what was finished is kept") from None
                continue
            if kind == "item":
                result: T = value
                return result
            self._ended = True
            if kind == "error":
                raise _plain(value)
        raise StopIteration

    def ready(self) -> Iterator[T]:
        """Yield the results that are there. Raises what the work raises."""
        while not self._given.empty():
            yield from itertools.islice(self, 1)

    def _run(self) -> None:
        try:
            self._task(lambda item: self._given.put(("item", item)))
            self._given.put(("end", None))
        except BaseException as error:
            self._given.put(("error", error))


def _plain(error: BaseException) -> BaseException:
    """Return the error whose sentence is meant for the user, if others have wrapped one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (InputError, JobError)):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error
