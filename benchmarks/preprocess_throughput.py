"""Images a second of preprocessing against a plain two-process Pillow loop, in one run.

The loop reads, decodes and makes gray the same files with Pillow in two processes and keeps nothing. The job also
lists, hashes every image, splits, finds duplicates and writes Parquet. Both are timed with their processes up and their
modules imported: the loop's pool and the job's Ray have each read a few files before. What the job takes as a whole
process, with the start of Python and Ray, is stated too.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from captcha_ray.datasets import preprocess as datasets_preprocess
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.runs.environment import provenance
from captcha_ray.runtime import ray_session

JOBS = Path(__file__).parent.parent / "jobs"
NUM_PROCESSES = 2


@dataclasses.dataclass(frozen=True)
class Options:
    """Say what to measure."""

    num_images: int = 20_000
    """Synthetic RGBA PNG files of 200x50 pixels."""
    rounds: int = 3
    """Times the job and the loop are run in turn."""


def read_all(paths: list[str]) -> int:
    """Decodes files to gray 200x50, one after another; returns how many."""
    for path in paths:
        with Image.open(path) as image:
            np.asarray(image.convert("L").resize((200, 50)))
    return len(paths)


def preprocess(folder: Path, corpus_name: str, out: str) -> float:
    """Seconds from listing to the last file, within the connected Ray."""
    config = PreprocessConfig(
        corpus=str(folder / corpus_name),
        labels="filename",
        label_pattern="^([^-]+)",
        height=50,
        width=200,
        out=str(folder / out),
    )
    started = time.perf_counter()
    datasets_preprocess.preprocess(config)
    return time.perf_counter() - started


def run_loop(paths: list[str]) -> float:
    """Seconds of the plain loop, its processes already up."""
    shares = [paths[k::NUM_PROCESSES] for k in range(NUM_PROCESSES)]
    with concurrent.futures.ProcessPoolExecutor(NUM_PROCESSES, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(read_all, [paths[:100]] * NUM_PROCESSES))
        started = time.perf_counter()
        list(pool.map(read_all, shares))
        return time.perf_counter() - started


def run_process(folder: Path) -> float:
    """Seconds of the job as a whole process."""
    cut = ["--corpus", "corpus", "--labels", "filename", "--label-pattern", "^([^-]+)", "--height", "50",
           "--width", "200", "--out", "whole"]  # fmt: skip
    started = time.perf_counter()
    command = [sys.executable, str(JOBS / "preprocess.py"), *cut]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for out, num_images in (("corpus", options.num_images), ("few", 100)):
            draw = ["--scheme", "text5", "--num-images", str(num_images), "--out", out]
            subprocess.run([sys.executable, str(JOBS / "synthesize.py"), *draw], cwd=folder, check=True)
        paths = sorted(str(path) for path in (folder / "corpus").glob("*.png"))
        with ray_session.connect():
            preprocess(folder, "few", "warm-up")
            for round_number in range(options.rounds):
                rows.append((preprocess(folder, "corpus", f"shards{round_number}"), run_loop(paths)))
        whole = run_process(folder)
    for line in provenance(n=len(paths), rounds=options.rounds):
        print(line)
    for job, loop in rows:
        print(
            f"job {len(paths) / job:8,.0f} images/s ({job:.1f} s)   "
            f"plain loop {len(paths) / loop:8,.0f} images/s ({loop:.1f} s)   ratio {loop / job:.3f}"
        )
    print(f"ratio, median: {statistics.median(loop / job for job, loop in rows):.3f}")
    print(f"the job as a whole process: {whole:.1f} s")


if __name__ == "__main__":
    main()
