"""Measure a network: `python jobs/evaluate.py --run URI [--split test | --corpus URI --labels folder]`.

With --folds K or --learning-curve it measures the run's recipe, by training networks on parts of the images.
"""

from captcha_ray import cli

if __name__ == "__main__":
    cli.run("evaluate")
