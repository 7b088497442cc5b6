"""Read objects from a store ahead of who needs them, with as many reads at once as keep that one from waiting."""

import concurrent.futures
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

NUM_READS, MAX_READS = 32, 256
"""Reads at once, at first and at most. By Little's law a thousand a second of 30 ms each need 30."""

MAX_WAIT = 0.1
"""Share of the time that may be spent waiting for reads; above it, twice as many are made at once."""

HELP = 0.8
"""Share of the wait before at which more reads have helped; they help no more where a store or a line is at its end."""


class NumReads:
    """The number of reads at once, by what was waited before."""

    def __init__(self) -> None:
        self.value = NUM_READS
        self._wait_before = float("inf")

    def adapt(self, wait: float) -> bool:
        """Double the number if the share of time that was spent waiting asks for it; return whether it changed."""
        if wait <= MAX_WAIT or wait > HELP * self._wait_before or self.value >= MAX_READS:
            return False
        self._wait_before = wait
        self.value = min(2 * self.value, MAX_READS)
        return True


class ReadAhead(Generic[T, R]):
    """Reads of items, a chunk of which is read while the chunk before is used. read: is called in many threads."""

    def __init__(self, read: Callable[[T], R]) -> None:
        self._read = read
        self._number = NumReads()
        self._pool = concurrent.futures.ThreadPoolExecutor(self._number.value)

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
        if waited and self._number.adapt(waited / (waited + used)):
            self._pool.shutdown()
            self._pool = concurrent.futures.ThreadPoolExecutor(self._number.value)

    def _submit(self, items: Sequence[T]) -> list[concurrent.futures.Future[R]]:
        return [self._pool.submit(self._read, item) for item in items]
