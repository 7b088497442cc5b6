"""python jobs/preprocess.py --corpus URI --labels folder --out URI: labeled images to shards."""

from captcha_ray import cluster, console, corpus, demo, room
from captcha_ray.config import PreprocessConfig


def main() -> None:
    config = console.parse(PreprocessConfig)
    with cluster.connect():
        room.await_room(1, 1, 0)
        cluster.check_shared(corpus="" if config.table else config.corpus, table=config.table, out=config.out)
        demo.ensure_corpus(config.corpus)
        manifest = corpus.preprocess(config)
    for line in manifest.describe():
        console.say(line)
    console.say(f"shards are in {config.out}")


if __name__ == "__main__":
    console.run(main)
