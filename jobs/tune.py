"""Search a better recipe: `python jobs/tune.py --recipe NAME --shards URI --run URI --num-trials N`."""

from captcha_ray import cli

if __name__ == "__main__":
    cli.run("tune")
