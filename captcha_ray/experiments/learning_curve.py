"""Measure how accuracy grows with the number of training images."""

import math
from collections.abc import Sequence
from typing import Any

import ray
import ray.data

from captcha_ray import console
from captcha_ray.datasets import schema, splits
from captcha_ray.errors import check
from captcha_ray.experiments.parallel_runs import Training, right_in, train_all
from captcha_ray.experiments.subsets import Parts, concurrency, progress_of, restrict
from captcha_ray.metrics import learning_curve
from captcha_ray.metrics.learning_curve import Point
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.storage import filesystem


def measure_curve(
    run: RunDirectory,
    config: TrainConfig,
    manifest: schema.Manifest,
    train: ray.data.Dataset,
    test: ray.data.Dataset,
    fractions: Sequence[float] = learning_curve.FRACTIONS,
) -> dict[str, Any]:
    """Train networks on parts of the training split, each part within the next, and let all predict the same images.

    Parts of fewer than 4 images, or in which characters would occur less than once on average, are left out.

    Args:
        run: Directory of the run.
        config: As for `cross_validate`.
        manifest: Of the shards.
        train: Rows of the training split.
        test: Rows that are predicted.
        fractions: Of the training split.

    Returns:
        What `learning_curve.summary` returns.

    Raises:
        InputError: No part is left.
    """
    parts, read = Parts(train), test.materialize().to_arrow_refs()
    rank = parts.map(lambda sha: splits.place(sha, manifest.split_seed, b"curve")).argsort().argsort()
    sizes = {math.ceil(fraction * len(rank)) for fraction in fractions}
    wanted = [size for size in sorted(sizes) if size >= max(len(manifest.charset) / manifest.max_length, 4)]
    check(bool(wanted), f"{len(rank)} training images are too few for a learning curve")
    pending = []
    for size in reversed(wanted):  # the longest first
        masks = {"train": rank < size}
        directory = filesystem.join(run.uri, "curve", f"images-{size}")
        pending.append((*restrict(config, manifest, masks, directory), masks))
    trainings = (Training(one, part, {**parts.select(masks), "val": [], "test": read}) for one, part, masks in pending)
    points = []
    with progress_of([one for one, _, _ in pending]) as watch:
        for one, rows in train_all(trainings, *concurrency(config), watch=watch):
            points.append(Point(one.manifest.num_images["train"], sum(right_in(rows)), len(rows)))
            console.say(f"{points[-1].num_images:,} images: {points[-1].accuracy:.2%} of {len(rows):,} strings")
    return learning_curve.summary(sorted(points, key=lambda point: point.num_images))
