"""Train one trial after another in a trial's process, epoch by epoch, as its driver says."""

import dataclasses
from typing import Any

import ray.tune

from captcha_ray.errors import full_disk
from captcha_ray.experiments.parallel_runs import Training
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.training.schedule import has_diverged
from captcha_ray.tuning import trials

DISK_FULL = "disk full"
"""Status of a trial that met a full disk, which ends the search, as the next trial would meet it too."""


class Trainable(ray.tune.Trainable):
    """One trial after another in one process, each up to a given epoch; a step is an epoch."""

    def setup(self, config: dict[str, Any], training: Training) -> None:  # type: ignore[override]  # with_parameters
        """Begin the first trial. training: of the recipe; a trial's differs in its config."""
        self._training = training
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial, which spares the start of a process and its imports."""
        self._epochs.close()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._done: list[dict[str, Any]] = []
        told = TrainConfig.from_dict(config["config"])
        self._until, self._num_epochs = config["until"], told.epochs
        self._epochs = dataclasses.replace(self._training, config=told).epochs(self._until)

    def step(self) -> dict[str, Any]:
        """Train an epoch, or report that none is left; an error ends this trial only, except for a full disk."""
        status = reason = ""
        try:
            self._done.append(next(self._epochs))
            if has_diverged(self._done[-1]):
                status, reason = "diverged", f"the loss of epoch {self._done[-1]['epoch']} is not a number"
        except StopIteration:
            at_rung = self._until <= len(self._done) < self._num_epochs
            status = "stopped" if at_rung else "finished"
        except Exception as error:
            if told := full_disk(error):
                status, reason = DISK_FULL, told
            else:
                status, reason = "failed", f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return {
            "epoch": self._done[-1]["epoch"] if self._done else 0,
            "accuracy": trials.accuracy(self._done),
            "status": status,
            "reason": reason,
            "done": bool(status),
        }

    def cleanup(self) -> None:
        """End the last trial."""
        self._epochs.close()
