"""Carry events from workers to a function of the driver, in the order in which they arrive.

Events are frozen dataclasses, which the rooms that use the channel define. A worker waits for the driver at its end
alone. A lost event costs progress on the terminal, and never the work.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Self

import ray
import ray.exceptions

from captcha_ray.runtime.ray_session import here

LOOK_S = 0.25
"""Seconds between two looks at what has come."""

TIMEOUT_S = 5.0
"""Seconds that a look waits for the channel's actor."""

FLUSH_S = 30.0
"""Most seconds that a worker, and then the last look, wait. On a busy machine an event is on its way for seconds."""


@ray.remote(num_cpus=0)
class _Mailbox:
    """An actor on the driver's node that holds events until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[Any] = []

    def put(self, event: Any) -> None:
        self._events.append(event)

    def take(self) -> list[Any]:
        events, self._events = self._events, []
        return events


class Sender:
    """Sends events to a channel from any machine."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._last: Any = None

    def __call__(self, event: Any) -> None:
        """Send an event, without waiting for it to come."""
        self._last = self._mailbox.put.remote(event)

    def flush(self) -> None:
        """Wait until all events have come: those on their way are lost with the process that has sent them."""
        if self._last is not None:
            ray.wait([self._last], timeout=FLUSH_S)


class ProgressChannel:
    """A channel that is open while its block runs. At its end it delivers what has come by then.

    Args:
        on_event: Called with each event, in a thread of the driver.
        on_silence: Called after a look without an event, with the seconds since the last one.
    """

    def __init__(
        self, on_event: Callable[[Any], Any], on_silence: Callable[[float], Any] = lambda seconds: None
    ) -> None:
        self._on_event, self._on_silence = on_event, on_silence
        self._mailbox: Any = _Mailbox.options(scheduling_strategy=here()).remote()  # type: ignore[attr-defined]
        self._lock = threading.Lock()
        self._taken: Any = None  # a look that timed out is awaited again: its events are out of the mailbox
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def sender(self) -> Sender:
        """Return what sends events to this channel."""
        return Sender(self._mailbox)

    def deliver(self, timeout_s: float = TIMEOUT_S) -> int:
        """Deliver what has come; return the number of events. A look that fails costs a look."""
        with self._lock:
            self._taken = self._taken or self._mailbox.take.remote()
            try:
                events = ray.get(self._taken, timeout=timeout_s)
            except ray.exceptions.GetTimeoutError:
                return 0
            except ray.exceptions.RayError:
                self._taken = None
                return 0
            self._taken = None
            for event in events:
                self._on_event(event)
            return len(events)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        ray.kill(self._mailbox)

    def _look(self) -> None:
        heard = time.monotonic()
        while not self._done.wait(LOOK_S):
            if self.deliver():
                heard = time.monotonic()
            else:
                self._on_silence(time.monotonic() - heard)
        was_late = self._taken is not None
        self.deliver(FLUSH_S)
        if was_late:  # what has come since that look is still in the mailbox
            self.deliver(FLUSH_S)
