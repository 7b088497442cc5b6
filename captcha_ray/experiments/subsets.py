"""Select parts of shards in the object store, for trainings on some of the images."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data

from captcha_ray import console
from captcha_ray.datasets import schema
from captcha_ray.experiments.parallel_runs import Training
from captcha_ray.recipes.auto_config import resolve
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runtime import capacity
from captcha_ray.training.trainer import check_batches

Mask = npt.NDArray[np.bool_]


def with_one_worker(recipe: TrainConfig, use_gpu: bool) -> TrainConfig:
    """Return the recipe for one worker, which takes the batch of all, and for labeled images alone."""
    together = recipe.batch_size * recipe.workers[1]
    return dataclasses.replace(recipe, num_workers=1, batch_size=together, use_gpu=use_gpu, resume=False, unlabeled="")


class Parts:
    """Rows of shards that stay in the object store and are told apart by their pixels' hashes."""

    def __init__(self, rows: ray.data.Dataset) -> None:
        self._blocks: list[Any] = rows.materialize().to_arrow_refs()
        self._hashes: list[list[bytes]] = ray.get([_hashes.remote(block) for block in self._blocks])

    def map(self, function: Callable[[bytes], float]) -> npt.NDArray[Any]:
        """Return a number for each row, from its hash."""
        return np.array([function(sha) for block in self._hashes for sha in block])

    def select(self, masks: dict[str, Mask]) -> dict[str, list[Any]]:
        """Return references of the rows of each mask, bool (N,)."""
        edges = np.cumsum([len(block) for block in self._hashes])[:-1]
        return {
            name: [
                _filter.remote(block, one)
                for block, one in zip(self._blocks, np.split(mask, edges), strict=True)
                if one.any()
            ]
            for name, mask in masks.items()
        }


@ray.remote(num_cpus=0)  # a training that waits for rows holds the CPU they would need
def _hashes(block: pa.Table) -> list[bytes]:
    found: list[bytes] = block["sha256"].to_pylist()
    return found


@ray.remote(num_cpus=0)
def _filter(block: pa.Table, mask: Mask) -> pa.Table:
    return block.filter(pa.array(mask)).combine_chunks()


def restrict(
    config: TrainConfig, manifest: schema.Manifest, masks: dict[str, Mask], directory: str
) -> tuple[TrainConfig, schema.Manifest]:
    """Return config and manifest of a training on parts of the images.

    What the config leaves open follows from these parts.
    """
    counts = {name: int(masks[name].sum()) if name in masks else 0 for name in manifest.num_images}
    part = dataclasses.replace(manifest, num_images=counts)
    patience = config.patience if counts["val"] else 0
    resolved = resolve(dataclasses.replace(config, run=directory, patience=patience), part)
    check_batches(resolved, part)
    return resolved, part


def concurrency(config: TrainConfig) -> tuple[int, float]:
    """Return how many such trainings the cluster holds at once, and the GPUs of each.

    Raises InputError if none fits.
    """
    gpus = 1.0 if config.use_gpu else 0.0
    capacity.wait_for_capacity(1, config.cpus_per_worker, gpus, shards=config.shards, run=config.run)
    return capacity.num_fitting(config.cpus_per_worker, gpus), gpus


@contextlib.contextmanager
def progress_of(configs: Sequence[TrainConfig]) -> Iterator[Callable[[Training, int], None]]:
    """Show a bar over the epochs of all trainings; yield the function that updates it."""
    done: dict[str, int] = {}
    going: dict[str, str] = {}
    with console.progress(f"{len(configs)} trainings", sum(one.epochs for one in configs), "epochs") as advance:

        def watch(one: Training, epochs: int) -> None:
            before = done.get(one.name, 0)
            done[one.name] = max(before, epochs)
            going[one.name] = f"{one.name} {epochs}/{one.config.epochs}"
            if epochs == one.config.epochs:
                del going[one.name]
            advance(done[one.name] - before, ", ".join(going.values()))

        yield watch
