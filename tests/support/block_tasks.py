"""Make the task of a worker of bulk inference, as a job without flags gives it."""

from pathlib import Path
from typing import Any

from captcha_ray.inference.block import BlockTask
from captcha_ray.models.restriction import WHOLE


def block_task(run: str = "", attempt: Path | str = "", **changes: Any) -> BlockTask:
    """Return a task that recognizes by the network of a run, on the CPU, and stages into the folder `attempt`."""
    fields: dict[str, Any] = {
        "model": run,
        "model_id": "",
        "device": "cpu",
        "engine": "auto",
        "precision": "auto",
        "attempt": str(attempt),
        "endpoint_url": "",
        "max_bytes": 4_000_000,
        "max_pixels": 16_000_000,
        "max_stretch": 4.0,
        "min_confidence": 0.0,
        "num_threads": 1,
        "restriction": WHOLE,
    }
    return BlockTask(**(fields | changes))
