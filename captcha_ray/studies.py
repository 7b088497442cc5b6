"""Many trainings of one recipe on parts of its images, side by side: each is tested on images it has not seen.

Every training keeps its epochs, and at last what it has read, in a directory of its own, so that an interrupted study
goes on where it was. A training without a validation part ends with its last epoch's network.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import ray.exceptions
import torch

from captcha_ray import cluster, console, evaluation, learning, learning_curve, schema, storage, training
from captcha_ray.config import EvaluateConfig, FailedError, InputError, TrainConfig, check
from captcha_ray.corpus import Shards
from captcha_ray.evaluation import Evaluation
from captcha_ray.learning_curve import Point
from captcha_ray.rules import settle
from captcha_ray.runs import RunDirectory

READINGS = "readings.parquet"
"""In a training's directory: what it has read of its test part."""

MAX_DEATHS = 2
"""How often a training whose process dies goes on in another before the study fails."""

LOOK_S = 1.0
"""Seconds between two looks at how far the trainings are."""

DISPUTED = 0.99
"""Confidence in another text from which on a label counts as disputed."""

HOLDER = 1 << 20
"""Bytes of memory that a training of several workers asks for itself: its workers take the CPUs."""


@dataclasses.dataclass(frozen=True)
class Training:
    """One training. config: settled; `run` names its directory. blocks: references of Arrow tables, for train, val
    (none: the last epoch's network is kept) and test."""

    config: TrainConfig
    manifest: schema.Manifest
    blocks: dict[str, list[Any]]

    @property
    def name(self) -> str:
        """Last part of its directory's name."""
        return self.config.run.rpartition("/")[2]

    def epochs(self, until: int | None = None) -> Generator[dict[str, Any]]:
        """Trains in this process, up to the epoch `until` or the last; lines of its `metrics.jsonl`, those of before an
        interruption first."""
        learning.keep_freed_memory()
        torch.set_num_threads(self.config.cpus_per_worker)
        spec = training.model_spec(self.config, self.manifest)
        job = training.WorkerJob(self.config, spec, self.blocks, lambda message: None, until)
        yield from training.epochs(job, torch.device("cuda" if self.config.use_gpu else "cpu"))


@ray.remote
def train_in_full(one: Training, calibrated: bool) -> pa.Table:
    """Trains to the end and reads the test part; what `evaluation.ReadImages` gives, in the part's order."""
    for _ in one.epochs():
        pass
    if calibrated and one.blocks["val"]:
        evaluation.calibrate(ray.get(one.blocks["val"][0]), one.config.run)
    read = evaluation.ReadImages(one.config.run)
    table: pa.Table = ray.get(one.blocks["test"][0])
    size = evaluation.BATCH_SIZE
    return pa.concat_tables([read(table.slice(start, size)) for start in range(0, len(table), size)])


def train_all(
    todo: Iterable[Training],
    concurrent: int,
    gpus: float = 0.0,
    *,
    calibrated: bool = False,
    watch: Callable[[Training, int], None] = lambda one, epochs: None,
) -> Iterator[tuple[Training, pa.Table]]:
    """Trains them, so many at once; gives each with what it has read, as they end. Those that have ended cost nothing.

    todo: taken from as there is room, so that what a training needs is only then made. calibrated: fit a temperature
    by the validation part. watch: told now and then how many epochs a training has done. Raises FailedError for a
    training that cannot be done, InputError for a directory that holds another one, of other images perhaps.
    """
    waiting: dict[Any, Training] = {}

    def take() -> tuple[Training, pa.Table]:
        while not (done := ray.wait(list(waiting), timeout=LOOK_S)[0]):
            for one in waiting.values():
                watch(one, len(RunDirectory(one.config.run).read_metrics()))
        one = waiting.pop(done[0])
        try:
            table = ray.get(done[0])
        except ray.exceptions.RayError as error:
            cause = str(getattr(error, "cause", error)).strip().partition("\n")[0]
            raise FailedError(f"the training {one.name} failed, the same command repeats it: {cause}") from error
        directory = RunDirectory(one.config.run)
        directory.write_table(READINGS, table)
        storage.delete(directory.path(training.STATE))
        watch(one, one.config.epochs)
        return one, table

    for one in todo:
        directory = RunDirectory(one.config.run)
        told = (one.config.to_dict(), one.manifest.to_dict())
        if storage.exists(directory.path("config.json")):
            directory.reopen(*told, training.RESUME_MAY_DIFFER)
        else:
            directory.create(*told)
        if storage.exists(directory.path(READINGS)):
            watch(one, one.config.epochs)
            yield one, directory.read_table(READINGS)
            continue
        if len(waiting) == concurrent:
            yield take()
        alone = one.config.num_workers == 1
        options = {
            "num_cpus": one.config.cpus_per_worker if alone else 0,
            "num_gpus": gpus if alone else 0,
            "memory": None if alone else HOLDER,
        }
        waiting[train_in_full.options(max_retries=MAX_DEATHS, **options).remote(one, calibrated)] = one
    while waiting:
        yield take()


