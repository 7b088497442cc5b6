"""What a recipe is worth: cross-validation, and how its accuracy grows with the number of images.

Both train it anew on parts of the images, as many networks at once as the cluster holds; an interrupted study goes on
where it was. A training without a validation part ends with its last epoch's network.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data

from captcha_ray import console, datasets, evaluation, learning_curve, room, schema, storage, training
from captcha_ray.config import EvaluateConfig, TrainConfig, check
from captcha_ray.evaluation import Evaluation
from captcha_ray.learning_curve import Point
from captcha_ray.lease import Lease
from captcha_ray.rules import settle
from captcha_ray.runs import RunDirectory
from captcha_ray.trainings import Training, right_in, train_all

DISPUTED = 0.99
"""Confidence in another text from which on a label counts as disputed."""

Mask = npt.NDArray[np.bool_]


def study(config: EvaluateConfig, run: RunDirectory) -> None:
    """Cross-validates the run's recipe or measures its learning curve, says what was found, and adds it to the run.

    Raises InputError where there is no run to take a recipe from, the shards are too few for it, or another study of
    the run is at work.
    """
    check(storage.exists(run.path("config.json")), f"{run.uri} holds no run, whose recipe could be trained anew")
    asked = TrainConfig.from_dict(run.read_json("config.json"))
    if asked.unlabelled:
        console.warn(f"what a study trains learns from labeled images alone, without those of {asked.unlabelled}")
    recipe = _alone(asked, config.use_gpu)
    shards = datasets.open_shards(config.shards or run.shards)
    manifest = shards.manifest
    with Lease(run.path("_lease.json")) as lease:
        if config.folds:
            found = cross_validate(run, recipe, manifest, shards.read(), config.folds)
            lease.check()
            results = evaluation.publish(run, {"cross_validation": found})
            console.say(evaluation.describe_one(f"all {config.folds} folds", found.summary()))
            disputed = f"{found.facts['num_disputed']:,} of {found.counts.num_images:,}"
            console.say(f"labels disputed with a confidence of at least {DISPUTED:.0%}: {disputed}")
            console.say(f"all readings: {found.source}")
        else:
            test: schema.Split = "test" if manifest.num_images["test"] else "val"
            curve = measure_curve(run, recipe, manifest, shards.read("train"), shards.read(test))
            lease.check()
            results = evaluation.publish(run, {}, learning_curve=curve)
            console.say(results["learning_curve"]["answer"])
    console.say(f"report: {run.path('report.html')}")
    evaluation.warn(results)


def _alone(recipe: TrainConfig, use_gpu: bool) -> TrainConfig:
    """The recipe with one worker, which takes the batch of all: a study trains several networks at once, not one, and
    on labeled images alone."""
    together = recipe.batch_size * recipe.workers[1]
    return dataclasses.replace(recipe, num_workers=1, batch_size=together, use_gpu=use_gpu, resume=False, unlabelled="")


def cross_validate(
    run: RunDirectory, config: TrainConfig, manifest: schema.Manifest, images: ray.data.Dataset, num_folds: int
) -> Evaluation:
    """Trains as many networks as there are folds, each on the others' images, and has each read its own fold.

    config: of the run, as it was asked for, with one worker. images: all splits. Of the images a network is trained on,
    as large a share is for validation as in the run's shards. Writes `folds.parquet`: what was read of every image.
    Returns all folds together; facts: `folds`, a summary of each, and `num_disputed`, the labels in whose place another
    text was read with a confidence of at least `DISPUTED`. Raises InputError where a fold would be empty.
    """
    parts = _Parts(images)
    fold = parts.map(lambda sha: schema.fold_of(sha, manifest.split_seed, num_folds))
    train_share, val_share, _ = manifest.splits
    place = parts.map(lambda sha: schema.place(sha, manifest.split_seed, b"validation"))
    validates = place * (train_share + val_share) < val_share
    smallest = np.bincount(fold, minlength=num_folds).min()
    check(smallest > 0, f"{len(fold)} images in {num_folds} folds leave a fold of {smallest}; ask for fewer --folds")
    todo = []
    for k in range(num_folds):
        masks = {"train": (fold != k) & ~validates, "val": (fold != k) & validates, "test": fold == k}
        directory = storage.join(run.uri, f"folds-{num_folds}", f"fold-{k}")
        todo.append((*_restrict(config, manifest, masks, directory), masks))
    trainings = (Training(one, part, parts.select(masks)) for one, part, masks in todo)
    tally = evaluation.Tally(training.model_spec(settle(config, manifest), manifest))
    summaries: dict[str, dict[str, Any]] = {}
    readings: dict[str, pa.Table] = {}
    with _shown([one for one, _, _ in todo]) as watch:
        for one, rows in train_all(trainings, *_resources(config), calibrated=True, watch=watch):
            alone = evaluation.Tally(tally.spec)
            alone.add(rows)
            tally.add(rows)
            summaries[one.name] = alone.evaluation(one.name).summary()
            columns = rows.drop_columns(["wrong_image"])
            readings[one.name] = columns.append_column("fold", pa.repeat(one.name, len(rows)))
            console.say(evaluation.describe_one(one.name, summaries[one.name]))
    every = pa.concat_tables([readings[name] for name in sorted(readings)])
    run.write_table("folds.parquet", every)
    keys = ("num_images", "num_exact_match", "exact_match", "exact_match_ci95", "char_accuracy")
    sure = np.asarray(every["confidence"]) >= DISPUTED
    facts = {
        "folds": [{"fold": name} | {key: summaries[name][key] for key in keys} for name in sorted(summaries)],
        "num_disputed": int((sure & ~np.array(right_in(every))).sum()),
    }
    return dataclasses.replace(tally.evaluation(run.path("folds.parquet")), facts=facts)


def measure_curve(
    run: RunDirectory,
    config: TrainConfig,
    manifest: schema.Manifest,
    train: ray.data.Dataset,
    test: ray.data.Dataset,
    fractions: Sequence[float] = learning_curve.FRACTIONS,
) -> dict[str, Any]:
    """Trains networks on parts of the training split, each part within the next, and has all read the same images.

    config: as for `cross_validate`. Returns what `learning_curve.summary` says. Parts in which characters would stand
    less than once on average, or of fewer than 4 images, are left out. Raises InputError where no part is left.
    """
    parts, read = _Parts(train), test.materialize().to_arrow_refs()
    rank = parts.map(lambda sha: schema.place(sha, manifest.split_seed, b"curve")).argsort().argsort()
    sizes = {math.ceil(fraction * len(rank)) for fraction in fractions}
    wanted = [size for size in sorted(sizes) if size >= max(len(manifest.charset) / manifest.max_length, 4)]
    check(bool(wanted), f"{len(rank)} training images are too few for a learning curve")
    todo = []
    for size in reversed(wanted):  # the longest first
        masks = {"train": rank < size}
        directory = storage.join(run.uri, "curve", f"images-{size}")
        todo.append((*_restrict(config, manifest, masks, directory), masks))
    trainings = (Training(one, part, {**parts.select(masks), "val": [], "test": read}) for one, part, masks in todo)
    points = []
    with _shown([one for one, _, _ in todo]) as watch:
        for one, rows in train_all(trainings, *_resources(config), watch=watch):
            points.append(Point(one.manifest.num_images["train"], sum(right_in(rows)), len(rows)))
            console.say(f"{points[-1].num_images:,} images: {points[-1].accuracy:.2%} of {len(rows):,} strings")
    return learning_curve.summary(sorted(points, key=lambda point: point.num_images))


class _Parts:
    """Rows of shards that stay in the object store, and are told apart by their pixels' hashes."""

    def __init__(self, rows: ray.data.Dataset) -> None:
        self._blocks: list[Any] = rows.materialize().to_arrow_refs()
        self._hashes: list[list[bytes]] = ray.get([_hashes.remote(block) for block in self._blocks])

    def map(self, function: Callable[[bytes], float]) -> npt.NDArray[Any]:
        """A number for each row, from its hash."""
        return np.array([function(sha) for block in self._hashes for sha in block])

    def select(self, masks: dict[str, Mask]) -> dict[str, list[Any]]:
        """References of the rows of each mask, bool (N,)."""
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


def _restrict(
    config: TrainConfig, manifest: schema.Manifest, masks: dict[str, Mask], directory: str
) -> tuple[TrainConfig, schema.Manifest]:
    """Config and manifest of a training on parts of the images: what the config leaves open follows from these."""
    counts = {name: int(masks[name].sum()) if name in masks else 0 for name in manifest.num_images}
    part = dataclasses.replace(manifest, num_images=counts)
    patience = config.patience if counts["val"] else 0
    settled = settle(dataclasses.replace(config, run=directory, patience=patience), part)
    training.check_batches(settled, part)
    return settled, part


def _resources(config: TrainConfig) -> tuple[int, float]:
    """How many such trainings the cluster can do at once, and the GPUs of each. Raises InputError where none fits."""
    gpus = 1.0 if config.use_gpu else 0.0
    room.await_room(1, config.cpus_per_worker, gpus, shards=config.shards, run=config.run)
    return room.num_fitting(config.cpus_per_worker, gpus), gpus


@contextlib.contextmanager
def _shown(configs: Sequence[TrainConfig]) -> Iterator[Callable[[Training, int], None]]:
    """A bar over the epochs of all trainings; gives what tells it of them."""
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
