"""A worker has its own rows, in order, however they lie in the object store, and keeps the right epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from captcha_ray.datasets import schema
from captcha_ray.datasets.shards import Shards
from captcha_ray.runtime import ray_session
from captcha_ray.text.charset import Charset
from captcha_ray.training import trainer
from captcha_ray.training.progress import EpochDone
from captcha_ray.training.schedule import best_epoch, epochs_without_gain
from captcha_ray.training.trainer import model_spec
from captcha_ray.training.worker import Worker, WorkerJob
from tests.support.trainings import config_for


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("edges", [(), (30, 31, 77)])
def test_a_worker_has_its_rows_in_order_however_they_are_cut_into_tables(
    edges: tuple[int, ...],
    rank: int,
    world_size: int,
    glyph_shards: Shards,
    ray_cluster: ray_session.Cluster,
    tmp_path: Path,
) -> None:
    config = config_for(glyph_shards, tmp_path / "run")
    spec = model_spec(config, glyph_shards.manifest)
    rows = pa.concat_tables(glyph_shards.read("train").iter_batches(batch_size=None, batch_format="pyarrow"))
    starts = (0, *edges)
    tables = [ray.put(rows[start:stop]) for start, stop in zip(starts, (*edges, len(rows)), strict=True)]
    worker = Worker.__new__(Worker)  # the rows alone, without the other workers of a training
    worker._job = WorkerJob(config, spec, {"train": tables}, lambda message: None)
    worker._rank, worker._world_size = rank, world_size
    batches = list(worker._feed("train", 16).epoch(None))
    mine = rows.take(np.arange(rank, len(rows), world_size))
    images = np.concatenate([batch.images.numpy() for batch in batches])
    np.testing.assert_array_equal(images, schema.unpack_images(mine["image"], spec.image))
    targets = np.concatenate([batch.targets.numpy() for batch in batches])
    np.testing.assert_array_equal(targets, Charset(spec.charset).encode(mine["text"].to_pylist(), spec.max_length))


def test_the_best_epoch_has_most_strings_right_then_most_characters_then_comes_last() -> None:
    def epoch(number: int, strings: float | None = None, characters: float | None = None) -> dict[str, Any]:
        losses = {"train_loss": 1.0, "val_loss": 2.0}
        return {"epoch": number, "val_exact_match": strings, "val_char_accuracy": characters, **losses}

    best, ago = best_epoch, epochs_without_gain
    assert best([epoch(1, 0.5, 0.9), epoch(2, 0.6, 0.7), epoch(3, 0.6, 0.8), epoch(4, 0.5, 0.9)]) == 3
    equals = [epoch(1, 0.5, 0.8), epoch(2, 0.5, 0.8), epoch(3, 0.5, 0.8), epoch(4, 0.4, 0.9)]
    assert best(equals) == 3
    assert ago(equals) == 3, "to read as much as before is no gain"
    assert ago([*equals, epoch(5, 0.5, 0.8) | {"val_loss": 1.0}]) == 0, "but to be surer of it is"
    assert best([epoch(1, 0.0, 0.2), epoch(2, 0.0, 0.1)]) == 1
    unvalidated = [{"epoch": number, "train_loss": 1.0} for number in (1, 2)]
    assert best(unvalidated) == 2, "without validation the last"
    assert best([epoch(1, 0.0, 0.0), epoch(2, 0.0, 0.0) | {"val_loss": None}]) == 1, "no network of nan is kept"


def test_a_worker_ends_when_its_events_have_come(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    sent: list[Any] = []
    flushed: list[int] = []
    config = config_for(glyph_shards, tmp_path / "run", epochs=2)
    blocks = {split: glyph_shards.read(split).materialize().to_arrow_refs() for split in ("train", "val")}
    spec = model_spec(config, glyph_shards.manifest)
    job = WorkerJob(config, spec, blocks, sent.append, flush=lambda: flushed.append(len(sent)))
    trainer._run_trainer(job, local=True)
    assert sum(isinstance(event, EpochDone) for event in sent) == 2
    assert flushed == [len(sent)], "once, at the end"
