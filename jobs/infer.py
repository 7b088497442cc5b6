"""Recognize what is new in a bucket: `python jobs/infer.py --images URI --run URI --out URI`."""

from captcha_ray import cli

if __name__ == "__main__":
    cli.run("infer")
