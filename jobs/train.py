"""python jobs/train.py --recipe NAME --shards URI --run URI: trains a network, evaluates it and writes a report."""

from captcha_ray import console
from captcha_ray.datasets.shards import open_shards
from captcha_ray.datasets.splits import Split
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.runtime import ray_session
from captcha_ray.training.config import TrainConfig
from captcha_ray.training.recipe_file import load_recipe


def main() -> None:
    config = console.parse(TrainConfig, default=load_recipe(console.option("recipe", TrainConfig().recipe)))
    run = RunDirectory(config.run)
    if config.resume and run.finished:
        console.say(f"{run.uri} is finished already; nothing to do")
        return
    with ray_session.connect(meanwhile="captcha_ray.training.trainer") as resources:
        from captcha_ray.datasets import demo  # noqa: PLC0415 -- while Ray starts
        from captcha_ray.evaluation import evaluate  # noqa: PLC0415 -- while Ray starts
        from captcha_ray.training import pseudo_labels  # noqa: PLC0415 -- while Ray starts
        from captcha_ray.training.results import publish, warn  # noqa: PLC0415 -- while Ray starts
        from captcha_ray.training.trainer import fit  # noqa: PLC0415 -- while Ray starts

        resources.warn_without_gpu(config.use_gpu)
        ray_session.check_shared(shards=config.shards, unlabeled=config.unlabeled, run=config.run)
        demo.ensure_shards(config.shards)
        shards = open_shards(config.shards)
        val = shards.labeled("val") if shards.manifest.num_images["val"] else None
        more = pseudo_labels.prepare(config, shards, val, resources)
        train = shards.read("train")
        facts = fit(config, shards.manifest, train, val.dataset if val else None, resources, more)
        if val:
            facts["temperature"] = evaluate.calibrate(val.sample(evaluate.CALIBRATION_IMAGES), run.uri)
        split: Split = "test" if shards.manifest.num_images["test"] else "val" if val else "train"
        num_readers = 0 if resources.embedded and not config.use_gpu else config.workers[0]
        found = evaluate.evaluate(shards.labeled(split), run.uri, num_readers, config.use_gpu)
        results = publish(run, {split: found}, **facts)
        run.finish()
    for line in evaluate.describe(results):
        console.say(line)
    console.say(f"report: {run.path('report.html')}")
    console.say(f"network: {run.path('checkpoint')}")
    warn(results)


if __name__ == "__main__":
    console.run(main)
