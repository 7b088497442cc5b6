"""python jobs/evaluate.py --run URI [--shards URI --split test | --corpus URI --labels folder]: measures a network.

With --folds K or --learning-curve: measures its recipe, by training it anew on parts of the images.
"""

import subprocess
import sys
from pathlib import Path

from captcha_ray import (
    cluster,
    console,
    datasets,
    decoding,
    diagnosis,
    evaluation,
    identity,
    room,
    runs,
    storage,
    studies,
)
from captcha_ray.config import EvaluateConfig


def main() -> None:
    config = console.parse(EvaluateConfig)
    run = runs.RunDirectory(config.run)
    if config.run == EvaluateConfig().run and storage.is_empty(run.uri):
        status = subprocess.run([sys.executable, str(Path(__file__).with_name("train.py"))], check=False).returncode
        if status:
            raise SystemExit(status)
    if config.trains:
        with cluster.connect():
            cluster.check_shared(run=config.run, shards=config.shards or run.shards)
            studies.study(config, run)
        return
    spec = identity.load_spec(run.uri)
    if config.out:
        storage.check_writable(storage.absolute(config.out).rpartition("/")[0])
    elif run.shards:
        storage.check_writable(run.uri)
    with cluster.connect():
        room.await_room(config.num_workers or 1, 1, config.use_gpu and config.num_workers > 0)
        shards = "" if config.corpus or config.table else config.shards or run.shards
        cluster.check_shared(run=config.run, shards=shards, corpus=config.corpus, table=config.table)
        source = datasets.open_labeled(config, run.shards, spec)
        found = evaluation.evaluate(source, run.uri, config.num_workers, config.use_gpu)
    if config.out:
        storage.write(storage.absolute(config.out), runs.to_json({source.name: found.summary()}))
    for line in evaluation.describe({source.name: found.summary()}):
        console.say(line)
    if not config.out and run.shards:  # a bare checkpoint is not ours to add to
        results = evaluation.publish(run, {source.name: found})
        console.say(f"report: {run.path('report.html')}")
        evaluation.warn(results)
    if useless := diagnosis.describe_useless(source.name, found.summary()) if config.corpus or config.table else "":
        console.warn(f"the network is of no use for these images, which may differ from those it learned: {useless}")
    if foreign := found.counts.num_foreign:
        console.warn(f"{foreign:,} characters of the labels are not in the network's alphabet, and count as wrong")
    if found.unread:
        console.warn(f"{found.unread.total():,} files do not count: {decoding.counted(found.unread)}")


if __name__ == "__main__":
    console.run(main)
