"""python jobs/train.py --recipe NAME --shards URI --run URI: trains a network, evaluates it and writes a report."""

from captcha_ray import cluster, console, datasets, runs
from captcha_ray.config import TrainConfig
from captcha_ray.schema import Split


def main() -> None:
    config = console.parse(TrainConfig, default=runs.load_recipe(console.option("recipe", TrainConfig().recipe)))
    run = runs.RunDirectory(config.run)
    if config.resume and run.finished:
        console.say(f"{run.uri} is finished already; nothing to do")
        return
    with cluster.connect(meanwhile="captcha_ray.training") as resources:
        from captcha_ray import demo, evaluation, selftraining, training  # noqa: PLC0415 -- while Ray starts

        resources.warn_without_gpu(config.use_gpu)
        cluster.check_shared(shards=config.shards, unlabelled=config.unlabelled, run=config.run)
        demo.ensure_shards(config.shards)
        shards = datasets.open_shards(config.shards)
        val = shards.labeled("val") if shards.manifest.num_images["val"] else None
        more = selftraining.prepare(config, shards, val, resources)
        train = shards.read("train")
        facts = training.fit(config, shards.manifest, train, val.dataset if val else None, resources, more)
        if val:
            facts["temperature"] = evaluation.calibrate(val.sample(evaluation.CALIBRATION_IMAGES), run.uri)
        split: Split = "test" if shards.manifest.num_images["test"] else "val" if val else "train"
        num_readers = 0 if resources.embedded and not config.use_gpu else config.workers[0]
        found = evaluation.evaluate(shards.labeled(split), run.uri, num_readers, config.use_gpu)
        results = evaluation.publish(run, {split: found}, **facts)
        run.finish()
    for line in evaluation.describe(results):
        console.say(line)
    console.say(f"report: {run.path('report.html')}")
    console.say(f"network: {run.path('checkpoint')}")
    evaluation.warn(results)


if __name__ == "__main__":
    console.run(main)
