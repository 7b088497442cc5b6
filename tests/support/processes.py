"""Jobs as processes that a test may kill, with all that they start: a Ray's daemons and workers bear the same mark."""

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Self

from tests.factories import draw_glyphs, glyph_texts

JOBS = Path(__file__).parents[2] / "jobs"
MARK = "CAPTCHA_RAY_TEST_MARK"
PREPROCESS = ("--labels", "filename", "--label-pattern", "^([^-]+)", "--height", "16", "--width", "24")
"""Flags for what `factories.draw_glyphs` draws."""
TRAIN = ("--recipe", "isfahan", "--height", "0", "--width", "0", "--max-length", "0", "--batch-size", "16",
         "--learning-rate", "3e-3", "--dropout", "0.1")  # fmt: skip
"""Flags of a training that learns it in some epochs."""


class Marked:
    """A process and all that it starts, wherever it is reparented to: they bear a mark in their environment.

    Its output stands in `log`; leaving the block ends it and whatever it started.
    """

    def __init__(self, command: list[str], name: str, *, cwd: Path, env: dict[str, str]) -> None:
        self.mark = uuid.uuid4().hex
        self.log = cwd / f"{name}-{self.mark}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=cwd, env={**env, MARK: self.mark}, stdout=log, stderr=log, text=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def said(self) -> str:
        """All it has printed so far."""
        return self.log.read_text()

    def pids(self, title: str = "") -> list[int]:
        """Processes whose command line holds `title`."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes()
                if marked and title in (folder / "cmdline").read_text():
                    found.append(int(folder.name))
            except OSError:
                continue  # it has ended meanwhile
        return found

    def kill(self) -> None:
        """SIGKILL to all of it."""
        for pid in self.pids():
            kill(pid)
        self.process.wait(60)


class Job(Marked):
    """jobs/<name>.py, running, with a Ray of its own or on the cluster that `address` names."""

    def __init__(
        self, name: str, *arguments: str | Path, cwd: Path, env: dict[str, str] | None = None, address: str = ""
    ) -> None:
        environment = {key: value for key, value in (env or os.environ).items() if key != "RAY_ADDRESS"}
        if address:
            environment["RAY_ADDRESS"] = address
        command = [sys.executable, str(JOBS / f"{name}.py"), *map(str, arguments)]
        super().__init__(command, name, cwd=cwd, env=environment)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(600)


def kill(pid: int) -> None:
    """SIGKILL; no error where the process has ended already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def environment(**changes: str) -> dict[str, str]:
    """This process' environment without what would lead a job to another cluster."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | changes


def run_job(name: str, *arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Runs jobs/<name>.py to its end; (exit status, standard output, standard error)."""
    command = [sys.executable, str(JOBS / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env or environment(), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def preprocessed(folder: Path) -> Path:
    """Shards of 203 images of two characters, made by the job."""
    draw_glyphs(folder / "corpus", glyph_texts(203, 2))
    cut = ("--labels", "filename", "--label-pattern", "^([a-d]+)", "--height", "16", "--width", "24")
    with Job("preprocess", "--corpus", folder / "corpus", *cut, "--out", folder / "shards", cwd=folder) as job:
        assert job.wait() == 0, job.said
    return folder / "shards"
