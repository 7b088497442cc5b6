"""Time a night over a table that is old already: seconds by phase, memory of the driver, bytes that it reads.

The table is made by committing runs of made-up rows, one day's objects after the other's. The night lists all of them
and some new ones (a Parquet table of URIs, as a bucket's inventory is), or the new ones alone, as a dated night does.
Reading is stubbed: workers stage a made-up row for each object and fetch nothing. So what is measured is what the
driver does: list, plan, hand out, commit. With `--store s3` the table lies behind rclone's S3 server on loopback; all
that the loopback interface receives is counted, requests and Ray's own traffic too.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import duckdb
import torch
import tyro

from captcha_ray.images.spec import ImageSpec
from captcha_ray.inference.block import BlockTask, Finished
from captcha_ray.inference.block_plan import BlockPlan
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.job import open_table
from captcha_ray.models import checkpoint, fingerprint
from captcha_ray.models.networks import build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.predictions.table import STAGED_SCHEMA
from captcha_ray.runs.environment import provenance
from captcha_ray.storage import parquet
from tests.support.s3_server import serve_s3

ROWS_PER_RUN = 2_000_000
PER_DAY = 1_000_000

LISTED = f"""'s3://bucket/' || strftime(DATE '2024-01-01' + CAST(i // {PER_DAY} AS INTEGER), '%Y/%m/%d/')
    || printf('%010d.png', i) AS uri, md5(CAST(i AS VARCHAR)) AS etag, 5000 + i % 10000 AS size,
    TIMESTAMPTZ '2024-01-01 00:00:00+00' AS last_modified"""
"""SQL for the object number i as listed."""

PREDICTED = """substr(etag, 1, 5) AS text, 0.9 AS confidence, [0.9, 0.9, 0.9, 0.9, 0.9] AS char_confidence,
    'ok' AS status, NULL AS error, $model AS model_id, now() AS predicted_at"""
"""SQL for what is recognized of it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Say what to measure."""

    num_done: int = 10_000_000
    """Rows that the table holds before."""
    num_new: int = 100_000
    """Objects that are listed and not done."""
    listing: Literal["all", "new"] = "all"
    """Objects that are listed: those that are done too, or the new ones alone."""
    store: Literal["disk", "s3"] = "disk"
    """Names where the table lies."""
    num_workers: int = 2
    """Workers of the night."""
    scratch: str = ""
    """Folder that keeps the table between calls; each night has a copy of hard links. Default: a temporary one."""


class StubReader:
    """Stages a made-up row for each object of a block; reads no image."""

    def __init__(self, task: BlockTask, report: dict[str, Any]) -> None:
        self._task, self._report = task, report
        self._plan = BlockPlan(task)

    def read(self, block: int) -> tuple[int, int]:
        """Stage a block; return its rows and errors."""
        listed = self._plan.read(block)
        with duckdb.connect() as database:
            database.register("listed", listed)
            query, parameters = f"SELECT *, {PREDICTED} FROM listed", {"model": self._task.model_id}
            rows = database.sql(query, params=parameters).to_arrow_table()
        parquet.write(self._task.staged(block), rows.cast(STAGED_SCHEMA))
        self._report["fetched"] += len(rows)
        return len(rows), 0

    def read_all(self, blocks: Iterable[int]) -> Iterator[Finished]:
        """Stage blocks, and yield each."""
        for block in blocks:
            yield block, *self.read(block)


def make_run(folder: Path) -> str:
    """Save a network that nobody has taught, and return its run."""
    spec = ModelSpec(network="multi_head_cnn", image=ImageSpec(height=50, width=200), charset="ab", max_length=5)
    torch.manual_seed(0)
    checkpoint.save_model(str(folder / "run" / "checkpoint"), build_model(spec), spec)
    return str(folder / "run")


def fill(config: InferConfig, num_rows: int) -> None:
    """Commit runs of made-up rows, as a job does."""
    _, model_id = fingerprint.load_spec_and_fingerprint(config.run)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as spool, duckdb.connect() as database:
        table = open_table(config, model_id, Path(spool))
        table.open()
        for start in range(0, num_rows, ROWS_PER_RUN):
            numbers = f"range({start}, {min(start + ROWS_PER_RUN, num_rows)}) AS numbers(i)"
            query = f"SELECT *, {PREDICTED} FROM (SELECT {LISTED} FROM {numbers})"
            rows = database.sql(query, params={"model": model_id}).to_arrow_table()
            block = f"{table.attempt}/block-{start}.staged"
            parquet.write(block, rows.cast(STAGED_SCHEMA))
            table.commit([block], lambda counts: {"counts": counts.to_dict()})
        table.close()
    seconds = time.perf_counter() - started
    print(
        f"{num_rows:,} rows were made and committed in {seconds:.1f} s, {num_rows / seconds:,.0f} a second", flush=True
    )


def write_listing(path: Path, first: int, end: int) -> None:
    """Write a listing of the objects of these numbers."""
    with duckdb.connect() as database:
        columns = f"{LISTED} FROM range({first}, {end}) AS numbers(i)"
        database.execute(f"COPY (SELECT {columns}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")


NIGHT = """
import json, sys, time
from pathlib import Path
started = time.monotonic()
from captcha_ray.inference.block_plan import BlockPlan
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.job import transcribe
config = InferConfig.from_dict(json.loads(sys.argv[1]))
print(transcribe(config, started, "benchmarks.night_scale.StubReader").describe())
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(f"peak memory of the driver: {int(peak.split()[1]) / 1024:,.0f} MB")
"""


def received() -> int:
    """Return the bytes that the loopback interface has received."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[1])


def run_night(config: InferConfig) -> None:
    """Run a night in a process of its own, and print what it did, its memory and its phases."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    before, started = received(), time.perf_counter()
    subprocess.run([sys.executable, "-c", NIGHT, json.dumps(config.to_dict())], check=True, env=env)
    seconds = time.perf_counter() - started
    print(f"night: {seconds:.1f} s", end="")
    print(f"; {(received() - before) / 1e6:,.1f} MB over loopback" if config.out.startswith("s3://") else "")


def print_phases(folder: Path) -> None:
    """Print the seconds that the last run's manifest states."""
    manifest = json.loads(max(folder.rglob("_manifest.json")).read_text())
    print("seconds:", {name: round(value, 1) for name, value in manifest["seconds"].items()}, flush=True)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    sizes = {name: value for name, value in dataclasses.asdict(options).items() if isinstance(value, int)}
    for line in provenance(**sizes):
        print(line, flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.scratch or temporary).absolute()
        listed, kept, table = folder / "listed.parquet", folder / "kept", folder / "tables" / "old"
        table.parent.mkdir(parents=True, exist_ok=True)
        on_disk = InferConfig(run=make_run(folder), images=str(listed), out=str(kept), num_workers=options.num_workers)
        kept.mkdir(exist_ok=True)
        if not any(kept.iterdir()):
            fill(on_disk, options.num_done)
        shutil.rmtree(table, ignore_errors=True)
        shutil.copytree(kept, table, copy_function=os.link)
        files = [path for path in table.rglob("*") if path.is_file()]
        for name in ("predictions.parquet", "_keys.index"):
            size = sum(path.stat().st_size for path in files if path.name == name)
            print(f"{name}: {size / 1e6:,.0f} MB, {size / max(options.num_done, 1):.1f} bytes a row")
        write_listing(listed, options.num_done if options.listing == "new" else 0, options.num_done + options.num_new)
        with serve_s3(folder) as environment:
            config = dataclasses.replace(on_disk, out=str(table))
            if options.store == "s3":
                os.environ |= environment
                config = dataclasses.replace(on_disk, out="s3://tables/old")
            run_night(config)
        assert len(list(table.rglob("predictions.parquet"))) > len(list(kept.rglob("predictions.parquet")))
        print_phases(table)


if __name__ == "__main__":
    main()
