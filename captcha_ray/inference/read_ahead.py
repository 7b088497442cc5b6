"""Read objects from a store ahead of who needs them, with as many reads at once as keep that one from waiting."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

NUM_READS, MAX_READS = 32, 128
"""Reads at once, at first and at most. By Little's law a thousand a second of 30 ms each need 30."""

MAX_WAIT = 0.1
"""Share of the time that may be spent waiting for reads; above it, twice as many are made at once."""

HELP = 0.8
"""Share of the wait before at which more reads have helped; they do not where a store or a line is at its limit."""

REST = 8
"""Blocks for which nothing is changed after more reads have not helped."""


class NumReads:
    """The number of reads at once, which follows from what was waited."""

    def __init__(self) -> None:
        self.value = NUM_READS
        self._before: float | None = None  # the wait that made it double, until it is seen whether that has helped
        self._rest = 0

    def adapt(self, wait: float) -> None:
        """Double the number if the wait, a share of the time of a block, asks for it and doubling helps."""
        if self._before is not None and wait > HELP * self._before:
            self._rest = REST
        self._before = None
        if self._rest:
            self._rest -= 1
        elif wait > MAX_WAIT and self.value < MAX_READS:
            self._before = wait
            self.value = min(2 * self.value, MAX_READS)


class ReadAhead(Generic[T, R]):
    """Reads of items, a chunk of which is read while the chunk before is used. read: is called in many threads."""

    def __init__(self, read: Callable[[T], R]) -> None:
        self._read = read
        self._number = NumReads()
        self._threads = DaemonThreads(self._number.value)

    def chunks(self, chunks: Sequence[Sequence[T]]) -> Iterator[list[R]]:
        """Yield what is read of each chunk, in order."""
        waited = used = 0.0
        ahead = self._submit(chunks[0])
        for number, following in enumerate([*chunks[1:], []]):
            now, ahead = ahead, self._submit(following)
            started = time.perf_counter()
            found = [future.result() for future in now]
            arrived = time.perf_counter()
            yield found
            if number:  # nothing was done while the first chunk was read
                waited += arrived - started
                used += time.perf_counter() - arrived
        if waited:
            self._number.adapt(waited / (waited + used))
            self._threads.grow(self._number.value)

    def _submit(self, items: Sequence[T]) -> list[Future[R]]:
        return [self._threads.submit(self._read, item) for item in items]


class DaemonThreads:
    """Threads that call functions in the order in which they are submitted, and end with the process.

    Those of `concurrent.futures` hold a process up while a store or a disk hangs.
    """

    def __init__(self, number: int) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
        self.number = 0
        self.grow(number)

    def grow(self, number: int) -> None:
        """Start threads until there are so many, or as many as the system allows, but at least one."""
        while self.number < number:
            try:
                threading.Thread(target=self._work, daemon=True).start()
            except RuntimeError:  # "can't start new thread"
                if self.number:
                    return
                raise
            self.number += 1

    def submit(self, call: Callable[..., R], *arguments: Any) -> Future[R]:
        """Return the future of a call."""
        future: Future[R] = Future()
        self._calls.put((future, call, arguments))
        return future

    def map(self, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield what the call returns for each item, in order; all are submitted at once."""
        for future in [self.submit(call, item) for item in items]:
            yield future.result()

    def _work(self) -> None:
        while True:
            future, call, arguments = self._calls.get()
            try:
                future.set_result(call(*arguments))
            except BaseException as error:
                future.set_exception(error)
            del future, call, arguments  # or what they hold would live until the next call
