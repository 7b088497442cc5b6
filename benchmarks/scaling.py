"""One worker on one core against two workers on two: training of two networks, and bulk inference.

On cores: the whole job, its driver and the Ray that it starts too, is held to one core or to two. On nodes: every
worker is on a Ray node of its own, of one CPU and held to one core; head, driver and every node's daemons run wherever
there is room, and on a machine of two cores that is the workers' own. Rounds alternate, one worker then two; what is
stated is the median of the rounds' ratios. Training: images a second of the epochs after the second, which wait for no
process to start. Inference: objects over the seconds that the job says it has read for, the start of workers included.
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
from typing import Literal

import tyro

from captcha_ray.runs.environment import provenance
from tests.support.processes import JOBS
from tests.support.ray_nodes import Nodes

TRAININGS = {"column_cnn": "text", "multi_head_cnn": "isfahan"}
"""Recipes, by the network that is measured: that of the first is the default."""

Part = Literal["column_cnn", "multi_head_cnn", "inference"]
Where = Literal["cores", "nodes"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Say what to measure."""

    num_images: int = 2000
    """Images of five characters, 200x50 pixels, to train on."""
    batch_size: int = 32
    """Images per worker and step."""
    epochs: int = 6
    """Of a training; the first two do not count."""
    num_objects: int = 40_000
    """Files to read."""
    rounds: int = 3
    """Times that each is measured with one worker and with two."""
    parts: tuple[Part, ...] = ("column_cnn", "multi_head_cnn", "inference")
    """Trainings of a network, and reading by an untrained column_cnn."""
    where: tuple[Where, ...] = ("cores", "nodes")
    """On this machine alone, on Ray nodes, or both."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Runs jobs somewhere. within: the command that holds them to cores."""

    env: dict[str, str]
    within: tuple[str, ...] = ()

    def run(self, name: str, *flags: str | Path, cwd: Path) -> str:
        """Return what a job prints. Raises RuntimeError where it fails."""
        command = [*self.within, sys.executable, str(JOBS / f"{name}.py"), *map(str, flags)]
        done = subprocess.run(command, env=self.env, cwd=cwd, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name} ended with status {done.returncode}: {done.stderr}")
        return done.stdout


ALONE = Place({key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"})


@contextlib.contextmanager
def place(where: Where, num_workers: int, folder: Path) -> Iterator[Place]:
    """So many cores, or a cluster of so many nodes of one core each."""
    cores = list(map(str, sorted(os.sched_getaffinity(0))[:num_workers]))
    if where == "cores":
        yield dataclasses.replace(ALONE, within=("taskset", "--cpu-list", ",".join(cores)))
        return
    nodes = Nodes(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(nodes.head(0))
        for core in cores:
            stack.enter_context(nodes.add(1, within=("taskset", "--cpu-list", core)))
        nodes.await_alive(1 + num_workers)
        yield Place(nodes.env | {"RAY_ADDRESS": nodes.address})


def prepare(options: Options, folder: Path) -> None:
    """Draws `images/`, makes `shards/` of some of them, and trains the network in `network/` for an epoch."""
    draw = ("--scheme", "text5", "--num-images", str(max(options.num_images, options.num_objects)))
    ALONE.run("synthesize", *draw, "--out", "images", cwd=folder)
    table = folder / "table.csv"
    drawn = sorted(path.name for path in (folder / "images").iterdir() if path.suffix == ".png")
    rows = [f"images/{one},{Path(one).stem.partition('-')[0]}" for one in drawn[: options.num_images]]
    table.write_text("\n".join(["path,text", *rows, ""]))
    made = ("--labels", "table", "--table", table, "--splits", "1", "0", "0", "--out", "shards")
    ALONE.run("preprocess", *made, cwd=folder)
    ALONE.run("train", "--recipe", "text", "--shards", "shards", "--run", "network", "--epochs", "1", cwd=folder)


def measure(part: Part, options: Options, where: Place, num_workers: int, folder: Path) -> float:
    """Images a second."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        if part == "inference":
            night = ("--images", "images", "--run", "network", "--out", out, "--num-workers", str(num_workers))
            said = where.run("infer", *night, cwd=folder)
            found = re.search(r"^recognize: ([\d,]+) objects in ([\d.]+) s", said, re.MULTILINE)
            assert found, said
            return int(found.group(1).replace(",", "")) / float(found.group(2))
        flags = ("--recipe", TRAININGS[part], "--shards", "shards", "--run", out, "--num-workers", str(num_workers))
        where.run("train", *flags, "--epochs", str(options.epochs), "--batch-size", str(options.batch_size), cwd=folder)
        lines = (Path(out) / "metrics.jsonl").read_text().splitlines()[2:]
        return float(statistics.median(json.loads(line)["images_per_second"] for line in lines))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    sizes = {name: size for name, size in dataclasses.asdict(options).items() if isinstance(size, int)}
    for line in provenance(**sizes):
        print(line, flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(options, folder)
        for where in options.where:
            rates: dict[Part, list[list[float]]] = {part: [] for part in options.parts}
            for _ in range(options.rounds):
                for measured in rates.values():
                    measured.append([])
                for num_workers in (1, 2):
                    with place(where, num_workers, folder) as at:
                        for part, measured in rates.items():
                            measured[-1].append(measure(part, options, at, num_workers, folder))
            for part, measured in rates.items():
                one, two = map(statistics.median, zip(*measured, strict=True))
                ratios = [two / one for one, two in measured]
                print(
                    f"on {where}: {part}: {one:,.0f} and {two:,.0f} images/s, {statistics.median(ratios):.2f} times "
                    f"({', '.join(f'{ratio:.2f}' for ratio in ratios)})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
