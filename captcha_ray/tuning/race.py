"""Race the settings of a recipe by validation, for `train --auto thorough`: a search over one parameter."""

import dataclasses
from typing import Any, get_args

from captcha_ray import console
from captcha_ray.datasets.shards import Shards
from captcha_ray.recipes.auto_config import resolve
from captcha_ray.recipes.config import RESUME_MAY_DIFFER, Setting, TrainConfig
from captcha_ray.recipes.settings import worth_a_trial
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.tuning import report, scheduler, search_space, tuner
from captcha_ray.tuning.config import TuneConfig

CONFIRMING_SEEDS = 2
"""Trainings in full of the winner and of the rules each. A winner that is no better on average was lucky."""


def run(config: TrainConfig, shards: Shards) -> tuple[Setting, dict[str, Any]]:
    """Return the setting that wins, and what `results.json` says about the race.

    A race that was interrupted goes on if the config says resume; one that is over is not run again.

    Raises:
        InputError: The shards have no validation split or do not fit the recipe, or a folder holds something else.
        JobError: No setting gave a network.
    """
    if not config.resume:
        RunDirectory(config.run).check_free()
    defaults = TrainConfig()  # of what may differ where a race goes on
    recipe = dataclasses.replace(config, **{name: getattr(defaults, name) for name in RESUME_MAY_DIFFER})
    resolved = resolve(recipe, shards.manifest)
    raced = worth_a_trial(resolved)
    search = TuneConfig(
        recipe=config.recipe,
        shards=config.shards,
        run=f"{config.run.rstrip('/')}-race",
        num_trials=len(raced),
        hours=config.race_hours,
        search="grid",
        scheduler="asha" if scheduler.rungs(resolved.epochs)[0] >= tuner.FEW_EPOCHS else "none",
        only=True,
        vary=(f"setting={','.join(raced)}",),
        final_seeds=CONFIRMING_SEEDS,
        cpus_per_worker=config.cpus_per_worker,
        gpus_per_trial=float(config.use_gpu),
        seed=config.seed,
        resume=config.resume,
    )
    space = search_space.build(recipe, "", search.vary, only=True)
    directory = RunDirectory(search.run)
    console.say(f"{len(raced)} settings race by validation in {directory.uri}")
    result = tuner.run(search, recipe, space, shards.manifest, shards.read("train"), shards.read("val"))
    page = report.write(directory, space, result)
    directory.finish()
    confirmed = result.comparison is not None and result.comparison.difference > 0
    won: Setting = result.best.values["setting"] if confirmed else get_args(Setting)[0]
    console.say(f"setting {won} is trained; {result.verdict}", setting=won)
    tried = [
        {"setting": one.values["setting"], "exact_match": one.accuracy, "epochs": len(one.epochs), "status": one.status}
        for one in result.trials
    ]
    return won, {"setting": won, "verdict": result.verdict, "tried": tried, "report": page}
