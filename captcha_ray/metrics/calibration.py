"""Measure whether confidence means what it says, and what a threshold on it lets through."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from captcha_ray.metrics.counts import ratio, wilson_interval

NUM_BINS = 15
"""Bins of equal width for the calibration error of C. Guo et al., "On Calibration of Modern Neural Networks" (2017)."""

PRECISION = 0.999
"""Share of right predictions that the reported threshold is to reach."""

NUM_POINTS = 200
"""Most points of a risk-coverage curve."""


@dataclasses.dataclass(frozen=True, eq=False)
class Confidences:
    """Confidences of N predictions.

    confidence: float64 (N,), 0 to 1. right: bool (N,), whether the whole string is right.
    """

    confidence: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, confidence: Sequence[float], right: Sequence[bool]) -> "Confidences":
        """Make it from sequences of one value per prediction."""
        assert len(confidence) == len(right)
        return cls(np.asarray(confidence, np.float64), np.asarray(right, np.bool_))

    def bins(self) -> list[dict[str, Any]]:
        """Return the bins that are not empty: low, high (edges), num_images, confidence (mean) and accuracy."""
        number = np.minimum((self.confidence * NUM_BINS).astype(int), NUM_BINS - 1)
        found = []
        for k in np.unique(number):
            inside = number == k
            found.append(
                {
                    "low": float(k / NUM_BINS),
                    "high": float((k + 1) / NUM_BINS),
                    "num_images": int(inside.sum()),
                    "confidence": math.fsum(self.confidence[inside]) / int(inside.sum()),  # in any order
                    "accuracy": float(self.right[inside].mean()),
                }
            )
        return found

    def calibration_error(self) -> float | None:
        """Return the expected calibration error, 0 to 1.

        It is the mean over predictions of |accuracy - mean confidence| of their bin.
        """
        gaps = [abs(one["accuracy"] - one["confidence"]) * one["num_images"] for one in self.bins()]
        return ratio(sum(gaps), len(self.right))

    def _coverages(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.integer], npt.NDArray[np.integer]]:
        """Return all thresholds, descending, with the predictions of at least that confidence and the wrong ones."""
        order = np.argsort(-self.confidence, kind="stable")
        falling = self.confidence[order]
        last = np.flatnonzero(np.append(falling[1:] != falling[:-1], [True] * (len(falling) > 0)))
        wrong = np.cumsum(~self.right[order], dtype=np.int64)
        return falling[last], last + 1, wrong[last]

    def risk_coverage(self) -> list[dict[str, float]]:
        """Return the risk-coverage curve: at most `NUM_POINTS` falling thresholds with coverage and risk.

        R. El-Yaniv and Y. Wiener, "On the Foundations of Noise-free Selective Classification" (2010). Coverage is the
        share of predictions that are as sure, risk the share of these that are wrong.
        """
        thresholds, covered, wrong = self._coverages()
        kept = np.unique(np.linspace(0, len(thresholds) - 1, min(NUM_POINTS, len(thresholds))).round().astype(int))
        return [
            {
                "threshold": float(thresholds[k]),
                "coverage": float(covered[k] / len(self.right)),
                "risk": float(wrong[k] / covered[k]),
            }
            for k in kept
        ]

    def threshold(self, precision: float = PRECISION) -> dict[str, Any] | None:
        """Return the lowest confidence above which `precision` of the predictions are right; None if there is none.

        coverage: share of predictions as sure. precision: share of these that are right, with its interval
        precision_ci95. It is chosen on the same predictions, so a little too good.
        """
        thresholds, covered, wrong = self._coverages()
        enough = np.flatnonzero(1 - wrong / np.maximum(covered, 1) >= precision)
        if not len(enough):
            return None
        k = int(enough[-1])
        interval = wilson_interval(int(covered[k] - wrong[k]), int(covered[k]))
        return {
            "target": precision,
            "confidence": float(thresholds[k]),
            "coverage": float(covered[k] / len(self.right)),
            "num_images": int(covered[k]),
            "precision": float(1 - wrong[k] / covered[k]),
            "precision_ci95": None if interval is None else list(interval),
        }

    def summary(self) -> dict[str, Any]:
        """Return what `results.json` holds."""
        return {
            "calibration_error": self.calibration_error(),
            "bins": self.bins(),
            "threshold": self.threshold(),
            "risk_coverage": self.risk_coverage(),
        }
