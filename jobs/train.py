"""Train a network, measure it and write a report: `python jobs/train.py --recipe NAME --shards URI --run URI`."""

from captcha_ray import cli

if __name__ == "__main__":
    cli.run("train")
