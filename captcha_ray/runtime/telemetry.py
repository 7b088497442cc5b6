"""Report a job's figures to Prometheus while it runs, through the metrics of the node that started it.

Every name is `ray_captcha_...` there, with the tags `job` (train, tune or infer) and `run` (URI of the run or table).
`cluster/grafana-dashboard.json` shows them.
"""

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util import metrics

GAUGES = {
    "captcha_progress": "Share of the work that is done, 0 to 1.",
    "captcha_images_per_second": "Images trained on, or objects recognized, a second; all workers together.",
    "captcha_data_wait_fraction": "Share of the last epoch in which training waited for data, 0 to 1.",
    "captcha_train_loss": "Loss of the last epoch on the training split, nats per image.",
    "captcha_val_exact_match": "Share of validation strings recognized after the last epoch, or by the best trial.",
    "captcha_workers": "Workers that train.",
}

COUNTERS = {
    "captcha_objects": "Objects done, those with an error too.",
    "captcha_errors": "Objects that could not be recognized.",
    "captcha_stage_seconds": "Seconds that workers spent on a stage (fetch, decode, recognize, write), all together.",
}
"""Prometheus appends `_total` to each name."""

TAGS = ("job", "run", "stage")


@functools.cache
def _gauge(name: str) -> "metrics.Gauge":
    from ray.util import metrics  # noqa: PLC0415 -- a night with nothing new imports no Ray

    return metrics.Gauge(name, GAUGES[name], TAGS)


@functools.cache
def _counter(name: str) -> "metrics.Counter":
    from ray.util import metrics  # noqa: PLC0415

    return metrics.Counter(name, COUNTERS[name], TAGS)


class Telemetry:
    """Figures of one job at one run. They appear at Prometheus some seconds after they are given."""

    def __init__(self, job: str, run: str) -> None:
        self._tags = {"job": job, "run": run, "stage": ""}

    def set(self, name: str, value: float | None) -> None:
        """Set a gauge; None leaves it as it was."""
        if value is not None:
            _gauge(name).set(value, self._tags)

    def add(self, name: str, amount: float, stage: str = "") -> None:
        """Add to a counter."""
        if amount > 0:
            _counter(name).inc(amount, self._tags | {"stage": stage})
