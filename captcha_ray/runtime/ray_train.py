"""Use those parts of Ray Train that Ray calls private. Imports torch, through Ray."""

from typing import Any

import ray.train.torch
from ray.train.v2._internal.exceptions import RayTrainError

LOST_WORKER_ERROR = RayTrainError
"""Raised by Ray Train, not by our code, if a worker is lost or does not start."""


class InterruptibleTrainer(ray.train.torch.TorchTrainer):
    """A TorchTrainer that leaves Ctrl-C to Python: Ray Train's handler ends the process with status 1 and no word."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass
