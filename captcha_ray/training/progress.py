"""The way from the workers of a training to its driver: what rank 0 announces is shown and counted there."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions

from captcha_ray import console, room
from captcha_ray.cluster import here
from captcha_ray.config import TrainConfig
from captcha_ray.telemetry import Telemetry

LOOK_S = 0.25
"""Seconds between two looks at what was announced."""

WAITING_S = 30.0
"""Seconds without a step, above which the driver says what workers wait for; again after twice as many."""

Announcement = tuple[str, tuple[Any, ...]]
"""Name and arguments of a method of TrainingProgress."""


@ray.remote(num_cpus=0)
class _Mailbox:
    """Carries announcements from a worker on another machine to the driver."""

    def __init__(self) -> None:
        self._messages: list[Announcement] = []

    def put(self, message: Announcement) -> None:
        self._messages.append(message)

    def take(self) -> list[Announcement]:
        messages, self._messages = self._messages, []
        return messages


class Relay:
    """Shows on the driver's terminal what rank 0 announces, and what is waited for while it announces nothing."""

    def __init__(self, show: Callable[[Announcement], Any], config: TrainConfig) -> None:
        self._show, self._config = show, config
        self._mailbox: Any = _Mailbox.options(scheduling_strategy=here()).remote()  # type: ignore[attr-defined]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def announcer(self) -> Callable[[Announcement], Any]:
        """A function for rank 0; it travels to any machine."""
        mailbox = self._mailbox

        def announce(message: Announcement) -> None:
            mailbox.put.remote(message)

        return announce

    def __enter__(self) -> "Relay":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        ray.kill(self._mailbox)

    def _watch(self) -> None:
        heard, patience = time.monotonic(), WAITING_S
        while not self._done.wait(LOOK_S):
            silent = time.monotonic() - heard
            with contextlib.suppress(ray.exceptions.RayError):  # a look that fails costs a look
                if self._show_all():
                    heard, patience = time.monotonic(), WAITING_S
                    continue
            if silent > patience:
                patience *= 2
                have = room.describe(self._config.cpus_per_worker, self._config.use_gpu)
                console.say(
                    f"no step for {silent:.0f} s: workers start, wait for nodes or validate; "
                    f"{self._config.workers[0]} are needed, {have}"
                )
        with contextlib.suppress(ray.exceptions.RayError):
            self._show_all()

    def _show_all(self) -> int:
        """Returns how many there were."""
        messages = ray.get(self._mailbox.take.remote())
        for message in messages:
            self._show(message)
        return len(messages)


def measure(telemetry: Telemetry, num_epochs: int, message: Announcement) -> None:
    """Tells Prometheus what an announcement says."""
    name, arguments = message
    if name == "step":
        epoch, fraction, images_per_second = arguments
        telemetry.set("captcha_progress", (epoch - 1 + fraction) / num_epochs)
        telemetry.set("captcha_images_per_second", images_per_second)
        return
    if name == "begin":
        telemetry.set("captcha_workers", arguments[1])
        return
    if name == "plan":
        return
    record = arguments[0]
    telemetry.set("captcha_progress", record["epoch"] / num_epochs)
    telemetry.set("captcha_images_per_second", record["images_per_second"])
    telemetry.set("captcha_data_wait_fraction", record["data_wait_fraction"])
    telemetry.set("captcha_train_loss", record["train_loss"])
    telemetry.set("captcha_val_exact_match", record.get("val_exact_match"))