@contextlib.contextmanager
def _shown(num_trainings: int) -> Iterator[Callable[[Training, int], None]]:
    """A bar over the epochs of all trainings; gives what tells it of them."""
    done: dict[str, int] = {}
    going: dict[str, str] = {}
    with console.progress(f"{num_trainings} trainings", None, "epochs") as advance:

        def watch(one: Training, epochs: int) -> None:
            before = done.get(one.name, 0)
            done[one.name] = max(before, epochs)
            going[one.name] = f"{one.name} {epochs}/{one.config.epochs}"
            if epochs == one.config.epochs:
                del going[one.name]
            advance(done[one.name] - before, ", ".join(going.values()))

        yield watch


def right_in(rows: pa.Table) -> list[bool]:
    """Whether each reading is the whole truth."""
    return [row["reading"] == row["text"] for row in rows.select(["reading", "text"]).to_pylist()]


def num_concurrent(config: TrainConfig) -> int:
    """How many such trainings the cluster can do at once. Raises InputError where not even one fits."""
    gpus = 1 if config.use_gpu else 0
    cluster.check_fits(config.num_workers, config.cpus_per_worker, gpus)
    return cluster.num_fitting(config.cpus_per_worker, gpus) // config.num_workers


def study(config: EvaluateConfig, run: RunDirectory, shards: Shards) -> None:
    """Cross-validates the run's recipe or measures its learning curve, says what was found, and adds it to the run.

    Raises InputError where there is no run to take a recipe from, or the shards are too few for it.
    """
    check(storage.exists(run.path("config.json")), f"{run.uri} holds no run, whose recipe could be trained anew")
    recipe = TrainConfig.from_dict(run.read_json("config.json"))
    manifest = shards.manifest
    if config.folds:
        found = cross_validate(run, recipe, manifest, shards.read(), config.folds)
        results = evaluation.publish(run, {"cross_validation": found})
        console.say(evaluation.describe_one(f"all {config.folds} folds", found.summary()))
        disputed = found.facts["num_disputed"]
        console.say(
            f"labels disputed with a confidence of at least {DISPUTED:.0%}: {disputed:,} of {found.counts.num_images:,}"
        )
        console.say(f"all readings: {found.source}")
    else:
        test: schema.Split = "test" if manifest.num_images["test"] else "val"
        curve = measure_curve(run, recipe, manifest, shards.read("train"), shards.read(test))
        results = evaluation.publish(run, {}, learning_curve=curve)
        console.say(results["learning_curve"]["answer"])
    console.say(f"report: {run.path('report.html')}")


