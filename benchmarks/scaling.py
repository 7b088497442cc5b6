"""One worker pinned to a core against two pinned to a core each: training of two networks, and bulk inference.

Every worker is on a Ray node of its own on this machine, of one CPU and held to one core; head and driver run wherever
there is room, so their work counts against the workers. Rounds alternate, one worker then two; the median is stated.
Training: images a second of the epochs after the second, which wait for no process to start. Inference: objects over
the seconds between the first worker's start and the last row, as the job says them.
"""

import contextlib
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tyro

from captcha_ray import runs
from tests.processes import JOBS
from tests.ray_nodes import Nodes

TRAININGS = {
    "column_cnn, the default": ("--recipe", "text"),
    "multi_head_cnn": ("--recipe", "isfahan"),
}
"""Flags by what a training is called."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    num_images: int = 3000
    """Images of five characters, 200x50 pixels, to train on."""
    batch_size: int = 32
    """Images per worker and step."""
    epochs: int = 6
    """Of a training; the first two do not count."""
    num_objects: int = 12_000
    """Files to read."""
    rounds: int = 3
    """How often each is measured with one worker and with two."""


@contextlib.contextmanager
def pinned(num_workers: int, folder: Path) -> Iterator[dict[str, str]]:
    """A cluster of so many nodes of one core each; gives the environment of its clients."""
    nodes = Nodes(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(nodes.head(0))
        for core in sorted(os.sched_getaffinity(0))[:num_workers]:
            stack.enter_context(nodes.add(1, within=("taskset", "--cpu-list", str(core))))
        nodes.await_alive(1 + num_workers)
        yield nodes.env | {"RAY_ADDRESS": nodes.address}


def run(name: str, *flags: str | Path, env: dict[str, str], cwd: Path) -> str:
    """What a job prints."""
    command = [sys.executable, str(JOBS / f"{name}.py"), *map(str, flags)]
    done = subprocess.run(command, env=env, cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} ended with status {done.returncode}: {done.stderr}")
    return done.stdout


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    sizes = {name: getattr(options, name) for name in ("num_images", "batch_size", "epochs", "num_objects", "rounds")}
    for line in runs.provenance(**sizes):
        print(line, flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        draw = ("--scheme", "text5", "--num-images", str(max(options.num_images, options.num_objects)))
        run("synthesize", *draw, "--out", "images", env=alone, cwd=folder)
        table = folder / "table.csv"
        drawn = sorted(path.name for path in (folder / "images").iterdir() if path.suffix == ".png")
        rows = [f"images/{one},{Path(one).stem.partition('-')[0]}" for one in drawn[: options.num_images]]
        table.write_text("\n".join(["path,text", *rows, ""]))
        made = ("--labels", "table", "--table", table, "--splits", "1", "0", "0", "--out", "shards")
        run("preprocess", *made, env=alone, cwd=folder)
        rates: dict[str, dict[int, list[float]]] = {}
        for number in range(options.rounds):
            for num_workers in (1, 2):
                with pinned(num_workers, folder) as env:
                    for what, recipe in TRAININGS.items():
                        out = f"{what.partition(',')[0]}-{number}-{num_workers}"
                        flags = ("--shards", "shards", "--run", out, "--num-workers", str(num_workers))
                        size = ("--epochs", str(options.epochs), "--batch-size", str(options.batch_size))
                        run("train", *recipe, *flags, *size, env=env, cwd=folder)
                        lines = (folder / out / "metrics.jsonl").read_text().splitlines()[2:]
                        rate = statistics.median(json.loads(line)["images_per_second"] for line in lines)
                        rates.setdefault(f"training {what}", {}).setdefault(num_workers, []).append(rate)
                    night = ("--images", "images", "--run", "column_cnn-0-1", "--out", f"out-{number}-{num_workers}")
                    said = run("infer", *night, "--num-workers", str(num_workers), env=env, cwd=folder)
                    found = re.search(r"^read: ([\d,]+) objects in ([\d.]+) s", said, re.MULTILINE)
                    assert found, said
                    rate = int(found.group(1).replace(",", "")) / float(found.group(2))
                    rates.setdefault("inference, column_cnn", {}).setdefault(num_workers, []).append(rate)
            for what, by_workers in rates.items():
                print(
                    f"round {number + 1}: {what}: {by_workers[1][-1]:,.0f} and {by_workers[2][-1]:,.0f} images/s",
                    flush=True,
                )
        for what, by_workers in rates.items():
            one, two = (statistics.median(by_workers[n]) for n in (1, 2))
            print(f"{what}: one worker {one:,.0f} images/s, two {two:,.0f}: {two / one:.2f} times")


if __name__ == "__main__":
    main()
