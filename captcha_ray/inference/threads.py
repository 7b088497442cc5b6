"""Threads that end with the process: those of `concurrent.futures` hold it up while a store or a disk hangs."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class DaemonThreads:
    """Threads that call functions in the order in which they are submitted."""

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
