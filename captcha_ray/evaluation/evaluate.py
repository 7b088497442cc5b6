"""Measures a trained network on labeled Datasets, here or on actors."""

import collections
import dataclasses
import heapq
import itertools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from captcha_ray import console
from captcha_ray.datasets import decoding, schema
from captcha_ray.datasets.shards import Labeled
from captcha_ray.errors import InputError
from captcha_ray.metrics.calibration import Confidences
from captcha_ray.metrics.counts import Mistake, PredictionCounts
from captcha_ray.models import checkpoint, fingerprint
from captcha_ray.models.spec import ModelSpec
from captcha_ray.recognizer import Recognizer
from captcha_ray.runtime import capacity

NUM_MISTAKES = 30
"""Mistakes whose pictures are kept."""

CALIBRATION_IMAGES = 2000
"""Validation images the temperature is fitted by, about and at most: their number decides its second digit."""

BATCH_SIZE = 256
"""Images read at once; larger ones are no faster on a CPU."""


class RecognizeImages:
    """Adds what was read to shard rows: reading, confidence, loss; keeps the image where the reading is wrong.

    Loads the network once, in the constructor, so that it serves as an actor of `map_batches`.
    """

    def __init__(self, uri: str, device: str = "cpu") -> None:
        self._recognizer = Recognizer.load(uri, device)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows of `Labeled` -> uri, text, reading, confidence, loss, wrong_image (null where right); where there is a
        `reason`, that too, and null for what a file without image has not."""
        if "reason" not in rows.column_names:
            return self._read(rows)
        unreadable = rows.filter(pc.is_valid(rows["reason"])).select(["uri", "reason"])
        return pa.concat_tables(
            [self._read(rows.filter(pc.is_null(rows["reason"]))), unreadable], promote_options="default"
        )

    def _read(self, rows: pa.Table) -> pa.Table:
        images = schema.unpack_images(rows["image"], self._recognizer.spec.image)
        truths = rows["text"].to_pylist()
        log_probabilities = self._recognizer.log_probabilities(images)
        predictions = self._recognizer.predictions(log_probabilities)
        wrong = [
            image.tobytes() if r.text != t else None for image, r, t in zip(images, predictions, truths, strict=True)
        ]
        return pa.table(
            {
                "uri": rows["uri"],
                "text": rows["text"],
                "prediction": pa.array([r.text for r in predictions], pa.string()),
                "confidence": pa.array([r.confidence for r in predictions], pa.float64()),
                "loss": pa.array(self._recognizer.losses(log_probabilities, truths), pa.float64()),
                "wrong_image": pa.array(wrong, pa.binary()),
            }
        )


def _read_rows(dataset: ray.data.Dataset, uri: str, num_workers: int, use_gpu: bool) -> Iterator[pa.Table]:
    """Tables of readings for all rows of a Dataset. num_workers: actors to read on; 0 reads in this process."""
    if num_workers == 0:
        read = RecognizeImages(uri, capacity.device_of(use_gpu))
        for rows in dataset.iter_batches(batch_size=BATCH_SIZE, batch_format="pyarrow"):
            yield read(rows)
        return
    compute: Any = ray.data.ActorPoolStrategy(size=num_workers)
    predictions = dataset.map_batches(
        RecognizeImages,
        fn_constructor_args=(uri, capacity.device_of(use_gpu)),
        batch_size=BATCH_SIZE,
        batch_format="pyarrow",
        compute=compute,
        num_cpus=capacity.cpu_request(1),
        num_gpus=1 if use_gpu else None,
    )
    yield from predictions.iter_batches(batch_size=None, batch_format="pyarrow")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """source: URI of what was read. mistakes: wrong readings, the surest first, at most `NUM_MISTAKES`. unread: files
    that do not count, by reason. facts: what else there is to say, JSON types."""

    source: str
    counts: PredictionCounts
    confidences: Confidences
    mistakes: list[Mistake]
    unreadable: collections.Counter[str]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """As it stands in `results.json`."""
        unreadable = {"unreadable": dict(self.unreadable.most_common())} if self.unreadable else {}
        confidence = self.confidences.summary()
        return {"source": self.source, **self.counts.summary(), "confidence": confidence, **unreadable, **self.facts}


def calibrate(val: pa.Table, model: str, device: str = "cpu") -> float:
    """Sets the temperature of a run's network by labeled images it has not learned from; returns it.

    val: rows of shards, which are read in this process, on the device; `CALIBRATION_IMAGES` are enough.
    """
    recognizer = Recognizer.load(model, device)
    images = schema.unpack_images(val["image"], recognizer.spec.image)
    temperature = recognizer.fit_temperature(images, val["text"].to_pylist())
    checkpoint.set_temperature(model, temperature)
    return temperature


class Tally:
    """Adds up tables of readings, of a network as `spec` describes it. num_unlabeled: files that are in no table."""

    def __init__(self, spec: ModelSpec, num_unlabeled: int = 0) -> None:
        self.spec = spec
        self._counts = PredictionCounts.of(spec.charset, [], [], [])
        self._unread = +collections.Counter(no_label=num_unlabeled)
        self._confidences: list[tuple[list[float], list[bool]]] = []
        self._worst: list[tuple[float, str, int, Mistake]] = []  # the number spares comparing mistakes that are alike
        self._numbers = itertools.count()

    def add(self, table: pa.Table) -> None:
        """Rows as `RecognizeImages` gives them."""
        if "reason" in table.column_names:
            self._unread.update(table["reason"].drop_null().to_pylist())
            table = table.filter(pc.is_null(table["reason"]))
        texts, predictions, losses = (table[column].to_pylist() for column in ("text", "prediction", "loss"))
        self._counts += PredictionCounts.of(self.spec.charset, texts, predictions, losses)
        right = [text == prediction for text, prediction in zip(texts, predictions, strict=True)]
        self._confidences.append((table["confidence"].to_pylist(), right))
        for row in table.filter(pc.is_valid(table["wrong_image"])).to_pylist():
            column = pa.array([row["wrong_image"]], pa.binary(len(row["wrong_image"])))
            image = schema.unpack_images(column, self.spec.image)[0]
            mistake = Mistake(row["uri"], row["text"], row["prediction"], row["confidence"], image)
            heapq.heappush(self._worst, (row["confidence"], row["uri"], next(self._numbers), mistake))
            if len(self._worst) > NUM_MISTAKES:
                heapq.heappop(self._worst)

    def evaluation(self, source: str) -> Evaluation:
        """What was added. source: URI of what was read. Raises InputError where that is nothing."""
        if not self._counts.num_images:
            raise InputError(f"no image of {source} can be read: {decoding.counted(self._unread)}")
        mistakes = [mistake for *_, mistake in sorted(self._worst, key=lambda w: (-w[0], w[1]))]
        confidence, right = (list(itertools.chain.from_iterable(part)) for part in zip(*self._confidences, strict=True))
        return Evaluation(source, self._counts, Confidences.of(confidence, right), mistakes, self._unread)


def evaluate(source: Labeled, model: str, num_workers: int = 0, use_gpu: bool = False) -> Evaluation:
    """Reads labeled images and counts what is right. model: URI of a run or checkpoint.

    num_workers: actors to read on; 0 reads in this process. Raises InputError where nothing can be read.
    """
    tally = Tally(fingerprint.load_spec(model), source.num_unlabeled)
    with console.progress(f"evaluate {source.name}", source.num_files, "images") as advance:
        for table in _read_rows(source.dataset, model, num_workers, use_gpu):
            tally.add(table)
            advance(len(table))
    return tally.evaluation(source.source)


def describe(results: dict[str, Any]) -> list[str]:
    """A line for a person per split of `results.json`."""
    splits = {name: summary for name, summary in results.items() if isinstance(summary, dict)}
    return [describe_one(name, summary) for name, summary in splits.items() if summary.get("num_images")]


def describe_one(name: str, summary: dict[str, Any]) -> str:
    """A line for a person."""
    low, high = summary["exact_match_ci95"]
    return (
        f"{name}: {summary['exact_match']:.2%} of {summary['num_images']:,} strings "
        f"(95 % interval {low:.2%} to {high:.2%}), {summary['char_accuracy']:.2%} of characters, "
        f"calibration error {summary['confidence']['calibration_error']:.2%}"
    )
