"""Whether confidence means what it says: how often readings of a given confidence are right, and what a threshold on
the confidence lets through.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from captcha_ray.metrics.counts import ratio, wilson_interval

NUM_BINS = 15
"""Bins of equal width for the calibration error, which is that of C. Guo et al., "On Calibration of Modern Neural
Networks" (2017)."""

PRECISION = 0.999
"""Share of right readings that the reported threshold is to reach."""

NUM_POINTS = 200
"""Points of a risk-coverage curve that are kept."""


@dataclasses.dataclass(frozen=True, eq=False)
class Confidences:
    """confidence: float64 (N,), 0 to 1, of each reading. right: bool (N,), whether it is the whole truth."""

    confidence: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, confidence: Sequence[float], right: Sequence[bool]) -> "Confidences":
        """From one value of each per reading."""
        assert len(confidence) == len(right)
        return cls(np.asarray(confidence, np.float64), np.asarray(right, np.bool_))

    def bins(self) -> list[dict[str, Any]]:
        """Bins that hold readings: low, high (edges), num_images, confidence (mean) and accuracy in it."""
        number = np.minimum((self.confidence * NUM_BINS).astype(int), NUM_BINS - 1)
        found = []
        for k in np.unique(number):
            inside = number == k
            found.append(
                {
                    "low": float(k / NUM_BINS),
                    "high": float((k + 1) / NUM_BINS),
                    "num_images": int(inside.sum()),
                    "confidence": float(self.confidence[inside].mean()),
                    "accuracy": float(self.right[inside].mean()),
                }
            )
        return found

    def calibration_error(self) -> float | None:
        """Expected calibration error: the mean over readings of |accuracy - mean confidence| of their bin, 0 to 1."""
        gaps = [abs(one["accuracy"] - one["confidence"]) * one["num_images"] for one in self.bins()]
        return ratio(sum(gaps), len(self.right))

    def _coverages(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.integer], npt.NDArray[np.integer]]:
        """Every threshold that readings have, descending; readings of at least that confidence; wrong ones of them."""
        order = np.argsort(-self.confidence, kind="stable")
        falling = self.confidence[order]
        last = np.flatnonzero(np.append(falling[1:] != falling[:-1], [True] * (len(falling) > 0)))
        wrong = np.cumsum(~self.right[order], dtype=np.int64)
        return falling[last], last + 1, wrong[last]

    def risk_coverage(self) -> list[dict[str, float]]:
        """The curve of R. El-Yaniv and Y. Wiener, "On the Foundations of Noise-free Selective Classification" (2010):
        for falling thresholds, at most `NUM_POINTS` of them, coverage (share of the readings that are as sure) and
        risk (share of these that are wrong)."""
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
        """The lowest confidence above which at least `precision` of the readings are right; None where there is none.

        coverage: share of the readings that are as sure. precision: share of these that are right, with its interval
        in precision_ci95; chosen on the same readings, so a little too good.
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
        """As it stands in `results.json`."""
        return {
            "calibration_error": self.calibration_error(),
            "bins": self.bins(),
            "threshold": self.threshold(),
            "risk_coverage": self.risk_coverage(),
        }
