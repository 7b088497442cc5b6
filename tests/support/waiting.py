"""Waiting for what another process does, without hoping."""

import subprocess
import time
from collections.abc import Callable


def wait_until(
    ready: Callable[[], bool],
    process: subprocess.Popen[str] | None = None,
    seconds: float = 120,
    explain: Callable[[], str] = lambda: "nothing happened in time",
) -> None:
    """Poll until `ready`; fail with what `explain` gives if the process, if there is one, ends first or the time
    is up."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert process is None or process.poll() is None, f"the process ended early: {explain()}"
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)
