"""Strings read and seconds taken, from all and from few labels: our recipe and Keras' CRNN + CTC, on the same images.

For each number of labels a seeded choice of the corpus is trained on and all the rest is read; neither sees any of it
before. Ours is the recipe as it stands, with its last epoch's network. The peer (`keras_crnn.py`, in an environment of
its own) trains as many steps as 100 epochs, its published number, over four fifths of 856 images; both evaluate as they
go, which costs neither any of the seconds stated: those are of epochs alone.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import tyro

from captcha_ray.datasets import preprocess, schema
from captcha_ray.datasets.config import Labels, PreprocessConfig
from captcha_ray.datasets.shards import open_shards
from captcha_ray.experiments import parallel_runs
from captcha_ray.metrics.counts import wilson_interval
from captcha_ray.recipes.auto_config import resolve
from captcha_ray.recipes.catalog import get
from captcha_ray.runs.environment import provenance
from captcha_ray.runtime import ray_session

PEER = Path(__file__).with_name("keras_crnn.py")
PEER_STEPS = 4300
"""100 epochs of 685 images in batches of 16."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Say what to compare."""

    corpus: str
    """Folder of labeled images."""
    labels: Labels = "filename"
    """Says where the labels stand, as in jobs/preprocess.py."""
    num_labels: tuple[int, ...] = (0, 200, 100, 50)
    """Labeled images to train on; 0 for four fifths of the corpus."""
    seeds: tuple[int, ...] = (0,)
    """Of the choice of images and of the trainings."""
    recipe: str = "text"
    """Ours."""
    keras_python: str = ""
    """Python with TensorFlow and Keras 3; without one, only ours is trained."""
    num_threads: int = 2
    """Cores for each."""
    goal: float = 0.99
    """Share of whole strings whose time is told."""


def main() -> None:
    options = tyro.cli(Options)
    for line in provenance(threads=options.num_threads):
        print(line, flush=True)
    with tempfile.TemporaryDirectory() as temporary, ray_session.connect():
        folder = Path(temporary)
        out = str(folder / "shards")
        preprocess.preprocess(
            PreprocessConfig(corpus=options.corpus, labels=options.labels, splits=(1.0, 0.0, 0.0), out=out)
        )
        shards = open_shards(out)
        table = pa.concat_tables(shards.read().iter_batches(batch_size=None, batch_format="pyarrow")).combine_chunks()
        for num_labels in options.num_labels:
            for seed in options.seeds:
                chosen = np.random.default_rng(seed).permutation(len(table))
                number = num_labels or len(table) * 4 // 5
                train, test = table.take(chosen[:number]), table.take(chosen[number:])
                name = f"{number} labels, seed {seed}"
                found = ours(options, shards.manifest, train, test, seed, folder)
                report(f"{name}, {options.recipe}", len(test), found, options.goal)
                if options.keras_python:
                    found = theirs(options, shards.manifest, train, test, seed, folder)
                    report(f"{name}, CRNN + CTC", len(test), found, options.goal)


def ours(
    options: Options, manifest: schema.Manifest, train: pa.Table, test: pa.Table, seed: int, folder: Path
) -> list[tuple[float, float]]:
    """(seconds of training so far, share of strings) after each epoch."""
    part = dataclasses.replace(manifest, num_images={"train": len(train), "val": len(test), "test": 0})
    requested = dataclasses.replace(
        get(options.recipe),
        seed=seed,
        run=str(folder / f"run-{len(train)}-{seed}"),
        cpus_per_worker=options.num_threads,
    )
    blocks = {"train": [ray.put(train)], "val": [ray.put(test)], "test": []}
    epochs = list(parallel_runs.Training(resolve(requested, part), part, blocks).epochs())
    seconds = np.cumsum([len(train) / epoch["images_per_second"] for epoch in epochs])
    return [(float(s), epoch["val_exact_match"]) for s, epoch in zip(seconds, epochs, strict=True)]


def theirs(
    options: Options, manifest: schema.Manifest, train: pa.Table, test: pa.Table, seed: int, folder: Path
) -> list[tuple[float, float]]:
    """The same, every few epochs."""
    arrays: dict[str, Any] = {}
    for name, part in (("train", train), ("test", test)):
        arrays[f"{name}_images"] = schema.unpack_images(part["image"], manifest.image_spec)[..., 0]
        arrays[f"{name}_texts"] = np.array(part["text"].to_pylist())
    np.savez(folder / "images.npz", **arrays)
    steps = -(-len(train) // 16)
    command = [options.keras_python, str(PEER), "--data", str(folder / "images.npz"), "--seed", str(seed)]
    command += ["--epochs", str(-(-PEER_STEPS // steps)), "--every", str(max(43 // steps, 1))]
    command += ["--threads", str(options.num_threads)]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    *lines, last = map(json.loads, said.splitlines())
    print(f"peer: {last}", file=sys.stderr, flush=True)
    return [(line["train_seconds"], line["exact_match"]) for line in lines]


def report(name: str, num_read: int, curve: list[tuple[float, float]], goal: float) -> None:
    seconds, share = curve[-1]
    low, high = wilson_interval(round(share * num_read), num_read) or (0.0, 1.0)
    reached = next((f"{s:.1f} s" for s, accuracy in curve if accuracy >= goal), "never")
    print(
        f"{name}: {share:.2%} of {num_read} strings (95 % interval {low:.2%} to {high:.2%}) after {seconds:.0f} s; "
        f"{goal:.0%} first after {reached}",
        flush=True,
    )


if __name__ == "__main__":
    main()
