"""What tests have workers do: read and fail as bulk inference can, tell what they see. Workers import this module."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch

from captcha_ray.inference.block import BlockTask, Finished
from captcha_ray.inference.block_decoder import Chunk
from captcha_ray.inference.block_reader import BlockReader
from tests.factories import GLYPHS, save_network
from tests.support.waiting import wait_until


def beside(task: BlockTask) -> Path:
    """The folder in which the table lies; there, workers and tests leave each other signs."""
    return Path(task.attempt).parents[3]


def _hang(folder: Path) -> None:
    (folder / "hangs").touch()
    wait_until((folder / "released").exists, None)


class Hanging:
    """Says what it is at, and gets no further until it is released."""

    def __init__(self, task: BlockTask, report: dict[str, Any]) -> None:
        self._folder = beside(task)
        self._report = report

    def read(self, block: int) -> tuple[int, int]:
        self._report["stage"] = "polish the lenses"
        _hang(self._folder)
        return 0, 0

    def read_all(self, blocks: Iterable[int]) -> Iterator[Finished]:
        for block in blocks:
            yield block, *self.read(block)


def _named(folder: Path) -> str:
    _hang(folder)
    return "tests.support.readers.Hanging"


class Unheard(str):
    """The name of a folder here; a worker gets to know it, and so to say anything, once it is released there."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[[Path], str], tuple[Path]]:
        return _named, (Path(self),)


class DyingOnce(BlockReader):
    """Its process is killed in the middle of the first block that is read."""

    def read(self, block: int, chunks: Iterable[Chunk] | None = None) -> tuple[int, int]:
        try:
            (beside(self._task) / "died").touch(exist_ok=False)
        except FileExistsError:
            return super().read(block, chunks)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")


class Dying:
    """Its process is killed in the middle of every block, until a test releases it."""

    def __init__(self, task: BlockTask, report: dict[str, Any]) -> None:
        self._released = beside(task) / "released"

    def read(self, block: int) -> tuple[int, int]:
        if self._released.exists():
            return 0, 0
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")


class Replaced(BlockReader):
    """Finds another network than the job began with."""

    def __init__(self, task: BlockTask, report: dict[str, Any]) -> None:
        save_network(Path(task.model), GLYPHS, seed=1)
        super().__init__(task, report)


def visible_gpus() -> str | None:
    """Return what this process may see of a node's GPUs: empty for none, None for all."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


class SeeGpus:
    """An actor of `map_batches` that tells what it may see."""

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        return {"visible": np.array([str(visible_gpus())])}


def see_gpus(arguments: dict[str, Any]) -> None:
    """The loop of a training worker that writes down what it may see, and the device that Ray Train gives it."""
    rank = ray.train.get_context().get_world_rank()
    Path(arguments["folder"], str(rank)).write_text(f"{visible_gpus()} {ray.train.torch.get_device()}")
