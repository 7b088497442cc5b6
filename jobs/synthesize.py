"""python jobs/synthesize.py --scheme text5 --num-images 20000 --out URI: draws a synthetic corpus."""

from captcha_ray import cluster, console, room, synthesis
from captcha_ray.config import SynthesizeConfig


def main() -> None:
    config = console.parse(SynthesizeConfig)
    with cluster.connect():
        room.await_room(1, 1, 0)
        cluster.check_shared(out=config.out)
        out = synthesis.synthesize(config)
    console.say(f"{config.num_images:,} images are in {out}")


if __name__ == "__main__":
    console.run(main)
