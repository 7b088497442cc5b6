"""Race the settings of a recipe by validation, for `train --auto thorough`: a search over one parameter."""

import dataclasses
from typing import Any

from captcha_ray import console
from captcha_ray.datasets.shards import Shards
from captcha_ray.experiments.subsets import with_one_worker
from captcha_ray.models.transfer import check_source
from captcha_ray.recipes.auto_config import resolve
from captcha_ray.recipes.config import RESUME_MAY_DIFFER, Setting, TrainConfig
from captcha_ray.recipes.settings import worth_a_trial
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.storage import filesystem
from captcha_ray.training.trainer import check_batches, model_spec
from captcha_ray.tuning import report, scheduler, search_space, tuner
from captcha_ray.tuning.config import TuneConfig
from captcha_ray.tuning.trials import SearchResult

CONFIRMING_SEEDS = 2
"""Trainings in full of the winner and of the rules each. A winner that is no better on average was lucky."""

DECISION = "race.json"
"""File in the race's folder that holds what `run` returns."""


def run(config: TrainConfig, shards: Shards) -> tuple[Setting, dict[str, Any]]:
    """Return the setting that wins, and what `results.json` says about the race.

    If the config says resume, a race that was interrupted goes on, one that is over is not run again, and a training
    that has begun keeps its setting.

    Raises:
        InputError: The shards have no validation split or do not fit the recipe, or a folder holds something else.
        JobError: No setting gave a network.
    """
    own, directory = RunDirectory(config.run), RunDirectory(f"{config.run.rstrip('/')}-race")
    begun = config.resume and filesystem.exists(own.path("config.json"))
    if begun or (config.resume and directory.finished):
        decided = directory.path(DECISION)
        facts = directory.read_json(DECISION) if filesystem.exists(decided) else {}
        return (own.read_json("config.json").get("setting", "rules") if begun else facts["setting"]), facts
    if not config.resume:
        own.check_free()
    search, recipe = _search(config, directory.uri, shards)
    space = search_space.build(recipe, "", search.vary, only=True)
    console.say(f"{search.num_trials} settings race by validation in {directory.uri}")
    result = tuner.run(search, recipe, space, shards.manifest, shards.read("train"), shards.read("val"))
    facts = {**_decide(result), "report": report.write(directory, space, result)}
    console.say(f"setting {facts['setting']} is trained; {result.verdict}", setting=facts["setting"])
    directory.write_json(DECISION, facts)
    directory.finish()
    return facts["setting"], facts


def _search(config: TrainConfig, uri: str, shards: Shards) -> tuple[TuneConfig, TrainConfig]:
    """Return the search and its recipe. Raises InputError for what would only fail after the race."""
    manifest = shards.manifest
    trained = resolve(dataclasses.replace(config, auto="rules"), manifest)
    spec = model_spec(trained, manifest)
    if trained.init:
        check_source(spec, trained.init)
    check_batches(trained, manifest)
    defaults = TrainConfig()
    recipe = dataclasses.replace(
        with_one_worker(config, use_gpu=False),
        **{name: getattr(defaults, name) for name in RESUME_MAY_DIFFER},  # so that a race may go on with others
    )
    raced = worth_a_trial(resolve(recipe, manifest))
    search = TuneConfig(
        recipe=config.recipe,
        shards=config.shards,
        run=uri,
        num_trials=len(raced),
        hours=config.race_hours,
        search="grid",
        scheduler="asha" if scheduler.rungs(trained.epochs)[0] >= tuner.FEW_EPOCHS else "none",
        only=True,
        vary=(f"setting={','.join(raced)}",),
        final_seeds=CONFIRMING_SEEDS,
        cpus_per_worker=config.cpus_per_worker,
        gpus_per_trial=float(config.use_gpu),
        seed=config.seed,
        resume=config.resume,
    )
    return search, recipe


def _decide(result: SearchResult) -> dict[str, Any]:
    """Return the setting to train: the best of the race if it is better than the rules in the mean of the seeds."""
    best: Setting = result.best.values["setting"]
    confirmed = result.comparison is not None and result.comparison.difference > 0
    tried = [
        {"setting": one.values["setting"], "exact_match": one.accuracy, "epochs": len(one.epochs), "status": one.status}
        for one in result.trials
    ]
    return {"setting": best if confirmed else "rules", "best": best, "verdict": result.verdict, "tried": tried}
