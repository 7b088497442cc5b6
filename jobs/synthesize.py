"""python jobs/synthesize.py --scheme text5 --num-images 20000 --out URI: draws a synthetic corpus."""

from captcha_ray import console
from captcha_ray.datasets import synthesize
from captcha_ray.datasets.config import SynthesizeConfig
from captcha_ray.runtime import capacity, ray_session


def main() -> None:
    config = console.parse(SynthesizeConfig)
    with ray_session.connect():
        capacity.wait_for_capacity(1, 1, 0)
        ray_session.check_shared(out=config.out)
        out = synthesize.synthesize(config)
    console.say(f"{config.num_images:,} images are in {out}")


if __name__ == "__main__":
    console.run(main)
