"""Reads Datasets of shard rows with a trained network, in this process or on actors of the cluster. Does not train."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray.data

from captcha_ray import schema
from captcha_ray.recognizer import Recognizer

BATCH_SIZE = 256
"""Images read at once; larger ones are no faster on a CPU."""


class ReadImages:
    """Adds what was read to shard rows: reading, confidence, loss; keeps the image where the reading is wrong.

    Loads the network once, in the constructor, so that it serves as an actor of `map_batches`.
    """

    def __init__(self, uri: str) -> None:
        self._recognizer = Recognizer.load(uri)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows of `schema.shard_schema` -> uri, text, reading, confidence, loss, wrong_image (null where right)."""
        images = schema.unpack_images(rows["image"], self._recognizer.spec.image)
        truths = rows["text"].to_pylist()
        log_probabilities = self._recognizer.log_probabilities(images)
        readings = self._recognizer.readings(log_probabilities)
        wrong = [image.tobytes() if r.text != t else None for image, r, t in zip(images, readings, truths, strict=True)]
        return pa.table(
            {
                "uri": rows["uri"],
                "text": rows["text"],
                "reading": pa.array([r.text for r in readings], pa.string()),
                "confidence": pa.array([r.confidence for r in readings], pa.float64()),
                "loss": pa.array(self._recognizer.losses(log_probabilities, truths), pa.float64()),
                "wrong_image": pa.array(wrong, pa.binary()),
            }
        )


def read_rows(dataset: ray.data.Dataset, uri: str, num_workers: int, use_gpu: bool) -> Iterator[pa.Table]:
    """Tables of readings for all rows of a Dataset. num_workers: actors to read on; 0 reads in this process."""
    if num_workers == 0:
        read = ReadImages(uri)
        for rows in dataset.iter_batches(batch_size=BATCH_SIZE, batch_format="pyarrow"):
            yield read(rows)
        return
    compute: Any = ray.data.ActorPoolStrategy(size=num_workers)
    readings = dataset.map_batches(
        ReadImages,
        fn_constructor_args=(uri,),
        batch_size=BATCH_SIZE,
        batch_format="pyarrow",
        compute=compute,
        num_gpus=1 if use_gpu else None,
    )
    yield from readings.iter_batches(batch_size=None, batch_format="pyarrow")
