"""python jobs/preprocess.py --corpus URI --labels folder --out URI: labeled images to shards."""

from captcha_ray import console
from captcha_ray.datasets import demo, preprocess
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.runtime import capacity, ray_session


def main() -> None:
    config = console.parse(PreprocessConfig)
    with ray_session.connect():
        capacity.wait_for_capacity(1, 1, 0)
        ray_session.check_shared(corpus="" if config.table else config.corpus, table=config.table, out=config.out)
        demo.ensure_corpus(config.corpus)
        manifest = preprocess.preprocess(config)
    for line in manifest.describe():
        console.say(line)
    console.say(f"shards are in {config.out}")


if __name__ == "__main__":
    console.run(main)
