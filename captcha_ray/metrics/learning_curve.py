"""Fit how accuracy grows with the number of training images, and how many a given accuracy needs.

The odds of a wrong string fall with a power of the number of images, as errors of many networks do (J. Hestness et al.,
"Deep Learning Scaling is Predictable, Empirically", 2017); odds stay below certainty.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from captcha_ray.metrics.counts import wilson_interval

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Shares of the training split that a curve is measured at."""

GOAL = 0.99
"""Share of whole strings that the answer is about."""

NUM_DRAWS = 500
"""Curves drawn for an interval."""

BEYOND = 100
"""An answer of more than this many times the images is a guess and is not given."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A network trained on so many images: `num_right` of `num_tested` strings are right."""

    num_images: int
    num_right: int
    num_tested: int

    @property
    def accuracy(self) -> float:
        """Return the share of whole strings."""
        return self.num_right / self.num_tested

    def to_dict(self) -> dict[str, Any]:
        """Return what `results.json` holds."""
        interval = wilson_interval(self.num_right, self.num_tested)
        return {
            "num_images": self.num_images,
            "num_tested": self.num_tested,
            "num_exact_match": self.num_right,
            "exact_match": self.accuracy,
            "exact_match_ci95": interval and list(interval),
        }


@dataclasses.dataclass(frozen=True)
class Curve:
    """A fitted curve: log odds of an error = intercept - slope * log(images)."""

    intercept: float
    slope: float

    @classmethod
    def fit(cls, points: Sequence[Point]) -> "Curve":
        """Return the likeliest curve through points of two or more numbers of images."""
        return cls(*_fit(points, np.array([[point.num_right for point in points]]))[0])

    def accuracy(self, num_images: float) -> float:
        """Return the share of whole strings after training on so many images."""
        return 1 / (1 + math.exp(self.intercept - self.slope * math.log(num_images)))

    def images_for(self, accuracy: float) -> float:
        """Return the images for that share; infinite if more do not help."""
        if self.slope <= 0:
            return math.inf
        exponent = (self.intercept + math.log(accuracy / (1 - accuracy))) / self.slope
        return math.exp(exponent) if exponent < 700 else math.inf


def _fit(points: Sequence[Point], right: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Return intercept and slope, (draws, 2), by binomial regression with Newton's method. right: (draws, points).

    Half an error and half a success are added to each point, as in D. Firth's correction for one proportion: without
    errors there would be no likeliest curve.
    """
    tested = np.array([point.num_tested for point in points], float) + 1
    wrong = tested - right - 0.5
    x = np.stack([np.ones(len(points)), -np.log([point.num_images for point in points])], 1)
    center = x[:, 1].mean()
    x[:, 1] -= center
    found = np.zeros((len(right), 2))
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(found @ x.T, -30, 30)))
        gradient = (wrong - tested * p) @ x
        curvature = np.einsum("dp,pi,pj->dij", tested * p * (1 - p), x, x) + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        found += np.clip(step, -2, 2)
    found[:, 0] -= center * found[:, 1]
    return found


def summary(points: Sequence[Point], seed: int = 0) -> dict[str, Any]:
    """Return points, curve and answer as JSON types; curve and answer are None for fewer than two numbers of images.

    images_for_goal: training images that `GOAL` needs; None if more than `BEYOND` times as many as there are. Its
    interval comes from curves through numbers drawn from the curve. From three points on, they are drawn with fewer
    test images if the points scatter more than chance would have them (Pearson's dispersion), as each point is one
    training.

    Args:
        points: Of the curve.
        seed: Of the draws.
    """
    found: dict[str, Any] = {"points": [point.to_dict() for point in points], "goal": GOAL, "curve": None}
    if len({point.num_images for point in points}) >= 2:
        curve = Curve.fit(points)
        expected = np.array([curve.accuracy(point.num_images) for point in points])
        tested = np.array([point.num_tested for point in points])
        off = [point.accuracy for point in points] - expected
        dispersion = (off**2 * tested / (expected * (1 - expected))).sum() / max(len(points) - 2, 1)
        fewer = np.maximum((tested / max(dispersion, 1)).astype(int), 1)
        drawn = np.random.default_rng(seed).binomial(fewer, expected, (NUM_DRAWS, len(points)))
        like = [Point(point.num_images, 0, int(n)) for point, n in zip(points, fewer, strict=True)]
        many = sorted(Curve(*row).images_for(GOAL) for row in _fit(like, drawn).tolist())
        low, high = many[round(0.025 * NUM_DRAWS)], many[round(0.975 * NUM_DRAWS) - 1]
        most = BEYOND * max(point.num_images for point in points)

        def told(images: float) -> int | None:
            return math.ceil(images) if images <= most else None

        found["curve"] = dataclasses.asdict(curve)
        found["images_for_goal"] = told(curve.images_for(GOAL))
        found["images_for_goal_ci95"] = [told(low), told(high)]
    found["answer"] = _answer(found)
    return found


def _answer(found: dict[str, Any]) -> str:
    """Return the answer as a sentence."""
    best, goal = found["points"][-1], f"{found['goal']:.0%}"
    reads = f"{best['exact_match']:.1%} of whole strings with {best['num_images']:,} images"
    least, most = best["exact_match_ci95"]
    unsure = f"{best['num_tested']:,} test images are too few to tell"
    if least >= found["goal"]:
        return f"{reads}, which is at least {goal}: more images are not needed for that"
    if best["exact_match"] >= found["goal"]:
        return f"{reads} (95 % interval {least:.1%} to {most:.1%}); whether {goal} is reached, {unsure}"
    return f"{reads}; " + (_outlook(found, goal, unsure) if found["curve"] else "too few images for a curve")


def _outlook(found: dict[str, Any], goal: str, unsure: str) -> str:
    """Return what the curve says about the images that the goal needs."""
    have, needed, (fewest, most) = (
        found["points"][-1]["num_images"],
        found["images_for_goal"],
        found["images_for_goal_ci95"],
    )
    low, high = (f"{n:,}" if n is not None else f"more than {BEYOND * have:,}" for n in found["images_for_goal_ci95"])
    if needed is None and fewest is None:
        helps = math.isfinite(Curve(**found["curve"]).images_for(found["goal"]))
        beyond = f"{goal} would take more than {BEYOND * have:,} images in all"
        return beyond if helps else f"{goal} cannot be reached with more images like these"
    if needed is None or (needed > have and most is None):
        return f"{goal} may take {low} to {high} images in all: {unsure}"
    if needed <= have:
        return (
            f"the curve puts {goal} at about {needed:,} (95 % interval {low} to {high}), fewer than there are, and "
            f"{found['points'][-1]['num_tested']:,} test images cannot tell more"
        )
    return f"about {needed - have:,} more images reach {goal}: {needed:,} in all (95 % interval {low} to {high})"
