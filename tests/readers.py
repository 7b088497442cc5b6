"""Readers that fail as workers of bulk inference do. In a module of their own, since it is workers that import them."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from captcha_ray.reader import BlockReader
from captcha_ray.work import Work
from tests.conftest import GLYPHS, save_network
from tests.waiting import wait_until


def beside(work: Work) -> Path:
    """The folder in which the table lies; there, workers and tests leave each other signs."""
    return Path(work.attempt).parents[3]


def _hang(folder: Path) -> None:
    (folder / "hangs").touch()
    wait_until((folder / "released").exists, None)


class Hanging:
    """Says what it is at, and gets no further until it is released."""

    def __init__(self, work: Work, report: dict[str, Any]) -> None:
        self._folder = beside(work)
        self._report = report

    def read(self, block: int) -> tuple[int, int]:
        self._report["stage"] = "polish the lenses"
        _hang(self._folder)
        return 0, 0


def _named(folder: Path) -> str:
    _hang(folder)
    return "tests.readers.Hanging"


class Unheard(str):
    """The name of a folder here; a worker gets to know it, and so to say anything, once it is released there."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[[Path], str], tuple[Path]]:
        return _named, (Path(self),)


class DyingOnce(BlockReader):
    """Its process is killed in the middle of the first block that is read."""

    def read(self, block: int) -> tuple[int, int]:
        try:
            (beside(self._work) / "died").touch(exist_ok=False)
        except FileExistsError:
            return super().read(block)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")


class Dying:
    """Its process is killed in the middle of every block, until a test releases it."""

    def __init__(self, work: Work, report: dict[str, Any]) -> None:
        self._released = beside(work) / "released"

    def read(self, block: int) -> tuple[int, int]:
        if self._released.exists():
            return 0, 0
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")


class Replaced(BlockReader):
    """Finds another network than the job began with."""

    def __init__(self, work: Work, report: dict[str, Any]) -> None:
        save_network(Path(work.model), GLYPHS, seed=1)
        super().__init__(work, report)
