"""Run bulk inference's block tasks on Ray: recognize blocks, and report progress and failures to the driver.

Does not list, does not commit; `block_reader` knows how a block is recognized.
"""

import dataclasses
import importlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from captcha_ray.errors import InputError, full_disk
from captcha_ray.inference.block import BlockTask

if TYPE_CHECKING:
    from captcha_ray.inference.block_reader import BlockReader

REPORT_S = 1.0
"""Seconds between a worker's reports."""


@dataclasses.dataclass(frozen=True)
class WorkerState:
    """State of a worker. engine: what computes. fetched, recognized: objects. seconds: per stage."""

    worker: str
    engine: str
    stage: str
    fetched: int
    recognized: int
    seconds: dict[str, float]


class Report(dict[str, Any]):
    """Holds what a reader keeps up to date: the fields of `WorkerState`, but for the worker's name."""

    def __init__(self) -> None:
        super().__init__(engine="", stage="load the network", fetched=0, recognized=0, seconds={})

    def state(self, worker: str) -> WorkerState:
        """Return what stands in it now."""
        return WorkerState(worker, **{**self, "seconds": dict(self["seconds"])})


def load_reader(name: str, task: BlockTask, report: Report) -> "BlockReader":
    """Make a reader of the named class, which is imported here: only who recognizes needs an engine."""
    module, _, kind = name.rpartition(".")
    reader: BlockReader = getattr(importlib.import_module(module), kind)(task, report)
    return reader


class RecognizeBlocks:
    """A `BlockReader` as an actor of `map_batches` that reports its state every second."""

    def __init__(self, task: BlockTask, send: Callable[[WorkerState], Any], reader: str) -> None:
        self._report = Report()
        self._send = send
        self._refusal = self._failure = ""
        threading.Thread(target=self._keep_reporting, daemon=True).start()
        try:
            self._reader = load_reader(reader, task, self._report)
        except InputError as error:  # told with the first block: of what a constructor raises, Ray keeps the text alone
            self._refusal = str(error)

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[Any]]:
        """Recognize blocks by their numbers.

        Returns:
            Per block its rows, its errors, and a sentence that ends the job, if any: `refusal` of bad input, or
                `failure`.
        """
        counts = [(0, 0)] * len(batch["block"])
        try:
            if not self._refusal:
                counts = [self._reader.read(int(block)) for block in batch["block"]]
        except InputError as error:
            self._refusal = str(error)
        except OSError as error:
            self._failure = full_disk(error)
            if not self._failure:
                raise
        self._report_state()
        return {
            "block": batch["block"],
            "rows": np.array([rows for rows, _ in counts]),
            "errors": np.array([errors for _, errors in counts]),
            "refusal": np.array([self._refusal] * len(counts)),
            "failure": np.array([self._failure] * len(counts)),
        }

    def _report_state(self) -> None:
        import ray  # noqa: PLC0415 -- a night with nothing new imports no Ray

        self._send(self._report.state(ray.get_runtime_context().get_worker_id()))

    def _keep_reporting(self) -> None:
        while True:
            self._report_state()
            time.sleep(REPORT_S)
