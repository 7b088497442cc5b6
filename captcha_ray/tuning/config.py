"""Settings of `tune`; the docstring under a field is its `--help`."""

import dataclasses
import math
from typing import Annotated, Literal

from captcha_ray.config import DEMO, NOT_NEGATIVE, Config, at_least
from captcha_ray.errors import check

Scheduler = Literal["asha", "none"]


DEMO_SHARDS = f"{DEMO}/shards/digits"

Search = Literal["optuna", "random", "grid"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneConfig(Config):
    """Search a recipe's parameters for a better recipe, and test by validation whether it is better."""

    recipe: str = ""
    """Recipe to start from: a name, or the URI of a best.json or of a run's config.json. Empty for auto, as in train,
    or for demo-digits with the default --shards."""
    shards: str = DEMO_SHARDS
    """Folder or s3:// URI that jobs/preprocess.py wrote; trials train on images of their size. The default one is made
    on first use."""
    run: str = f"{DEMO}/tune/digits"
    """Folder or s3:// URI for trials, table and report; must not hold another run."""
    num_trials: Annotated[int, at_least(1)] = 20
    """Trials to run; the first has the recipe's own values, if the space holds them. A resumed search may have more."""
    hours: Annotated[float, NOT_NEGATIVE] = 0.0
    """Begin no more trials, of --num-trials at most, once the time left of so many hours is needed to finish the best.
    Time before a --resume counts up to the last trial that ended; the comparison comes on top. 0 for no limit."""
    epochs: Annotated[int, at_least(0)] = 0
    """Most passes of a trial over the training split; 0 takes the recipe's."""
    search: Search = "optuna"
    """Propose values by optuna (tree-structured Parzen estimator), random, or grid (all combinations)."""
    scheduler: Scheduler = "asha"
    """asha stops trials after 1/6 and 1/2 of the epochs and promotes the best quarter; none trains all to the end."""
    space: str = ""
    """TOML file of the parameters to vary: name = [a, b], { low = a, high = b, log = true }, true or false."""
    vary: tuple[str, ...] = ()
    """Parameters to vary, after the file and besides learning_rate, batch_size, dropout, schedule and augmentation,
    which are varied anyway: name, name=a,b,c, name=low..high, name=low..high:log or name=off."""
    only: bool = False
    """Vary only what --space and --vary name."""
    final_seeds: Annotated[int, at_least(0)] = 3
    """Full trainings with different seeds, of the best trial's config and of the recipe each, that are compared at the
    end; 0 for no comparison; 1 cannot tell the luck of a seed."""
    workers_per_trial: Annotated[int, at_least(1)] = 1
    """Data-parallel workers of one trial."""
    cpus_per_worker: Annotated[int, at_least(1)] = 1
    """CPU cores each worker reserves."""
    gpus_per_trial: float = 0.0
    """GPUs a trial reserves; a fraction lets several trials share one. For several workers, one GPU each."""
    max_concurrent: Annotated[int, at_least(0)] = 0
    """Most trials at a time; 0 for as many as fit."""
    seed: Annotated[int, at_least(0)] = 0
    """Seeds proposals and trainings; the trainings at the end use the seeds after it."""
    resume: bool = False
    """Continue the search in --run after an interruption, or with more --num-trials; start it where there is none."""

    @property
    def starting_recipe(self) -> str:
        """Return the name or URI of the recipe to start from."""
        return self.recipe or ("demo-digits" if self.shards == DEMO_SHARDS else "auto")

    def __post_init__(self) -> None:
        super().__post_init__()
        gpus = self.gpus_per_trial
        check(
            0 <= gpus < 1 or (math.isfinite(gpus) and gpus > 0 and gpus == int(gpus)),
            f"gpus_per_trial is {gpus}; it must be a fraction of one GPU or a whole number of them",
        )
        check(
            self.workers_per_trial == 1 or gpus in (0, self.workers_per_trial),
            f"gpus_per_trial is {gpus}; {self.workers_per_trial} workers take 0 or {self.workers_per_trial} GPUs",
        )
        check(self.workers_per_trial > 1 or gpus <= 1, f"gpus_per_trial is {gpus}; a single worker takes one at most")
        check(bool(self.shards) and bool(self.run), "shards and run must each name a folder or a URI")
