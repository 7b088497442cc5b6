"""Memory and speed of a training that streams its images, against one that holds them, in one run.

Shards of random gray images of 18x60 pixels are written at once, without a corpus. `jobs/train.py` then trains the
default network on them for an epoch, as a whole process with one worker: few images held in memory, the same ones
streamed, and many streamed. Peak memory is the process's own, which trains; Ray's processes are not in it.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import tyro

from captcha_ray.datasets import decoding, preprocess, schema
from captcha_ray.datasets.config import LabelRule
from captcha_ray.datasets.splits import SPLITS
from captcha_ray.images.spec import ImageSpec
from captcha_ray.runs.directory import to_json
from captcha_ray.runs.environment import provenance, versions

JOBS = Path(__file__).parent.parent / "jobs"
IMAGE = ImageSpec(height=60, width=18, channels=1)
CHARSET = "0123456789"
NUM_MEASURED = 5_000
"""Images of the validation split, and of the test split."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Say what to measure."""

    few: int = 400_000
    """Training images that are held in memory, and streamed."""
    many: int = 4_000_000
    """Training images that are streamed alone."""
    scratch: str = ""
    """Folder for shards and runs, 1.1 kB an image; a temporary one if empty."""


def write_shards(folder: Path, num_images: int) -> None:
    """Write finished shards with so many training images."""
    sizes: dict[str, int] = dict(zip(SPLITS, (num_images, NUM_MEASURED, NUM_MEASURED), strict=True))
    rows = decoding.block_rows(sum(sizes.values()), IMAGE)
    rng = np.random.default_rng(0)
    parts: dict[str, list[str]] = {}
    for split, size in sizes.items():
        parts[split] = [preprocess.part_name(split, number) for number in range(-(-size // rows))]
        for number, part in enumerate(parts[split]):
            count = min(rows, size - number * rows)
            texts = rng.choice(list(CHARSET), count)
            table = pa.table(
                [
                    schema.pack_images(rng.integers(0, 256, (count, *IMAGE.shape), np.uint8)),
                    pa.array(texts),
                    pa.array([f"{part}-{row}" for row in range(count)]),
                    pa.array([rng.bytes(32) for _ in range(count)], pa.binary(32)),
                ],
                schema=schema.shard_schema(IMAGE),
            )
            preprocess.write_part(str(folder / part), table, IMAGE)
    manifest = schema.Manifest(
        source="random",
        label_rule=LabelRule("folder").to_dict(),
        image=IMAGE.to_dict(),
        charset=CHARSET,
        min_length=1,
        max_length=1,
        splits=(0.98, 0.01, 0.01),
        split_seed=0,
        num_images=sizes,
        num_characters={split: dict.fromkeys(CHARSET, size // len(CHARSET)) for split, size in sizes.items()},
        num_quarantined={},
        num_hidden=0,
        parts=parts,
        seconds=0.0,
        config={},
        versions=versions(),
    )
    (folder / "manifest.json").write_bytes(to_json(manifest.to_dict()))
    (folder / "_SUCCESS").touch()


def train(folder: Path, shards: str, stream: str) -> tuple[dict[str, float], float]:
    """Return the epoch's line of metrics.jsonl, and the peak memory of the process in GB."""
    run = folder / f"{shards}-{stream}"
    command = [sys.executable, str(JOBS / "train.py"), "--shards", str(folder / shards), "--run", str(run),
               "--epochs", "1", "--stream", stream]  # fmt: skip
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(job.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed")
    (epoch,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return epoch, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    for line in provenance(few=options.few, many=options.many, bytes_an_image=IMAGE.height * IMAGE.width):
        print(line, flush=True)
    with tempfile.TemporaryDirectory(dir=options.scratch or None) as name:
        folder = Path(name)
        sizes = {"few": options.few, "many": options.many}
        for shards, size in sizes.items():
            write_shards(folder / shards, size)
        for shards, stream in (("few", "never"), ("few", "always"), ("many", "always")):
            epoch, memory = train(folder, shards, stream)
            print(
                f"{sizes[shards]:>11,} images, --stream {stream:6}: {epoch['images_per_second']:8,.0f} images/s, "
                f"{epoch['data_wait_fraction']:.1%} of the time waiting for images, peak memory {memory:.2f} GB",
                flush=True,
            )


if __name__ == "__main__":
    main()
