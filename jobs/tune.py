"""python jobs/tune.py --recipe NAME --shards URI --run URI --num-trials N: searches for a better recipe."""

from captcha_ray import cluster, console, datasets, runs, space
from captcha_ray.config import TuneConfig


def main() -> None:
    config = console.parse(TuneConfig)
    recipe = runs.load_recipe(config.recipe)
    searched = space.build(recipe, config.space, config.vary, only=config.only)
    run = runs.RunDirectory(config.run)
    with cluster.connect(meanwhile="captcha_ray.search") as resources:
        from captcha_ray import demo, search, search_report  # noqa: PLC0415 -- imported while Ray starts

        resources.warn_without_gpu(config.gpus_per_trial > 0)
        cluster.check_shared(shards=config.shards, run=config.run)
        demo.ensure_shards(config.shards)
        shards = datasets.open_shards(config.shards)
        found = search.run(config, recipe, searched, shards.manifest, shards.read("train"), shards.read("val"))
        page = search_report.write(run, searched, found)
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
