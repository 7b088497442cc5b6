"""Draw a synthetic corpus: `python jobs/synthesize.py --scheme text5 --num-images 20000 --out URI`."""

from captcha_ray import cli

if __name__ == "__main__":
    cli.run("synthesize")
