"""Short trainings of a small network, on a real Ray."""

import dataclasses
from pathlib import Path
from typing import Any

from captcha_ray.datasets.shards import Shards
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.runtime import ray_session
from captcha_ray.training import trainer

TIMINGS = ("seconds", "images_per_second", "data_wait_fraction")


def config_for(shards: Shards, run: Path, **changes: Any) -> TrainConfig:
    base = TrainConfig(
        recipe="test",
        shards=shards.uri,
        run=str(run),
        network="multi_head_cnn",
        epochs=3,
        batch_size=16,
        learning_rate=3e-3,
        dropout=0.1,
        rotation_degrees=2.0,
    )
    return dataclasses.replace(base, **changes)


def restless(shards: Shards, run: Path, **changes: Any) -> TrainConfig:
    """Of a training that starts over, of 4 epochs planned and 24 at most."""
    adaptive: dict[str, Any] = {"network": "column_cnn", "schedule": "warmup_stable_decay", "stroke_fraction": 0.1}
    return config_for(shards, run, **(adaptive | {"epochs": 4, "max_epochs": 24} | changes))


def fit(config: TrainConfig, shards: Shards, resources: ray_session.Cluster) -> list[dict[str, Any]]:
    """Trains; returns the lines of metrics.jsonl without what time decides."""
    trainer.fit(config, shards, resources)
    epochs = RunDirectory(config.run).read_metrics()
    return [{name: value for name, value in epoch.items() if name not in TIMINGS} for epoch in epochs]
