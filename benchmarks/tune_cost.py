"""Measure what a search costs: Ray Tune's overhead over the epochs themselves, and what ASHA saves.

Overhead: the whole time of eight trials of one epoch against the sum of their epochs over the trials at once. Saving:
the same search with ASHA and without a scheduler; the best configs of both are trained in full with three seeds each
and compared on the same validation images.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tyro

from captcha_ray.experiments import parallel_runs
from captcha_ray.metrics.comparison import compare
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.runs.environment import provenance
from captcha_ray.tuning import trials

ROOT = Path(__file__).parent.parent
NUM_AT_ONCE = 2


@dataclasses.dataclass(frozen=True)
class Options:
    """Say what to measure."""

    shards: str
    """Shards that jobs/preprocess.py wrote."""
    recipe: str = "isfahan"
    """Recipe to start from."""
    num_trials: int = 20
    """Trials of each search."""
    epochs: int = 0
    """Epochs of a trial; 0 takes the recipe's."""
    vary: tuple[str, ...] = ()
    """Means what it does in jobs/tune.py."""
    num_overhead_trials: int = 8
    """Trials of one epoch."""


def tune(options: Options, run: Path, *flags: str | int) -> float:
    """Seconds of jobs/tune.py as a whole process."""
    command = [sys.executable, ROOT / "jobs/tune.py", "--recipe", options.recipe, "--shards", options.shards]
    command += ["--run", run, "--max-concurrent", NUM_AT_ONCE, *flags]
    if options.vary:
        command += ["--vary", *options.vary]
    started = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True)
    return time.perf_counter() - started


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    for line in provenance(num_trials=options.num_trials):
        print(line)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        one = ("--num-trials", options.num_overhead_trials, "--epochs", 1, "--final-seeds", 0, "--scheduler", "none")
        wall = tune(options, folder / "overhead", *one)
        epochs = sum(trial.seconds for trial in trials.load(RunDirectory(str(folder / "overhead")))) / NUM_AT_ONCE
        print(
            f"{options.num_overhead_trials} trials of one epoch: {wall:.1f} s; their epochs, {NUM_AT_ONCE} at once: ",
            end="",
        )
        print(f"{epochs:.1f} s; beyond 1.5 times those: {wall - 1.5 * epochs:.1f} s", flush=True)
        right, spent = {}, {}
        for scheduler in ("asha", "none"):
            run = folder / scheduler
            wall = tune(
                options, run, "--num-trials", options.num_trials, "--epochs", options.epochs, "--scheduler", scheduler
            )
            results = json.loads((run / "results.json").read_text())
            spent[scheduler] = results["num_epochs"]
            finals = sorted(run.glob("final/trial-*/predictions.parquet"))
            right[scheduler] = np.array([parallel_runs.right_in(pq.read_table(path)) for path in finals])
            print(
                f"{scheduler}: {results['num_epochs']:,} epochs in {results['search_seconds']:.0f} s, with comparison "
                f"{wall:.0f} s; best {results['best']}",
                flush=True,
            )
        print(f"epochs, asha / none: {spent['asha'] / spent['none']:.2f}")
        found = compare(right["asha"], right["none"])
        print(
            f"best of asha against best of none, in full: {found.best:.2%} against {found.recipe:.2%}, difference "
            f"{found.difference:+.2%} (95 % interval {found.low:+.2%} to {found.high:+.2%})"
        )


if __name__ == "__main__":
    main()
