"""Measure what a recipe is worth: train it on all folds but one and predict that one, for each fold in turn.

`run_experiments` also starts the other experiment on a run, the learning curve. As many networks train at once as the
cluster holds; an interrupted experiment goes on where it was.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data

from captcha_ray import console
from captcha_ray.datasets import schema, splits
from captcha_ray.datasets.shards import open_shards
from captcha_ray.datasets.splits import Split, fold_of
from captcha_ray.errors import check
from captcha_ray.evaluation import evaluate
from captcha_ray.evaluation.config import EvaluateConfig
from captcha_ray.evaluation.evaluate import Evaluation
from captcha_ray.experiments.learning_curve import measure_curve
from captcha_ray.experiments.parallel_runs import Training, right_in, train_all
from captcha_ray.experiments.subsets import Parts, concurrency, progress_of, restrict, with_one_worker
from captcha_ray.recipes.auto_config import resolve
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.storage import filesystem
from captcha_ray.storage.lock import Lease
from captcha_ray.training.results import publish
from captcha_ray.training.trainer import model_spec

DISPUTED = 0.99
"""Confidence in another text from which on a label counts as disputed."""


def run_experiments(config: EvaluateConfig, run: RunDirectory) -> None:
    """Cross-validate the run's recipe or measure its learning curve, print the result and add it to the run.

    Raises InputError if there is no run to take a recipe from, its shards are too few, or another experiment of the run
    is at work.
    """
    check(filesystem.exists(run.path("config.json")), f"{run.uri} holds no run, whose recipe could be trained anew")
    requested = TrainConfig.from_dict(run.read_json("config.json"))
    if requested.unlabeled:
        console.warn(f"what a study trains learns from labeled images alone, without those of {requested.unlabeled}")
    recipe = with_one_worker(requested, config.use_gpu)
    shards = open_shards(config.shards or run.shards)
    manifest = shards.manifest
    with Lease(run.path("_lease.json")) as lease:
        if config.folds:
            found = cross_validate(run, recipe, manifest, shards.read(), config.folds)
            lease.check()
            results = publish(run, {"cross_validation": found})
            console.say(evaluate.describe_one(f"all {config.folds} folds", found.summary()))
            disputed = f"{found.facts['num_disputed']:,} of {found.counts.num_images:,}"
            console.say(f"labels disputed with a confidence of at least {DISPUTED:.0%}: {disputed}")
            console.say(f"all predictions: {found.source}")
        else:
            test: Split = "test" if manifest.num_images["test"] else "val"
            curve = measure_curve(run, recipe, manifest, shards.read("train"), shards.read(test))
            lease.check()
            results = publish(run, {}, learning_curve=curve)
            console.say(results["learning_curve"]["answer"])
    console.say(f"report: {run.path('report.html')}")
    for sentence in results["warnings"]:
        console.warn(sentence)


def cross_validate(
    run: RunDirectory, config: TrainConfig, manifest: schema.Manifest, images: ray.data.Dataset, num_folds: int
) -> Evaluation:
    """Train a network per fold on the other folds' images and let it predict its own.

    As large a share of the training images as in the run's shards is for validation. Writes `folds.parquet`, a
    prediction for every image.

    Args:
        run: Directory of the run.
        config: As requested for the run, with one worker.
        manifest: Of the shards.
        images: Rows of all splits.
        num_folds: At least 2.

    Returns:
        All folds together. facts: `folds`, a summary of each, and `num_disputed`, labels against which another text
            was predicted with a confidence of at least `DISPUTED`.

    Raises:
        InputError: A fold would be empty.
    """
    parts = Parts(images)
    pending = []
    for k, masks in enumerate(_masks_of_folds(parts, manifest, num_folds)):
        directory = filesystem.join(run.uri, f"folds-{num_folds}", f"fold-{k}")
        pending.append((*restrict(config, manifest, masks, directory), masks))
    trainings = (Training(one, part, parts.select(masks)) for one, part, masks in pending)
    tally = evaluate.Tally(model_spec(resolve(config, manifest), manifest))
    summaries: dict[str, dict[str, Any]] = {}
    predictions: dict[str, pa.Table] = {}
    with progress_of([one for one, _, _ in pending]) as watch:
        for one, rows in train_all(trainings, *concurrency(config), calibrated=True, watch=watch):
            alone = evaluate.Tally(tally.spec)
            alone.add(rows)
            tally.add(rows)
            summaries[one.name] = alone.evaluation(one.name).summary()
            columns = rows.drop_columns(["wrong_image"])
            predictions[one.name] = columns.append_column("fold", pa.repeat(one.name, len(rows)))
            console.say(evaluate.describe_one(one.name, summaries[one.name]))
    every = pa.concat_tables([predictions[name] for name in sorted(predictions)])
    run.write_table("folds.parquet", every)
    keys = ("num_images", "num_exact_match", "exact_match", "exact_match_ci95", "char_accuracy")
    sure = np.asarray(every["confidence"]) >= DISPUTED
    facts = {
        "folds": [{"fold": name} | {key: summaries[name][key] for key in keys} for name in sorted(summaries)],
        "num_disputed": int((sure & ~np.array(right_in(every))).sum()),
    }
    return dataclasses.replace(tally.evaluation(run.path("folds.parquet")), facts=facts)


def _masks_of_folds(parts: Parts, manifest: schema.Manifest, num_folds: int) -> list[dict[str, npt.NDArray[np.bool_]]]:
    """Return which rows a fold's network learns from, is validated on, and is tested on: "train", "val", "test"."""
    fold = parts.map(lambda sha: fold_of(sha, manifest.split_seed, num_folds))
    train_share, val_share, _ = manifest.splits
    place = parts.map(lambda sha: splits.place(sha, manifest.split_seed, b"validation"))
    validates = place * (train_share + val_share) < val_share
    smallest = np.bincount(fold, minlength=num_folds).min()
    check(smallest > 0, f"{len(fold)} images in {num_folds} folds leave a fold of {smallest}; ask for fewer --folds")
    return [
        {"train": (fold != k) & ~validates, "val": (fold != k) & validates, "test": fold == k} for k in range(num_folds)
    ]
