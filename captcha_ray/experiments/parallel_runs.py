"""Run whole trainings as tasks of a cluster, side by side; each ends by predicting images it has not seen.

Each keeps its epochs, and at last its predictions, in a directory of its own: an interrupted one goes on where it was,
and a finished one is not repeated. They are plain tasks: Ray Train would start a controller and a group of workers for
each of these short trainings, and Ray Tune would keep a second record of what is finished.
"""

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.exceptions
import torch

from captcha_ray.datasets import schema
from captcha_ray.datasets.splits import subsample
from captcha_ray.errors import InputError, JobError
from captcha_ray.evaluation import evaluate
from captcha_ray.models.allocator import keep_freed_memory
from captcha_ray.recipes.config import RESUME_MAY_DIFFER, TrainConfig
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.runtime import blocks, capacity
from captcha_ray.storage import filesystem
from captcha_ray.training import trainer
from captcha_ray.training.schedule import has_diverged
from captcha_ray.training.trainer import model_spec
from captcha_ray.training.worker import WorkerJob

PREDICTIONS = "predictions.parquet"
"""File in a training's directory with the predictions of its test part."""

MAX_DEATHS = 2
"""Times that a training whose process dies goes on in another before it counts as failed."""

LOOK_S = 1.0
"""Seconds between two looks at the progress of trainings."""

HOLDER = 1 << 20
"""Bytes of memory that a training of several workers requests for itself: its workers take the CPUs."""


@dataclasses.dataclass(frozen=True)
class Training:
    """One training.

    config: resolved, `run` is its directory. blocks: references of Arrow tables for train, val and test.

    Without a validation part the last epoch's network is kept.
    """

    config: TrainConfig
    manifest: schema.Manifest
    blocks: dict[str, list[Any]]

    @property
    def name(self) -> str:
        """Return the last part of its directory's name."""
        return self.config.run.rpartition("/")[2]

    def epochs(self, until: int | None = None) -> Generator[dict[str, Any]]:
        """Train in this process up to the epoch `until` or the last.

        Yields the lines of `metrics.jsonl`; those of before an interruption come first.
        """
        keep_freed_memory()
        torch.set_num_threads(self.config.cpus_per_worker)
        spec = model_spec(self.config, self.manifest)
        job = WorkerJob(self.config, spec, self.blocks, lambda message: None, until)
        yield from trainer.epochs(job, torch.device(capacity.device_of(self.config.use_gpu)))


@ray.remote
def train_in_full(one: Training, calibrated: bool) -> pa.Table:
    """Train to the end and predict the test part; return rows as `evaluate.RecognizeImages` does, in the part's order.

    Raises InputError if the loss stops being a number.
    """
    device = capacity.device_of(one.config.use_gpu)
    *_, last = one.epochs()
    if has_diverged(last):
        raise InputError(f"it diverged in epoch {last['epoch']}: the loss is not a number; lower --learning-rate")
    if calibrated and one.blocks["val"]:
        rows = pa.concat_tables([blocks.fetch(block) for block in one.blocks["val"]])
        evaluate.calibrate(subsample(rows, evaluate.CALIBRATION_IMAGES), one.config.run, device)
    read, size = evaluate.RecognizeImages(one.config.run, device), evaluate.BATCH_SIZE
    tables = [blocks.fetch(block) for block in one.blocks["test"]]
    return pa.concat_tables([read(t.slice(start, size)) for t in tables for start in range(0, len(t), size)])


def train_all(
    pending: Iterable[Training],
    concurrent: int,
    gpus: float = 0.0,
    *,
    calibrated: bool = False,
    watch: Callable[[Training, int], None] | None = None,
    again: str = "the same command repeats it",
) -> Iterator[tuple[Training, pa.Table]]:
    """Train several at once, and yield each with its predictions as it ends. Finished ones cost nothing.

    Args:
        pending: Trainings, taken from as capacity becomes free, so that their data is made only then.
        concurrent: Most trainings at once.
        gpus: GPUs of each; may be a fraction.
        calibrated: Fit a temperature on the validation part.
        watch: Called now and then with a training and its finished epochs.
        again: How to repeat a failed one, for the error.

    Raises:
        JobError: A training fails again and again.
        InputError: A directory holds another training, perhaps of other images.
    """
    running: dict[Any, Training] = {}
    for one in pending:
        directory = RunDirectory(one.config.run)
        may_differ = RESUME_MAY_DIFFER
        directory.begin(one.config.to_dict(), one.manifest.to_dict(), resume=True, may_differ=may_differ)
        if filesystem.exists(directory.path(PREDICTIONS)):
            if watch:
                watch(one, one.config.epochs)
            yield one, directory.read_table(PREDICTIONS)
            continue
        if len(running) == concurrent:
            yield _take_finished(running, watch, again)
        running[_submit(one, gpus, calibrated)] = one
    while running:
        yield _take_finished(running, watch, again)


def _submit(one: Training, gpus: float, calibrated: bool) -> Any:
    """Begin a training as a Ray task and return its reference. Several workers of one hold resources of their own."""
    alone = one.config.workers[1] == 1
    options = {
        "num_cpus": capacity.cpu_request(one.config.cpus_per_worker) if alone else 0,
        "num_gpus": gpus if alone else 0,
        "memory": None if alone else HOLDER,
    }
    return train_in_full.options(max_retries=MAX_DEATHS, **options).remote(one, calibrated)


def _take_finished(
    running: dict[Any, Training], watch: Callable[[Training, int], None] | None, again: str
) -> tuple[Training, pa.Table]:
    """Wait for a training to end, take it from those that run, keep its predictions and return both."""
    while not (done := ray.wait(list(running), timeout=LOOK_S)[0]):
        if watch:
            for one in running.values():
                epochs = len(RunDirectory(one.config.run).read_metrics())
                watch(one, min(epochs, one.config.epochs - 1))  # it may take longer than planned
    one = running.pop(done[0])
    try:
        table = ray.get(done[0])
    except ray.exceptions.RayError as error:
        cause = str(getattr(error, "cause", error)).strip().partition("\n")[0]
        raise JobError(f"the training {one.name} failed, {again}: {cause}") from error
    directory = RunDirectory(one.config.run)
    directory.write_table(PREDICTIONS, table)
    directory.forget_state()
    if watch:
        watch(one, one.config.epochs)
    return one, table


def right_in(rows: pa.Table) -> list[bool]:
    """Return for each row whether the prediction is the whole truth."""
    return [row["prediction"] == row["text"] for row in rows.select(["prediction", "text"]).to_pylist()]
