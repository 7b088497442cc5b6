"""Run bulk inference's block tasks on Ray: recognize blocks, and report progress and failures to the driver.

Does not list, does not commit; `block_decoder` and `block_reader` know how a block is decoded and recognized.
"""

import dataclasses
import importlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from captcha_ray.errors import InputError, full_disk
from captcha_ray.inference.block import IDLE, BlockTask
from captcha_ray.models.spec import ModelSpec

if TYPE_CHECKING:
    from captcha_ray.inference.block_reader import BlockReader

REPORT_S = 1.0
"""Least seconds between two of a worker's reports that no block is the reason of."""

REPORTS_PER_S = 20
"""Such reports a second of all workers together; the more there are, the less often each reports."""


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


def report_every(num_workers: int, stall_timeout_s: float) -> float:
    """Return the seconds between such reports of each worker, of which a stall's timeout holds several."""
    return min(max(REPORT_S, num_workers / REPORTS_PER_S), max(stall_timeout_s / 4, REPORT_S))


class _Actor:
    """Reports its state every few seconds, as all actors of `map_batches` do."""

    def __init__(self, send: Callable[[WorkerState], Any], report_s: float) -> None:
        self._report = Report()
        self._send, self._report_s = send, report_s
        threading.Thread(target=self._keep_reporting, daemon=True).start()

    def _report_state(self) -> None:
        import ray  # noqa: PLC0415 -- a night with nothing new imports no Ray

        self._send(self._report.state(ray.get_runtime_context().get_worker_id()))

    def _keep_reporting(self) -> None:
        while True:
            self._report_state()
            time.sleep(self._report_s)


class RecognizeBlocks(_Actor):
    """Recognizes blocks by a `BlockReader`, as an actor."""

    def __init__(self, task: BlockTask, send: Callable[[WorkerState], Any], report_s: float, reader: str) -> None:
        super().__init__(send, report_s)
        self._refusal = self._failure = ""
        try:
            self._reader = load_reader(reader, task, self._report)
            self._report["stage"] = IDLE
        except InputError as error:  # told with the first block: of what a constructor raises, Ray keeps the text alone
            self._refusal = str(error)

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[Any]]:
        """Recognize a block by its number.

        Returns:
            The block, its rows, its errors, and a sentence that ends the job, if any: `refusal` of bad input, or
                `failure`.
        """
        (block,) = map(int, batch["block"])
        return self._tell(block, lambda: self._reader.read(block))

    def _tell(self, block: int, recognize: Callable[[], tuple[int, int]]) -> dict[str, npt.NDArray[Any]]:
        rows = errors = 0
        try:
            if not self._refusal:
                rows, errors = recognize()
        except InputError as error:
            self._refusal = str(error)
        except OSError as error:
            self._failure = full_disk(error)
            if not self._failure:
                raise
        self._report_state()
        told = {"block": block, "rows": rows, "errors": errors, "refusal": self._refusal, "failure": self._failure}
        return {name: np.array([value]) for name, value in told.items()}


class RecognizeDecoded(RecognizeBlocks):
    """Recognizes blocks that `DecodeBlocks` has decoded, as an actor."""

    def __call__(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """Recognize a decoded block. See `RecognizeBlocks`."""
        from captcha_ray.inference.block_decoder import from_table  # noqa: PLC0415 -- only who decodes needs decoders

        (block,) = table["block"].unique().to_pylist()
        return self._tell(block, lambda: self._reader.read(block, from_table(table, self._reader.shape)))


class DecodeBlocks(_Actor):
    """Decodes blocks by a `BlockDecoder`, as an actor."""

    def __init__(self, task: BlockTask, spec: ModelSpec, send: Callable[[WorkerState], Any], report_s: float) -> None:
        from captcha_ray.inference.block_decoder import BlockDecoder, to_table  # noqa: PLC0415 -- as above

        super().__init__(send, report_s)
        self._report["stage"] = IDLE
        self._to_table = to_table
        self._shape = spec.image.shape
        self._decoder = BlockDecoder(task, spec, self._report)

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> pa.Table:
        """Fetch and decode a block by its number. Returns what `to_table` says."""
        (block,) = map(int, batch["block"])
        table = self._to_table(self._decoder.chunks([block]), self._shape)
        self._report["stage"] = IDLE
        self._report_state()
        return table
