"""Read objects from a store ahead of who needs them, with as many reads at once as keep that one from waiting."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from captcha_ray.inference.threads import DaemonThreads

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
