"""python jobs/tune.py --recipe NAME --shards URI --run URI --num-trials N: searches for a better recipe."""

from captcha_ray import console
from captcha_ray.datasets.shards import open_shards
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.runtime import ray_session
from captcha_ray.training.recipe_file import load_recipe
from captcha_ray.tuning import search_space
from captcha_ray.tuning.config import TuneConfig


def main() -> None:
    config = console.parse(TuneConfig)
    recipe = load_recipe(config.recipe)
    searched = search_space.build(recipe, config.space, config.vary, only=config.only)
    run = RunDirectory(config.run)
    with ray_session.connect(meanwhile="captcha_ray.tuning.tuner") as resources:
        from captcha_ray.datasets import demo  # noqa: PLC0415 -- imported while Ray starts
        from captcha_ray.tuning import report, tuner  # noqa: PLC0415 -- imported while Ray starts

        resources.warn_without_gpu(config.gpus_per_trial > 0)
        ray_session.check_shared(shards=config.shards, run=config.run)
        demo.ensure_shards(config.shards)
        shards = open_shards(config.shards)
        found = tuner.run(config, recipe, searched, shards.manifest, shards.read("train"), shards.read("val"))
        page = report.write(run, searched, found)
        run.finish()
    for line in found.describe():
        console.say(line)
    console.say(f"report: {page}")
    if found.better:
        console.say(f"train it: python jobs/train.py --recipe {run.path('best.json')} --run URI")
    else:
        console.say(
            f"nothing is proved to be better than the recipe; the best trial's config is {run.path('best.json')}"
        )


if __name__ == "__main__":
    console.run(main)
