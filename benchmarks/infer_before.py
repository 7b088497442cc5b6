"""Time a whole night of `infer.py` against one of an older checkout, on one core, over the same files.

Rounds alternate. Each night recognizes all files below --images into a new table; what is timed is the whole process,
from the start of Python to the committed Parquet. Both tables are read back by DuckDB, which must find every file once.
The first round, which warms the files' cache, does not count.
"""

import dataclasses
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import duckdb
import tyro

from captcha_ray.runs.environment import provenance

HERE = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Options:
    """Say what to measure."""

    old: str
    """Checkout of the older version, with its `.venv`."""
    images: str
    """Folder of images."""
    old_run: str
    """Run that the older version recognizes with."""
    runs: tuple[str, ...]
    """Runs that this version recognizes with, one after another."""
    rounds: int = 5
    """Times each is run, besides the first."""
    core: int = 0
    """Core that both are held to."""


def night(checkout: Path, images: str, run: str, core: int, flags: list[str]) -> tuple[float, int]:
    """Return the seconds of the whole process and the rows of the table.

    Raises CalledProcessError where the job fails, and RuntimeError where a file has not exactly one text.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["taskset", "--cpu-list", str(core), str(checkout / ".venv" / "bin" / "python"), "jobs/infer.py"]
        job = ["--images", images, "--run", run, "--out", f"{folder}/out", *flags]
        started = time.perf_counter()
        subprocess.run([*command, *job], check=True, cwd=checkout, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        table = f"read_parquet('{folder}/out/**/*.parquet')"
        count = f"SELECT count(*), count(DISTINCT uri), count(text) FROM {table}"
        rows, uris, texts = duckdb.connect().execute(count).fetchall()[0]
        if not rows == uris == texts:
            raise RuntimeError(f"{checkout} wrote {rows} rows and {texts} texts of {uris} files")
        return seconds, rows


def commit_of(checkout: Path) -> str:
    """Return the short hash of a checkout's commit."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    old = Path(options.old).absolute()
    images, old_run, *runs = (str(Path(each).absolute()) for each in (options.images, options.old_run, *options.runs))
    for line in provenance(rounds=options.rounds):
        print(line)
    print(f"the older version is {commit_of(old)}", flush=True)
    ratios: dict[str, list[float]] = {run: [] for run in runs}
    for number in range(-1, options.rounds):
        before, num_before = night(old, images, old_run, options.core, ["--num-workers", "1"])
        for run in runs:
            now, num_now = night(HERE, images, run, options.core, [])
            if num_before != num_now:
                raise RuntimeError(f"the older version has {num_before} rows, this one {num_now}")
            told = f"{before:.1f} s before, {now:.1f} s now, {before / now:.2f} times"
            print(f"{num_now:,} files with {run}: {told}", flush=True)
            if number >= 0:
                ratios[run].append(before / now)
    for run, measured in ratios.items():
        each = ", ".join(f"{ratio:.2f}" for ratio in measured)
        print(f"{run}: {statistics.median(measured):.2f} times in the median ({each})")


if __name__ == "__main__":
    main()
