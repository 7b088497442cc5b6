"""What the process of a trial does: trains one network after another, epoch by epoch, where its driver tells it to."""

import dataclasses
from collections.abc import Generator
from typing import Any

import pyarrow as pa
import ray
import ray.tune
import torch

from captcha_ray import learning, schema, training, trials
from captcha_ray.config import TrainConfig, TuneConfig
from captcha_ray.evaluation import BATCH_SIZE, ReadImages


@dataclasses.dataclass(frozen=True)
class TrialJob:
    """What every trial is told. blocks: an object reference of one Arrow table each, train and val."""

    config: TuneConfig
    manifest: schema.Manifest
    blocks: dict[str, list[Any]]

    def epochs(self, config: TrainConfig, until: int | None = None) -> Generator[dict[str, Any]]:
        """Trains one network, up to the epoch `until` or the last; lines of its `metrics.jsonl`, those of before an
        interruption first."""
        learning.keep_freed_memory()
        torch.set_num_threads(self.config.cpus_per_worker)
        spec = training.model_spec(config, self.manifest)
        job = training.WorkerJob(config, spec, self.blocks, _say_nothing, until)
        yield from training.epochs(job, torch.device("cuda" if config.use_gpu else "cpu"))


def _say_nothing(message: training.Announcement) -> None:
    """Trials show no progress within an epoch."""


class Trainable(ray.tune.Trainable):
    """One trial after another in one process, each up to a given epoch; a step is an epoch."""

    def setup(self, config: dict[str, Any], job: TrialJob) -> None:  # type: ignore[override]  # by `with_parameters`
        """Begins the first trial."""
        self._job = job
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins another trial; spares the start of a process and its imports."""
        self._epochs.close()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._done: list[dict[str, Any]] = []
        told = TrainConfig.from_dict(config["config"])
        self._until, self._num_epochs = config["until"], told.epochs
        self._epochs = self._job.epochs(told, self._until)

    def step(self) -> dict[str, Any]:
        """One epoch, or the word that there is none left; what goes wrong ends this trial only."""
        status = reason = ""
        try:
            self._done.append(next(self._epochs))
            if training.has_diverged(self._done[-1]):
                status, reason = "diverged", f"the loss of epoch {self._done[-1]['epoch']} is not a number"
        except StopIteration:
            at_rung = self._until <= len(self._done) < self._num_epochs
            status = "stopped" if at_rung else "finished"
        except Exception as error:
            status, reason = "failed", f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return {
            "epoch": self._done[-1]["epoch"] if self._done else 0,
            "accuracy": trials.accuracy(self._done),
            "status": status,
            "reason": reason,
            "done": bool(status),
        }

    def cleanup(self) -> None:
        """Ends the last trial."""
        self._epochs.close()


@ray.remote
def train_in_full(job: TrialJob, config: TrainConfig) -> list[bool]:
    """Trains to the end; whether the best epoch's network reads each validation image right, in their order."""
    for _ in job.epochs(config):
        pass
    table: pa.Table = ray.get(job.blocks["val"][0])
    read = ReadImages(config.run)
    rows = [read(table.slice(start, BATCH_SIZE)) for start in range(0, len(table), BATCH_SIZE)]
    return [row["reading"] == row["text"] for part in rows for row in part.select(["reading", "text"]).to_pylist()]
