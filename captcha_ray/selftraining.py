"""Images without labels, to learn from as well: a first network reads them, and what it is sure of counts as labeled.

After D.-H. Lee, "Pseudo-Label" (2013): from 50 captchas and 400 unlabeled ones, two to four times fewer are misread.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from captcha_ray import console, evaluation, schema, storage, training
from captcha_ray.cluster import Cluster
from captcha_ray.config import TrainConfig
from captcha_ray.corpus import Labeled, Shards, read_images
from captcha_ray.recognizer import Recognizer
from captcha_ray.runs import RunDirectory
from captcha_ray.training import MoreImages

MIN_CONFIDENCE = 0.9
"""Of a reading that counts as a label. From 50 captchas, 98 to 99 % of those are right."""

TEACHER = "teacher"
"""In the run's directory: the run of the network that reads the unlabeled images."""


class ReadSurely:
    """Rows of shards -> those that are read with a confidence of `MIN_CONFIDENCE`, with what was read as their text.

    known: hashes of images to leave out. An actor of `map_batches`.
    """

    def __init__(self, model: str, known: pa.Array) -> None:
        self._recognizer = Recognizer.load(model)
        self._known = known

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows of `schema.shard_schema` -> fewer of the same."""
        rows = rows.filter(pc.invert(pc.is_in(rows["sha256"], value_set=self._known)))
        images = schema.unpack_images(rows["image"], self._recognizer.spec.image)
        if not len(images):
            return rows
        readings = self._recognizer.readings(self._recognizer.log_probabilities(images))
        texts = pa.array([reading.text for reading in readings], pa.string())
        rows = rows.set_column(rows.schema.get_field_index("text"), rows.schema.field("text"), texts)
        return rows.filter(pa.array([reading.confidence >= MIN_CONFIDENCE for reading in readings], pa.bool_()))


def prepare(
    config: TrainConfig, shards: Shards, val: Labeled | None, cluster: Cluster
) -> Callable[[TrainConfig], MoreImages] | None:
    """What `training.fit` may ask for images besides the shards'; None where the config names none.

    Raises InputError where it names a folder without any.
    """
    if not config.unlabelled:
        return None
    images, num_files = read_images(config.unlabelled, shards.manifest.image_spec)
    return functools.partial(label, images=images, num_files=num_files, shards=shards, val=val, cluster=cluster)


def label(
    config: TrainConfig,
    *,
    images: ray.data.Dataset,
    num_files: int,
    shards: Shards,
    val: Labeled | None,
    cluster: Cluster,
) -> MoreImages:
    """Trains a network on the shards, in a run of its own below the run, and labels images by it.

    images: rows of shards, with any texts. Those that are in the shards, of whatever split, are left out. A network
    whose training was cut off goes on where it was; one that is trained is not trained again. Raises InputError as
    `training.fit` does.
    """
    source = config.unlabelled
    teacher = RunDirectory(storage.join(config.run, TEACHER))
    if not teacher.finished:
        console.say(f"first a network to read {num_files:,} files of {source}")
        first = dataclasses.replace(config, run=teacher.uri, unlabelled="", resume=True)
        training.fit(first, shards.manifest, shards.read("train"), val.dataset if val else None, cluster)
        if val:
            evaluation.calibrate(val.sample(evaluation.CALIBRATION_IMAGES), teacher.uri)
        teacher.finish()
    known = pa.concat_tables(shards.read().select_columns(["sha256"]).iter_batches(batch_format="pyarrow"))
    compute: Any = ray.data.ActorPoolStrategy(size=config.workers[0])
    sure = images.map_batches(
        ReadSurely,
        fn_constructor_args=(teacher.uri, known["sha256"].combine_chunks()),
        batch_size=evaluation.BATCH_SIZE,
        batch_format="pyarrow",
        compute=compute,  # with as many CPUs as decoding: actors of more would leave it none, and wait
        num_gpus=1 if config.use_gpu else None,
    ).materialize()
    number = sure.count()
    console.say(f"{number:,} of them are read with a confidence of at least {MIN_CONFIDENCE:.0%}, and learned from")
    facts = {"source": source, "num_files": num_files, "num_learned_from": number}
    return MoreImages(sure, number, facts)
