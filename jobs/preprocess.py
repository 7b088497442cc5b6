"""Turn labeled images into shards: `python jobs/preprocess.py --corpus URI --labels folder --out URI`."""

from captcha_ray import cli

if __name__ == "__main__":
    cli.run("preprocess")
