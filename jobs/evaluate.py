"""python jobs/evaluate.py --run URI [--shards URI --split test | --corpus URI --labels folder]: measures a network.

With --folds K or --learning-curve: measures its recipe, by training it anew on parts of the images.
"""

import subprocess
import sys
from pathlib import Path

from captcha_ray import console
from captcha_ray.datasets import decoding
from captcha_ray.evaluation import evaluate, sources
from captcha_ray.evaluation.config import EvaluateConfig
from captcha_ray.experiments import cross_validation
from captcha_ray.models import fingerprint
from captcha_ray.runs.directory import RunDirectory, to_json
from captcha_ray.runtime import capacity, ray_session
from captcha_ray.storage import filesystem
from captcha_ray.training import diagnosis
from captcha_ray.training.results import publish, warn


def main() -> None:
    config = console.parse(EvaluateConfig)
    run = RunDirectory(config.run)
    if config.run == EvaluateConfig().run and filesystem.is_empty(run.uri):
        status = subprocess.run([sys.executable, str(Path(__file__).with_name("train.py"))], check=False).returncode
        if status:
            raise SystemExit(status)
    if config.trains:
        with ray_session.connect():
            ray_session.check_shared(run=config.run, shards=config.shards or run.shards)
            cross_validation.run_experiments(config, run)
        return
    spec = fingerprint.load_spec(run.uri)
    if config.out:
        filesystem.check_writable(filesystem.absolute(config.out).rpartition("/")[0])
    elif run.shards:
        filesystem.check_writable(run.uri)
    with ray_session.connect():
        capacity.wait_for_capacity(config.num_workers or 1, 1, config.use_gpu and config.num_workers > 0)
        shards = "" if config.corpus or config.table else config.shards or run.shards
        ray_session.check_shared(run=config.run, shards=shards, corpus=config.corpus, table=config.table)
        source = sources.open_labeled(config, run.shards, spec)
        found = evaluate.evaluate(source, run.uri, config.num_workers, config.use_gpu)
    if config.out:
        filesystem.write(filesystem.absolute(config.out), to_json({source.name: found.summary()}))
    for line in evaluate.describe({source.name: found.summary()}):
        console.say(line)
    if not config.out and run.shards:  # a bare checkpoint is not ours to add to
        results = publish(run, {source.name: found})
        console.say(f"report: {run.path('report.html')}")
        warn(results)
    if useless := diagnosis.describe_useless(source.name, found.summary()) if config.corpus or config.table else "":
        console.warn(f"the network is of no use for these images, which may differ from those it learned: {useless}")
    if out_of_charset := found.counts.num_out_of_charset:
        console.warn(
            f"{out_of_charset:,} characters of the labels are not in the network's alphabet, and count as wrong"
        )
    if found.unreadable:
        console.warn(f"{found.unreadable.total():,} files do not count: {decoding.counted(found.unreadable)}")


if __name__ == "__main__":
    console.run(main)
