"""Measure a trained network on labeled Datasets, in this process or on actors."""

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
from captcha_ray.engines import choice
from captcha_ray.engines.engine import Name, Precision
from captcha_ray.errors import InputError
from captcha_ray.metrics.calibration import Confidences
from captcha_ray.metrics.counts import Mistake, PredictionCounts
from captcha_ray.models import checkpoint, fingerprint
from captcha_ray.models.restriction import WHOLE, Restriction
from captcha_ray.models.spec import ModelSpec
from captcha_ray.recognizer import Recognizer
from captcha_ray.runtime import capacity

NUM_MISTAKES = 30
"""Mistakes whose pictures are kept."""

CALIBRATION_IMAGES = 2000
"""Most validation images for the temperature: more would change its third digit."""

BATCH_SIZE = 256
"""Images per forward pass; larger batches are no faster on a CPU."""


class RecognizeImages:
    """Adds predictions to rows of shards: text, confidence, loss, and the image if the prediction is wrong.

    The network is loaded once, in the constructor, so an object serves as an actor of `map_batches`.
    """

    def __init__(
        self,
        uri: str,
        device: str = "cpu",
        restriction: Restriction = WHOLE,
        engine: Name = "torch",
        precision: Precision = "auto",
        num_threads: int = 0,
    ) -> None:
        charset, length = restriction.charset, restriction.length
        self._recognizer = Recognizer.load(uri, device, precision, engine, num_threads, charset, length)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Turn rows of `Labeled` into uri, text, prediction, confidence, loss, wrong_image (null if right).

        If there is a `reason`, it is kept, and unreadable files have null in the columns of predictions.
        """
        if "reason" not in rows.column_names:
            return self._read(rows)
        unreadable = rows.filter(pc.is_valid(rows["reason"])).select(["uri", "reason"])
        return pa.concat_tables(
            [self._read(rows.filter(pc.is_null(rows["reason"]))), unreadable], promote_options="default"
        )

    def _read(self, rows: pa.Table) -> pa.Table:
        images = schema.unpack_images(rows["image"], self._recognizer.spec.image)
        truths = rows["text"].to_pylist()
        outputs = self._recognizer.outputs(images)
        predictions = self._recognizer.predictions(self._recognizer.at_positions(outputs))
        wrong = [
            image.tobytes() if r.text != t else None for image, r, t in zip(images, predictions, truths, strict=True)
        ]
        return pa.table(
            {
                "uri": rows["uri"],
                "text": rows["text"],
                "prediction": pa.array([r.text for r in predictions], pa.string()),
                "confidence": pa.array([r.confidence for r in predictions], pa.float64()),
                "loss": pa.array(self._recognizer.losses(outputs, truths), pa.float64()),
                "wrong_image": pa.array(wrong, pa.binary()),
            }
        )


def _read_rows(dataset: ray.data.Dataset, num_workers: int, use_gpu: bool, load: tuple[Any, ...]) -> Iterator[pa.Table]:
    """Yield tables of predictions for all rows.

    Args:
        dataset: Rows of `Labeled`.
        num_workers: Actors; 0 computes in this process.
        use_gpu: Give a GPU to each of them.
        load: Arguments of `RecognizeImages`.
    """
    if num_workers == 0:
        read = RecognizeImages(*load)
        for rows in dataset.iter_batches(batch_size=BATCH_SIZE, batch_format="pyarrow"):
            yield read(rows)
        return
    compute: Any = ray.data.ActorPoolStrategy(size=num_workers)
    predictions = dataset.map_batches(
        RecognizeImages,
        fn_constructor_args=(*load, 1),  # one thread, as an actor reserves one core
        batch_size=BATCH_SIZE,
        batch_format="pyarrow",
        compute=compute,
        num_cpus=capacity.cpu_request(1),
        num_gpus=1 if use_gpu else None,
    )
    yield from predictions.iter_batches(batch_size=None, batch_format="pyarrow")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Measurements of a network.

    source: URI of the images. mistakes: surest first, at most `NUM_MISTAKES`. unreadable: files that do not count, by
    reason. facts: further results as JSON types.
    """

    source: str
    counts: PredictionCounts
    confidences: Confidences
    mistakes: list[Mistake]
    unreadable: collections.Counter[str]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return what `results.json` holds."""
        unreadable = {"unreadable": dict(self.unreadable.most_common())} if self.unreadable else {}
        confidence = self.confidences.summary()
        return {"source": self.source, **self.counts.summary(), "confidence": confidence, **unreadable, **self.facts}


def calibrate(val: pa.Table, model: str, device: str = "cpu") -> float:
    """Fit and set the temperature of a run's network, and return it.

    val: images that it has not learned from.
    """
    recognizer = Recognizer.load(model, device, engine="torch")
    images = schema.unpack_images(val["image"], recognizer.spec.image)
    temperature = recognizer.fit_temperature(images, val["text"].to_pylist())
    checkpoint.set_temperature(model, temperature)
    return temperature


class Tally:
    """Adds up tables of predictions of a network. num_unlabeled: files that are in no table."""

    def __init__(self, spec: ModelSpec, num_unlabeled: int = 0) -> None:
        self.spec = spec
        self._counts = PredictionCounts.of(spec.charset, [], [], [])
        self._unread = +collections.Counter(no_label=num_unlabeled)
        self._confidences: list[tuple[list[float], list[bool]]] = []
        self._worst: list[tuple[float, str, int, Mistake]] = []  # the number spares comparing mistakes that are alike
        self._numbers = itertools.count()

    def add(self, table: pa.Table) -> None:
        """Add rows of `RecognizeImages`."""
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
        """Return the sum. source: URI of the images. Raises InputError if nothing was added."""
        if not self._counts.num_images:
            raise InputError(f"no image of {source} can be read: {decoding.counted(self._unread)}")
        mistakes = [mistake for *_, mistake in sorted(self._worst, key=lambda w: (-w[0], w[1]))]
        confidence, right = (list(itertools.chain.from_iterable(part)) for part in zip(*self._confidences, strict=True))
        return Evaluation(source, self._counts, Confidences.of(confidence, right), mistakes, self._unread)


def evaluate(
    source: Labeled,
    model: str,
    num_workers: int = 0,
    use_gpu: bool = False,
    restriction: Restriction = WHOLE,
    engine: Name = "torch",
    precision: Precision = "auto",
) -> Evaluation:
    """Predict labeled images and count what is right.

    Args:
        source: Images and labels.
        model: URI of a run or checkpoint.
        num_workers: Actors that compute; 0 computes in this process.
        use_gpu: Give a GPU to each of them.
        restriction: Of the network's texts.
        engine: What computes, see `engines.choice.load`.
        precision: What it computes in.

    Raises:
        InputError: No image can be decoded, or the network cannot be restricted or computed so.
    """
    if said := choice.prepare(model, engine, capacity.device_of(use_gpu)):
        console.say(said)
    load = (model, capacity.device_of(use_gpu), restriction, engine, precision)
    tally = Tally(restriction.spec(fingerprint.load_spec(model)), source.num_unlabeled)
    with console.progress(f"evaluate {source.name}", source.num_files, "images") as advance:
        for table in _read_rows(source.dataset, num_workers, use_gpu, load):
            tally.add(table)
            advance(len(table))
    return tally.evaluation(source.source)


def describe(results: dict[str, Any]) -> list[str]:
    """Return a line for a person per split of `results.json`."""
    splits = {name: summary for name, summary in results.items() if isinstance(summary, dict)}
    return [describe_one(name, summary) for name, summary in splits.items() if summary.get("num_images")]


def describe_one(name: str, summary: dict[str, Any]) -> str:
    """Return a line for a person about one split."""
    low, high = summary["exact_match_ci95"]
    return (
        f"{name}: {summary['exact_match']:.2%} of {summary['num_images']:,} strings "
        f"(95 % interval {low:.2%} to {high:.2%}), {summary['char_accuracy']:.2%} of characters, "
        f"character error rate {summary['char_error_rate']:.2%}, "
        f"calibration error {summary['confidence']['calibration_error']:.2%}"
    )
