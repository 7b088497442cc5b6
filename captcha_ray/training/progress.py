"""Show the progress of a training at its driver, and report it to Prometheus: events of rank 0, in order."""

import dataclasses
import time
from typing import Any

from captcha_ray import console
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runtime import capacity
from captcha_ray.runtime.telemetry import Telemetry

WAITING_S = 30.0
"""Seconds without an event after which the driver says what workers wait for; again after twice as many."""


@dataclasses.dataclass(frozen=True)
class WorkersBegan:
    """Workers begin, so many epochs being done; again if some were lost or more have come."""

    num_epochs: int
    num_workers: int


@dataclasses.dataclass(frozen=True)
class EpochTakenUp:
    """Says that an epoch that was interrupted goes on. epoch: from 1. fraction: finished part of it, 0 to 1."""

    epoch: int
    fraction: float


@dataclasses.dataclass(frozen=True)
class EpochNotKept:
    """Says that what is done of an epoch could not be kept. why: a sentence."""

    epoch: int
    why: str


@dataclasses.dataclass(frozen=True)
class PlanChanged:
    """The number of planned epochs. change: a sentence on the reason; may be empty."""

    num_epochs: int
    change: str


@dataclasses.dataclass(frozen=True)
class StepDone:
    """A step is done. epoch: from 1. fraction: finished part of the epoch, 0 to 1."""

    epoch: int
    fraction: float
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class EpochDone:
    """An epoch is done. record: a line of `metrics.jsonl`. best: whether its network is the one that is kept."""

    record: dict[str, Any]
    best: bool


Event = WorkersBegan | EpochTakenUp | EpochNotKept | PlanChanged | StepDone | EpochDone


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

    def show(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, WorkersBegan):
            self._begin(event.num_epochs, event.num_workers)
        elif isinstance(event, EpochTakenUp):
            console.say(
                f"goes on in epoch {event.epoch}, {event.fraction:.0%} of which is done", **dataclasses.asdict(event)
            )
        elif isinstance(event, EpochNotKept):
            console.warn(f"what is done of epoch {event.epoch} could not be kept, and training goes on: {event.why}")
        elif isinstance(event, PlanChanged):
            self._plan(event.num_epochs, event.change)
        elif isinstance(event, StepDone):
            self._step(event.epoch, event.fraction, event.images_per_second)
        else:
            self._epoch(event.record, event.best)

    def _begin(self, num_epochs: int, num_workers: int) -> None:
        if before := self._num_workers:
            why = "more workers have come" if num_workers > before else "workers were lost"
            console.say(
                f"{why}: training goes on after epoch {num_epochs} with {num_workers}, it was {before}",
                num_epochs=num_epochs,
                num_workers=num_workers,
            )
        self._num_workers, self._started = num_workers, None  # what was waited for says nothing of what is left

    def _plan(self, num_epochs: int, change: str) -> None:
        self.num_epochs = num_epochs
        if self._started is not None:
            self._bar.update(self._task, total=num_epochs)
        if change:
            console.say(f"{change}; {num_epochs} epochs in all", num_epochs=num_epochs)

    def _step(self, epoch: int, fraction: float, images_per_second: float) -> None:
        done = epoch - 1 + fraction
        if self._started is None:
            self._started = (time.monotonic(), done)
            self._bar.reset(self._task, total=self.num_epochs)
        self._bar.update(
            self._task, completed=done, note=f"epoch {epoch}/{self.num_epochs}  {images_per_second:,.0f} images/s"
        )

    def _epoch(self, record: dict[str, Any], best: bool) -> None:
        self._step(record["epoch"], 1.0, record["images_per_second"])
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


class WaitingNotice:
    """Says now and then, while no event comes, what the workers of a training may wait for."""

    def __init__(self, config: TrainConfig) -> None:
        self._config, self._patience = config, WAITING_S

    def __call__(self, silent_s: float) -> None:
        """Print the notice if the silence has lasted for twice as long as at the last one."""
        if silent_s < WAITING_S:
            self._patience = WAITING_S
        if silent_s > self._patience:
            self._patience *= 2
            have = capacity.describe(self._config.cpus_per_worker, self._config.use_gpu)
            console.say(
                f"no step for {silent_s:.0f} s: workers start, wait for nodes or validate; "
                f"{self._config.workers[0]} are needed, {have}"
            )


def measure(telemetry: Telemetry, num_epochs: int, event: Event) -> None:
    """Report an event to Prometheus. num_epochs: planned."""
    if isinstance(event, WorkersBegan):
        telemetry.set("captcha_workers", event.num_workers)
    elif isinstance(event, StepDone):
        telemetry.set("captcha_progress", (event.epoch - 1 + event.fraction) / num_epochs)
        telemetry.set("captcha_images_per_second", event.images_per_second)
    elif isinstance(event, EpochDone):
        telemetry.set("captcha_progress", event.record["epoch"] / num_epochs)
        telemetry.set("captcha_images_per_second", event.record["images_per_second"])
        telemetry.set("captcha_data_wait_fraction", event.record["data_wait_fraction"])
        telemetry.set("captcha_train_loss", event.record["train_loss"])
        telemetry.set("captcha_val_exact_match", event.record.get("val_exact_match"))
