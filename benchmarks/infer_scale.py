"""Bulk inference over ten million objects: memory of the driver, rows a second, and the plan against as many done rows.

The listing is generated (a Parquet table of URIs, as a bucket's inventory is) and reading is stubbed: workers stage a
made-up row for each object and fetch nothing. So what is measured is what the driver does: list, plan, hand out,
commit. A second night over the same listing, with a hundredth of the objects changed or new, measures the plan.
"""

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro

from captcha_ray.images.spec import ImageSpec
from captcha_ray.inference.block import BlockTask
from captcha_ray.inference.config import InferConfig
from captcha_ray.models import checkpoint
from captcha_ray.models.networks import build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.predictions import schema
from captcha_ray.predictions.table import STAGED_SCHEMA
from captcha_ray.runs.environment import provenance
from captcha_ray.storage import filesystem, parquet

GROUP_ROWS = 500_000
CHARACTERS = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789"))


@dataclasses.dataclass(frozen=True)
class Options:
    """Say what to measure."""

    num_objects: int = 10_000_000
    """Objects of the listing."""


class StubReader:
    """Stages a made-up row for each object of a block; reads no image."""

    def __init__(self, task: BlockTask, report: dict[str, Any]) -> None:
        self._task = task
        self._report = report

    def read(self, block: int) -> tuple[int, int]:
        """(rows, errors) of a block."""
        listed = parquet.read(self._task.block_uri(block))
        generator = np.random.default_rng(block)
        n = len(listed)
        certain = generator.random((n, 5), np.float32)
        now = pa.scalar(datetime.datetime.now(datetime.UTC), schema.TIMESTAMP)
        columns = {
            **{name: listed[name] for name in listed.column_names},
            "text": pa.array(["".join(row) for row in generator.choice(CHARACTERS, (n, 5))]),
            "confidence": certain.min(1),
            "char_confidence": pa.ListArray.from_arrays(np.arange(0, 5 * n + 1, 5, dtype=np.int32), certain.ravel()),
            "status": pa.repeat("ok", n),
            "error": pa.nulls(n, pa.string()),
            "model_id": pa.repeat(self._task.model_id, n),
            "predicted_at": pa.repeat(now, n),
        }
        rows = pa.table({name: columns[name] for name in STAGED_SCHEMA.names})
        parquet.write(self._task.staged(block), rows.cast(STAGED_SCHEMA))
        self._report["fetched"] += n
        return n, 0


def write_inventory(path: Path, num_objects: int, changed: int) -> None:
    """URIs with hashes for etags; the first `changed` of them other than in a listing with none changed."""
    with pq.ParquetWriter(path, schema.LISTING_SCHEMA, compression="zstd") as writer:
        for start in range(0, num_objects, GROUP_ROWS):
            numbers = np.arange(start, min(start + GROUP_ROWS, num_objects))
            generator = np.random.default_rng(start)
            halves = generator.integers(0, 2**63, (len(numbers), 2)) + (numbers < changed)[:, None]
            uris = [f"s3://bucket/{n % 365:03d}/{(n * 2654435761) % 2**32:08x}-{n:08d}.png" for n in numbers]
            columns = [
                pa.array(uris),
                pa.array([f"{a:016x}{b:016x}" for a, b in halves]),
                pa.array(generator.integers(5000, 15000, len(numbers))),
                pa.repeat(pa.scalar(datetime.datetime.now(datetime.UTC), schema.TIMESTAMP), len(numbers)),
            ]
            writer.write_table(pa.table(columns, schema=schema.LISTING_SCHEMA))


NIGHT = """
import json, sys, time
from pathlib import Path
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.job import transcribe
started, config = time.monotonic(), InferConfig.from_dict(json.loads(sys.argv[1]))
print(transcribe(config, started, "benchmarks.infer_scale.StubReader").describe())
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(f"peak memory of the driver: {int(peak.split()[1]) / 1024:,.0f} MB")
"""


def run_night(images: Path, run: Path, out: Path) -> float:
    """Seconds of a night in a process of its own, which prints what it did and its peak memory."""
    config = InferConfig(images=str(images), run=str(run), out=str(out))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", NIGHT, json.dumps(config.to_dict())], check=True, env=env)
    return time.perf_counter() - started


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    for line in provenance(n=options.num_objects):
        print(line, flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = ModelSpec(network="multi_head_cnn", image=ImageSpec(height=50, width=200), charset="ab", max_length=5)
        torch.manual_seed(0)
        checkpoint.save_model(str(folder / "run" / "checkpoint"), build_model(spec), spec)
        for night, changed in (("first", 0), ("second", options.num_objects // 100)):
            write_inventory(folder / f"{night}.parquet", options.num_objects, changed)
            seconds = run_night(folder / f"{night}.parquet", folder / "run", folder / "out")
            print(f"{night} night: {seconds:.1f} s, {options.num_objects / seconds:,.0f} listed objects/s", flush=True)
        files = [uri for uri in filesystem.list_files(str(folder / "out")) if uri.endswith(".parquet")]
        sizes = [os.path.getsize(uri) for uri in files]
        rows = sum(pq.read_metadata(uri).num_rows for uri in files)
        print(f"{len(files)} files of {max(sizes) / 1e6:,.0f} MB at most, {sum(sizes) / rows:.1f} bytes a row")


if __name__ == "__main__":
    main()