def cross_validate(
    run: RunDirectory, config: TrainConfig, manifest: schema.Manifest, images: ray.data.Dataset, num_folds: int
) -> Evaluation:
    """Trains as many networks as there are folds, each on the others' images, and has each read its own fold.

    config: of the run, as it was asked for. images: all splits. Of the images a network is trained on, as large a share
    is for validation as in the run's shards. Writes `folds.parquet`: what was read of every image. Returns all folds
    together; facts: `folds`, a summary of each, and `num_disputed`, the labels in whose place another text was read
    with a confidence of at least `DISPUTED`. Raises InputError where a fold would be empty.
    """
    table = _collect(images)
    hashes: list[bytes] = table["sha256"].to_pylist()
    fold = np.array([schema.fold_of(h, manifest.split_seed, num_folds) for h in hashes])
    train_share, val_share, _ = manifest.splits
    validates = np.array(
        [schema.place(h, manifest.split_seed, b"validation") * (train_share + val_share) < val_share for h in hashes]
    )
    if (smallest := np.bincount(fold, minlength=num_folds).min()) == 0:
        raise InputError(f"{len(fold)} images in {num_folds} folds leave a fold of {smallest}; ask for fewer --folds")
    everything = ray.put(table)

    def folds() -> Iterator[Training]:
        for k in range(num_folds):
            masks = {"train": (fold != k) & ~validates, "val": (fold != k) & validates, "test": fold == k}
            one = _restrict(config, manifest, masks, storage.join(run.uri, f"folds-{num_folds}", f"fold-{k}"))
            yield Training(*one, _select(everything, masks))

    tally = evaluation.Tally(training.model_spec(settle(config, manifest), manifest))
    summaries: dict[str, dict[str, Any]] = {}
    readings: dict[str, pa.Table] = {}
    concurrent = num_concurrent(config)
    gpus = float(config.use_gpu)
    with _shown(num_folds) as watch:
        for one, rows in train_all(folds(), concurrent, gpus, calibrated=True, watch=watch):
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

    What `learning_curve.summary` says. Parts of fewer images than characters of the alphabet are left out.
    """
    table, read = _collect(train), [ray.put(_collect(test))]
    order = np.argsort([schema.place(h, manifest.split_seed, b"curve") for h in table["sha256"].to_pylist()])
    sizes = sorted({math.ceil(fraction * len(order)) for fraction in fractions})
    wanted = [size for size in sizes if size >= max(len(manifest.charset) / manifest.max_length, 4)]
    check(bool(wanted), f"{len(order)} training images are too few for a learning curve")
    everything = ray.put(table)

    def parts() -> Iterator[Training]:
        for size in reversed(wanted):  # the longest first
            mask = np.zeros(len(order), bool)
            mask[order[:size]] = True
            one = _restrict(config, manifest, {"train": mask}, storage.join(run.uri, "curve", f"images-{size}"))
            yield Training(*one, {**_select(everything, {"train": mask}), "val": [], "test": read})

    points = []
    with _shown(len(wanted)) as watch:
        for one, rows in train_all(parts(), num_concurrent(config), float(config.use_gpu), watch=watch):
            points.append(Point(one.manifest.num_images["train"], sum(right_in(rows)), len(rows)))
            console.say(f"{points[-1].num_images:,} images: {points[-1].accuracy:.2%} of {len(rows):,} strings")
    return learning_curve.summary(sorted(points, key=lambda point: point.num_images))


def _collect(dataset: ray.data.Dataset) -> pa.Table:
    return pa.concat_tables(dataset.iter_batches(batch_size=None, batch_format="pyarrow")).combine_chunks()


def _restrict(
    config: TrainConfig, manifest: schema.Manifest, masks: dict[str, npt.NDArray[np.bool_]], directory: str
) -> tuple[TrainConfig, schema.Manifest]:
    """Config and manifest of a training on parts of the images: what the config leaves open follows from these."""
    counts = {name: int(masks[name].sum()) if name in masks else 0 for name in manifest.num_images}
    part = dataclasses.replace(manifest, num_images=counts)
    settled = settle(dataclasses.replace(config, run=directory, resume=False), part)
    training.check_batches(settled, part)
    return settled, part


def _select(everything: Any, masks: dict[str, npt.NDArray[np.bool_]]) -> dict[str, list[Any]]:
    return {name: [_filter.remote(everything, mask)] if mask.any() else [] for name, mask in masks.items()}


@ray.remote
def _filter(table: pa.Table, mask: npt.NDArray[np.bool_]) -> pa.Table:
    return table.filter(pa.array(mask)).combine_chunks()
