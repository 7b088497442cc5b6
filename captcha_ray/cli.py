"""The console script `captcha-ray VERB`: reads the verb's flags, calls its function in `api`, prints what it has made.

`python jobs/VERB.py` and `python -m captcha_ray.cli VERB` do the same.
"""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from captcha_ray import api, console
from captcha_ray.datasets import decoding
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.evaluation.config import EvaluateConfig, ExportConfig
from captcha_ray.inference.config import InferConfig
from captcha_ray.models.fingerprint import find_checkpoint
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.recipes.file import load_recipe
from captcha_ray.storage import filesystem
from captcha_ray.synthesis.config import SynthesizeConfig
from captcha_ray.training import diagnosis
from captcha_ray.tuning.config import TuneConfig


def synthesize() -> None:
    """Draw a synthetic corpus."""
    config = console.parse(SynthesizeConfig)
    out = api.synthesize(config)
    console.say(f"{config.num_images:,} images are in {out}")


def preprocess() -> None:
    """Turn labeled images into shards."""
    config = console.parse(PreprocessConfig)
    manifest = api.preprocess(config)
    if not config.check:
        for line in manifest.describe():
            console.say(line)
        console.say(f"shards are in {config.out}")


def train() -> None:
    """Train a network, measure it and write a report."""
    config = console.parse(TrainConfig, default=load_recipe(console.option("recipe", TrainConfig().recipe)))
    result = api.train(config)
    _print_results(result.results)
    console.say(f"report: {result.report}")
    console.say(f"network: {result.checkpoint}")
    _advise(result.results)


def evaluate() -> None:
    """Measure a network on images it has not seen, or its recipe by cross-validation."""
    config = console.parse(EvaluateConfig)
    if config.run == EvaluateConfig().run:
        _train_first(config.run)
    result = api.evaluate(config)
    evaluation = result.evaluation
    if evaluation is None:
        return
    summary = evaluation.summary()
    _print_results({result.name: summary})
    if result.report:
        console.say(f"report: {result.report}")
        _advise(result.results)
    elsewhere = config.corpus or config.table
    if elsewhere and (useless := diagnosis.describe_useless(result.name, summary)):
        console.warn(
            f"the network is of no use for these images, which may differ from those it learned from: {useless}"
        )
    if number := evaluation.counts.num_out_of_charset:
        console.warn(f"{number:,} characters of the labels are not in the network's alphabet, and count as wrong")
    if evaluation.unreadable:
        total = evaluation.unreadable.total()
        console.warn(f"{total:,} files do not count: {decoding.counted(evaluation.unreadable)}")


def export() -> None:
    """Write a network's ONNX models anew and measure what each precision loses."""
    config = console.parse(ExportConfig)
    if config.run == ExportConfig().run:
        _train_first(config.run)
    measured = api.export(config)
    from captcha_ray.evaluation.exporting import describe  # noqa: PLC0415 -- imported with torch by then

    for line in describe(measured):
        console.say(line)
    console.say(f"models are in {find_checkpoint(filesystem.absolute(config.run))}")


def tune() -> None:
    """Search a better recipe."""
    result = api.tune(console.parse(TuneConfig))
    for line in result.search.describe():
        console.say(line)
    console.say(f"report: {result.report}")
    if result.search.better:
        console.say(f"train it: python jobs/train.py --recipe {result.best} --run URI")
    else:
        console.say(f"nothing is proved to be better than the recipe; the best trial's config is {result.best}")


def infer() -> None:
    """Recognize what is new in a bucket and append it to a Parquet table."""
    config = console.parse(InferConfig)
    if config.run == InferConfig().run:
        _train_first(config.run, "--recipe", "demo-text5", "--shards", "demo/shards/text5")
    console.say(api.infer(config).describe())


VERBS: dict[str, Callable[[], None]] = {
    "synthesize": synthesize,
    "preprocess": preprocess,
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "tune": tune,
    "infer": infer,
}

USAGE = """usage: captcha-ray VERB [OPTIONS]

Recognize text in small images, in bulk. VERB is one of:

{verbs}

`captcha-ray VERB --help` lists the options with units and defaults. Without options a verb runs on a small synthetic
corpus. Exit status: 0 done, 2 bad arguments or input, 1 failure, 130 and 143 interrupted."""


def main() -> None:
    """Run the verb that the command line names."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb in VERBS:
        sys.argv[:2] = [f"captcha-ray {verb}"]
        run(verb)
        return
    usage = USAGE.format(verbs="\n".join(f"  {name:<11} {job.__doc__}" for name, job in VERBS.items()))
    if verb in ("-h", "--help"):
        print(usage)
        return
    print(usage, file=sys.stderr)
    if verb:
        print(f"error: there is no verb {verb!r}", file=sys.stderr)
    raise SystemExit(2)


def run(verb: str) -> None:
    """Run one verb with the flags of the command line; the process ends with the verb's exit status."""

    def job() -> None:
        console.bind(job=verb)
        VERBS[verb]()

    console.run(job)


def _train_first(run: str, *flags: str) -> None:
    """Train the network that a verb without options works with, or finish its training, if it is not there yet.

    A failure ends this process with its status.
    """
    if filesystem.exists(filesystem.join(filesystem.absolute(run), "_SUCCESS")):
        return
    command = [sys.executable, "-m", "captcha_ray.cli", "train", "--run", run, *flags, "--resume"]
    if status := subprocess.run(command, check=False).returncode:
        raise SystemExit(status)


def _print_results(results: dict[str, object]) -> None:
    from captcha_ray.evaluation.evaluate import describe  # noqa: PLC0415 -- imported with torch by then

    for line in describe(results):
        console.say(line)


def _advise(results: dict[str, Any]) -> None:
    """Warn of a network that is of no use, or tell where it says what may make it better."""
    for sentence in results.get("warnings", ()):  # a run of an earlier version may lack both
        console.warn(sentence)
    if results.get("next_steps"):
        console.say("the report says under `What next?` what may make the network better")


if __name__ == "__main__":
    main()
