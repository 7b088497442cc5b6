"""Learn from unlabeled images as well: a first network predicts them, and sure predictions count as labels.

After D.-H. Lee, "Pseudo-Label" (2013): from 50 captchas and 400 unlabeled ones, two to four times fewer strings are
wrong.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from captcha_ray import console
from captcha_ray.datasets import decoding, labels, schema
from captcha_ray.datasets.shards import Labeled, Shards, in_blocks, map_tables
from captcha_ray.errors import check
from captcha_ray.evaluation import evaluate
from captcha_ray.images import decoder
from captcha_ray.images.spec import ImageSpec
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.recognizer import Recognizer
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.runtime import capacity
from captcha_ray.runtime.ray_session import Cluster
from captcha_ray.storage import filesystem
from captcha_ray.training.trainer import MoreImages, fit

MIN_CONFIDENCE = 0.9
"""Least confidence of a pseudo-label. From 50 captchas, 98 to 99 % of those were right when a text's confidence was its
least certain character's; it is less now, so fewer texts have it."""

TEACHER = "teacher"
"""Folder in the run's directory: the run of the network that predicts the unlabeled images."""

PREDICTIONS = "predictions.parquet"
"""File in the teacher's directory with a row of `PREDICTIONS_SCHEMA` for every file that can be decoded."""

PREDICTIONS_SCHEMA = pa.schema(
    [("uri", pa.string()), ("sha256", pa.binary(32)), ("text", pa.string()), ("confidence", pa.float64())]
)
"""sha256: of the pixels, as in shards."""


class RecognizeFiles:
    """An actor of `map_batches` that turns files (columns uri, text) into rows of `PREDICTIONS_SCHEMA`."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        self._recognizer = Recognizer.load(model, device, engine="torch")

    def __call__(self, files: pa.Table) -> pa.Table:
        """Return a row for each file that can be decoded."""
        rows, *_ = decoding.decode_files(files, self._recognizer.spec.image, decoder.MAX_PIXELS)
        predictions = []
        if len(rows):
            pixels = schema.unpack_images(rows["image"], self._recognizer.spec.image)
            predictions = self._recognizer.predictions(self._recognizer.log_probabilities(pixels))
        texts = [prediction.text for prediction in predictions]
        confidences = [prediction.confidence for prediction in predictions]
        return pa.table(
            [rows["uri"], rows["sha256"], pa.array(texts, pa.string()), pa.array(confidences, pa.float64())],
            schema=PREDICTIONS_SCHEMA,
        )


def prepare(
    config: TrainConfig, shards: Shards, val: Labeled | None, cluster: Cluster
) -> Callable[[TrainConfig], MoreImages] | None:
    """Return the function that gives `trainer.fit` further images; None if the config names none.

    Raises:
        InputError: The config names a folder without images.
    """
    if not config.unlabeled:
        return None
    uris = labels.list_images(config.unlabeled)
    return functools.partial(label, uris=uris, shards=shards, val=val, cluster=cluster)


def label(config: TrainConfig, *, uris: list[str], shards: Shards, val: Labeled | None, cluster: Cluster) -> MoreImages:
    """Train a network on the shards, in a run of its own below the run, and label the files with it.

    Pictures that are in the shards, of whatever split, are left out, and all but one of equal pictures. An interrupted
    training goes on where it was; a finished one is not repeated and its predictions are kept, so a run that is
    continued learns from the same. Raises InputError as `trainer.fit` does, and if no file can be decoded.
    """
    teacher = RunDirectory(filesystem.join(config.run, TEACHER))
    if not teacher.finished:
        console.say(f"first a network to label {len(uris):,} files of {config.unlabeled}")
        first = dataclasses.replace(config, run=teacher.uri, unlabeled="", resume=True)
        fit(first, shards, cluster)
        if val:
            evaluate.calibrate(val.sample(evaluate.CALIBRATION_IMAGES), teacher.uri)
        teacher.finish()
    if filesystem.exists(teacher.path(PREDICTIONS)):
        predictions = teacher.read_table(PREDICTIONS)
    else:
        predictions = _read(uris, shards, teacher.uri, config.use_gpu)
        check(len(predictions) > 0, f"none of the {len(uris):,} files of {config.unlabeled} can be read as an image")
        if unreadable := len(uris) - len(predictions):
            console.warn(f"{unreadable:,} files of {config.unlabeled} cannot be read as images, and are left out")
        teacher.write_table(PREDICTIONS, predictions)
    known = pa.concat_tables(shards.read(columns=["sha256"]).iter_batches(batch_size=None, batch_format="pyarrow"))
    chosen = choose(predictions, known)
    rows = _decode(chosen, shards)
    number = rows.count()
    if changed := len(chosen) - number:
        console.warn(f"{changed:,} files of {config.unlabeled} are gone or have changed since they were predicted")
    console.say(
        f"{number:,} pictures that are not in the shards are predicted with a confidence of at least "
        f"{MIN_CONFIDENCE:.0%}, and learned from"
    )
    read = len(predictions)
    facts = {"source": config.unlabeled, "num_files": len(uris), "num_read": read, "num_learned_from": number}
    return MoreImages(rows, number, facts)


def _read(uris: list[str], shards: Shards, model: str, use_gpu: bool) -> pa.Table:
    """Return rows of `PREDICTIONS_SCHEMA`, in the order of the URIs."""
    compute: Any = ray.data.ActorPoolStrategy(min_size=1, max_size=max(capacity.num_fitting(1, use_gpu), 1))
    files = pa.table({"uri": uris, "text": pa.repeat("", len(uris))})
    dataset = in_blocks(files, shards.manifest.image_spec).map_batches(
        RecognizeFiles,
        fn_constructor_args=(model, capacity.device_of(use_gpu)),
        batch_size=evaluate.BATCH_SIZE,
        batch_format="pyarrow",
        compute=compute,
        num_gpus=1 if use_gpu else None,
    )
    tables = [PREDICTIONS_SCHEMA.empty_table()]
    with console.progress("label what has no labels", len(uris), "images") as advance:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            tables.append(pa.table(table))
            advance(len(table))
    return pa.concat_tables(tables)


def choose(predictions: pa.Table, known: pa.Table) -> pa.Table:
    """Return the predictions that count as labels: sure ones, of unknown pictures, one of each picture.

    known: column sha256.
    """
    new = pc.invert(pc.is_in(predictions["sha256"], value_set=known["sha256"].combine_chunks()))
    sure = predictions.filter(pc.and_(new, pc.greater_equal(predictions["confidence"], MIN_CONFIDENCE)))
    numbered = sure.append_column("row", pa.array(range(len(sure)), pa.int64()))
    firsts = numbered.group_by("sha256", use_threads=False).aggregate([("row", "min")])["row_min"]
    return sure.take(firsts)


def _decode(chosen: pa.Table, shards: Shards) -> ray.data.Dataset:
    """Return rows of shards with predictions as texts, materialized; without files that have changed since."""
    spec = shards.manifest.image_spec
    files = in_blocks(chosen.select(["uri", "text", "sha256"]), spec)
    found: ray.data.Dataset = map_tables(files, functools.partial(_unchanged, spec=spec)).materialize()
    return found


def _unchanged(files: pa.Table, *, spec: ImageSpec) -> pa.Table:
    rows, *_ = decoding.decode_files(files, spec, decoder.MAX_PIXELS)
    then = files["sha256"].take(pc.index_in(rows["uri"], value_set=files["uri"].combine_chunks()))
    return rows.filter(pc.equal(rows["sha256"], then))
