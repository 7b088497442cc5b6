"""Carry the progress of a training from rank 0 to its driver, and show and count it there."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions

from captcha_ray import console
from captcha_ray.runtime import capacity
from captcha_ray.runtime.ray_session import here
from captcha_ray.runtime.telemetry import Telemetry
from captcha_ray.training.config import TrainConfig

LOOK_S = 0.25
"""Seconds between two looks at what was announced."""

WAITING_S = 30.0
"""Seconds without a step after which the driver says what workers wait for; again after twice as many."""

Announcement = tuple[str, tuple[Any, ...]]
"""Name and arguments of a method of TrainingProgress."""


class TrainingProgress:
    """One bar for a whole training and one line per finished epoch."""

    def __init__(self, num_epochs: int) -> None:
        self.num_epochs = num_epochs
        self._bar = console.bar()
        self._task = self._bar.add_task("train", total=None, note="starting")
        self._started: tuple[float, float] | None = None
        self._num_workers = 0

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, num_epochs: int, num_workers: int) -> None:
        """Note that workers begin after so many epochs; again if some were lost or more have come."""
        if before := self._num_workers:
            why = "more workers have come" if num_workers > before else "workers were lost"
            console.say(
                f"{why}: training goes on after epoch {num_epochs} with {num_workers}, it was {before}",
                num_epochs=num_epochs,
                num_workers=num_workers,
            )
        self._num_workers, self._started = num_workers, None  # what was waited for says nothing of what is left

    def plan(self, num_epochs: int, change: str) -> None:
        """Set the number of planned epochs. change: a sentence on the reason; may be empty."""
        self.num_epochs = num_epochs
        if self._started is not None:
            self._bar.update(self._task, total=num_epochs)
        if change:
            console.say(f"{change}; {num_epochs} epochs in all", num_epochs=num_epochs)

    def step(self, epoch: int, fraction: float, images_per_second: float) -> None:
        """Move the bar. epoch: from 1. fraction: finished part of the epoch, 0 to 1."""
        done = epoch - 1 + fraction
        if self._started is None:
            self._started = (time.monotonic(), done)
            self._bar.reset(self._task, total=self.num_epochs)
        self._bar.update(
            self._task, completed=done, note=f"epoch {epoch}/{self.num_epochs}  {images_per_second:,.0f} images/s"
        )

    def epoch(self, record: dict[str, Any], best: bool) -> None:
        """Print a finished epoch. record: a line of `metrics.jsonl`."""
        self.step(record["epoch"], 1.0, record["images_per_second"])
        left = ""
        if self._started is not None and not console.is_terminal():
            at, done = self._started
            rate = (record["epoch"] - done) / max(time.monotonic() - at, 1e-9)
            left = f"  {console.time_left(self.num_epochs - record['epoch'], rate)} left"
        loss, characters = f"{record['train_loss']:.3f}", f"{record['train_char_accuracy']:.2%}"
        if "val_loss" in record:
            loss += f" val {record['val_loss']:.3f}"
            characters += f" val {record['val_char_accuracy']:.2%}  strings val {record['val_exact_match']:.2%}"
        console.say(
            f"epoch {record['epoch']:>3}/{self.num_epochs}  loss {loss}  characters {characters}"
            f"  {record['images_per_second']:,.0f} images/s{left}{'  best' if best and 'val_loss' in record else ''}",
            **record,
        )


@ray.remote(num_cpus=0)
class _Mailbox:
    """An actor that carries announcements from a worker to the driver."""

    def __init__(self) -> None:
        self._messages: list[Announcement] = []

    def put(self, message: Announcement) -> None:
        self._messages.append(message)

    def take(self) -> list[Announcement]:
        messages, self._messages = self._messages, []
        return messages


class Relay:
    """Shows at the driver what rank 0 announces, and what is waited for while it announces nothing."""

    def __init__(self, show: Callable[[Announcement], Any], config: TrainConfig) -> None:
        self._show, self._config = show, config
        self._mailbox: Any = _Mailbox.options(scheduling_strategy=here()).remote()  # type: ignore[attr-defined]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def announcer(self) -> Callable[[Announcement], Any]:
        """Return a function for rank 0, which travels to any machine."""
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
                have = capacity.describe(self._config.cpus_per_worker, self._config.use_gpu)
                console.say(
                    f"no step for {silent:.0f} s: workers start, wait for nodes or validate; "
                    f"{self._config.workers[0]} are needed, {have}"
                )
        with contextlib.suppress(ray.exceptions.RayError):
            self._show_all()

    def _show_all(self) -> int:
        """Show what has come and return how many announcements there were."""
        messages = ray.get(self._mailbox.take.remote())
        for message in messages:
            self._show(message)
        return len(messages)


def measure(telemetry: Telemetry, num_epochs: int, message: Announcement) -> None:
    """Report an announcement to Prometheus."""
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
