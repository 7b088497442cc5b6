"""Read objects from a store ahead of who needs them, with as many reads at once as keep that one from waiting."""

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

N = TypeVar("N")
T = TypeVar("T")
R = TypeVar("R")

NUM_READS, MAX_READS = 32, 128
"""Reads at once, at first and at most. By Little's law a thousand a second of 30 ms each need 30."""

MAX_WAIT = 0.1
"""Share of the time that may be spent waiting for reads; above it, twice as many are made at once."""

HELP = 0.8
"""Share of the wait before at which more reads have helped; they do not where a store or a line is at its limit."""

REST = 8
"""Times that nothing is changed after more reads have not helped."""

ADAPT_CHUNKS = 16
"""Chunks after which the number of reads is looked at again, if they are not over before."""


class NumReads:
    """The number of reads at once, which follows from what was waited."""

    def __init__(self) -> None:
        self.value = NUM_READS
        self._before: float | None = None  # the wait that made it double, until it is seen whether that has helped
        self._rest = 0

    def adapt(self, wait: float) -> None:
        """Double the number if the wait, a share of the time, asks for it and doubling helps."""
        if self._before is not None and wait > HELP * self._before:
            self._rest = REST
        self._before = None
        if self._rest:
            self._rest -= 1
        elif wait > MAX_WAIT and self.value < MAX_READS:
            self._before = wait
            self.value = min(2 * self.value, MAX_READS)


@dataclasses.dataclass
class Waits:
    """Sums the seconds that were waited for chunks and that they were used for, but for the very first."""

    num_chunks: int = 0
    waited: float = 0.0
    used: float = 0.0

    def add(self, waited: float, used: float) -> None:
        """Count a chunk; while the very first is read nothing is done, so it is always waited for."""
        if self.num_chunks:
            self.waited += waited
            self.used += used
        self.num_chunks += 1


class ReadAhead(Generic[T, R]):
    """Reads of items, a chunk of which is read while the chunk before is used. read: is called in many threads."""

    def __init__(self, read: Callable[[T], R]) -> None:
        self._read = read
        self._number = NumReads()
        self._threads = DaemonThreads(self._number.value)

    def chunks(self, chunks: Iterable[tuple[N, Sequence[T]]]) -> Iterator[tuple[N, list[R]]]:
        """Yield what is read of each chunk, in order, with what comes along with the chunk."""
        upcoming = iter(chunks)
        ahead = self._submit(next(upcoming, None))
        waits = Waits()
        while ahead is not None:
            (beside, reads), ahead = ahead, self._submit(next(upcoming, None))
            started = time.perf_counter()
            found = [read.result() for read in reads]
            del reads  # so that who is given what was read alone holds it
            arrived = time.perf_counter()
            yield beside, found
            waits.add(arrived - started, time.perf_counter() - arrived)
            if waits.num_chunks > ADAPT_CHUNKS or ahead is None:
                self._adapt(waits)
                waits = Waits(1)

    def close(self) -> None:
        """End the threads, as `DaemonThreads.close` does."""
        self._threads.close()

    def _adapt(self, waits: "Waits") -> None:
        if waits.waited:
            self._number.adapt(waits.waited / (waits.waited + waits.used))
            self._threads.grow(self._number.value)

    def _submit(self, chunk: tuple[N, Sequence[T]] | None) -> tuple[N, list[Future[R]]] | None:
        return chunk and (chunk[0], [self._threads.submit(self._read, item) for item in chunk[1]])


class DaemonThreads:
    """Calls functions in threads, in the order in which they are submitted; the threads end with the process.

    Those of `concurrent.futures` hold a process up while a store or a disk hangs.
    """

    def __init__(self, number: int) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._calls = queue.SimpleQueue()
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

    def close(self) -> None:
        """End each thread after the call that it is at, without waiting for it; other calls are not made."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()
        for _ in range(self.number):
            self._calls.put(None)

    def _work(self) -> None:
        while (taken := self._calls.get()) is not None:
            future, call, arguments = taken
            try:
                future.set_result(call(*arguments))
            except BaseException as error:
                future.set_exception(error)
            del taken, future, call, arguments  # or what they hold would live until the next call
