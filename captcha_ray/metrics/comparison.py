"""Compare two trainings over the same images and seeds. numpy only."""

import dataclasses

import numpy as np
import numpy.typing as npt

NUM_DRAWS = 100_000
"""Random draws behind an interval."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Exact match in validation of the best trial's config and of the recipe, over the same images and seeds.

    difference: best minus recipe. low, high: its 95 % interval.
    """

    best: float
    recipe: float
    difference: float
    low: float
    high: float
    num_images: int
    num_seeds: int

    @property
    def verdict(self) -> str:
        """Return a sentence that says which is better."""
        luck = "" if self.num_seeds > 1 else ", without the luck of seeds"
        between = f"{self.difference:+.2%} (95 % interval {self.low:+.2%} to {self.high:+.2%}{luck})"
        read = f"the best trial's config recognizes {self.best:.2%}, the recipe {self.recipe:.2%}"
        if self.low > 0:
            return f"{read}, which is more: {between}"
        if self.high < 0:
            return f"{read}, which is less: {between}"
        return f"{read}, a difference that may be noise: {between}"


def compare(best: npt.NDArray[np.bool_], recipe: npt.NDArray[np.bool_], seed: int = 0) -> Comparison:
    """Compare two recipes, each trained with several seeds.

    The interval counts the luck of seeds and of images: the difference has the variance of the seeds' means, by
    Student's t, and that of the images' means beyond what seeds explain (two-way random effects). With a single seed
    its luck is unknown and left out.

    Args:
        best: bool (seeds, images), whether the training of that seed gets that image right.
        recipe: The same of the recipe, over the same images.
        seed: Of the draws.
    """
    assert best.shape == recipe.shape
    seeds, images = best.shape
    random = np.random.default_rng(seed)
    gain = best.mean(0) - recipe.mean(0)
    by_image = gain.var(ddof=1) / images
    noise = np.zeros(NUM_DRAWS)
    if seeds > 1:
        by_seed = sum(one.mean(1).var(ddof=1) / seeds for one in (best, recipe))
        within = sum(one.var(0, ddof=1).mean() / (seeds * images) for one in (best, recipe))
        by_image = max(by_image - within, 0.0)
        noise += np.sqrt(by_seed) * random.standard_t(2 * (seeds - 1), NUM_DRAWS)
    noise += np.sqrt(by_image) * random.standard_normal(NUM_DRAWS)
    difference = float(gain.mean())
    low, high = (float(v) for v in np.clip(difference + np.quantile(noise, [0.025, 0.975]), -1, 1))
    return Comparison(float(best.mean()), float(recipe.mean()), difference, low, high, images, seeds)
