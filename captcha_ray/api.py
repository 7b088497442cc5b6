"""The verbs of this package as Python functions: each takes a config and returns what it has made.

Each connects to the cluster that `RAY_ADDRESS` names, or starts a Ray of its own for as long as it needs one. A process
that is connected already keeps its connection. Progress is printed as the jobs print it. All of them raise InputError
for bad arguments or input, and JobError where the work fails for another reason.
"""

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from captcha_ray import console
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.datasets.schema import Manifest
from captcha_ray.errors import InputError
from captcha_ray.evaluation.config import EvaluateConfig, ExportConfig
from captcha_ray.inference.config import InferConfig
from captcha_ray.models import fingerprint
from captcha_ray.recipes.config import RESUME_MAY_DIFFER, TrainConfig
from captcha_ray.recipes.file import load_recipe
from captcha_ray.runs.directory import RunDirectory, to_json
from captcha_ray.storage import filesystem
from captcha_ray.synthesis.config import SynthesizeConfig
from captcha_ray.tuning import search_space
from captcha_ray.tuning.config import TuneConfig

if TYPE_CHECKING:
    from captcha_ray.datasets.splits import Split
    from captcha_ray.evaluation.evaluate import Evaluation
    from captcha_ray.inference.job import NightSummary
    from captcha_ray.tuning.trials import SearchResult

__all__ = ["evaluate", "export", "infer", "load_recipe", "preprocess", "synthesize", "train", "tune"]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished training. run: URI of its directory. results: what its `results.json` holds."""

    run: str
    results: dict[str, Any]

    @property
    def report(self) -> str:
        """Return the URI of the report, an HTML page."""
        return filesystem.join(self.run, "report.html")

    @property
    def checkpoint(self) -> str:
        """Return the URI of the folder with the network, which `Recognizer.load` takes."""
        return filesystem.join(self.run, "checkpoint")


@dataclasses.dataclass(frozen=True)
class EvaluateResult:
    """Measurements of a network. results: the run's `results.json` where they were added to it, else these alone.

    name: of the split or corpus. evaluation: counts and mistakes; None where networks were trained for the measurement
    (`folds`, `learning_curve`). report: URI of the run's report; empty where it was left alone.
    """

    results: dict[str, Any]
    name: str = ""
    evaluation: "Evaluation | None" = None
    report: str = ""


@dataclasses.dataclass(frozen=True)
class TuneResult:
    """A finished search. best: URI of the best trial's config, a recipe for `train`. report: URI of an HTML page."""

    search: "SearchResult"
    best: str
    report: str


def synthesize(config: SynthesizeConfig) -> str:
    """Draw a synthetic corpus and return its URI."""
    from captcha_ray.runtime import capacity, ray_session  # noqa: PLC0415 -- imports Ray

    with ray_session.connect():
        from captcha_ray.synthesis import corpus as drawing  # noqa: PLC0415 -- not all verbs need it

        capacity.wait_for_capacity(1, 1, 0)
        ray_session.check_shared(out=config.out)
        return drawing.synthesize(config)


def preprocess(config: PreprocessConfig) -> Manifest:
    """Turn a corpus of labeled images into shards at `config.out` and return their manifest."""
    from captcha_ray.runtime import capacity, ray_session  # noqa: PLC0415 -- imports Ray

    with ray_session.connect():
        from captcha_ray.datasets import preprocess as preprocessing  # noqa: PLC0415
        from captcha_ray.synthesis import demo  # noqa: PLC0415 -- not all verbs need it

        capacity.wait_for_capacity(1, 1, 0)
        ray_session.check_shared(corpus="" if config.table else config.corpus, table=config.table, out=config.out)
        if config.labels != "table" and not config.check:
            demo.ensure_corpus(config.corpus)
        return preprocessing.preprocess(config)


def train(config: TrainConfig) -> TrainResult:
    """Train a network, fit its temperature, export it, measure it on the test split and write its report.

    The defaults of `TrainConfig` are those of no recipe; `load_recipe("auto", shards=..., run=...)` gives a recipe's.
    A run that is finished already is returned as it is if `config.resume` is set.
    """
    run = RunDirectory(config.run)
    if config.resume and run.finished:
        decided = ("setting",) if config.auto == "thorough" else ()
        run.check_config(config.absolute().to_dict(), (*RESUME_MAY_DIFFER, *decided))
        console.say(f"{run.uri} is finished already; nothing to do")
        return TrainResult(run.uri, run.read_json("results.json"))
    from captcha_ray.runtime import ray_session  # noqa: PLC0415 -- imports Ray

    with ray_session.connect(meanwhile="captcha_ray.training.trainer") as cluster:
        # torch takes seconds to import; Ray starts meanwhile
        from captcha_ray.datasets.shards import open_shards  # noqa: PLC0415
        from captcha_ray.evaluation import exporting  # noqa: PLC0415
        from captcha_ray.evaluation.evaluate import CALIBRATION_IMAGES, calibrate, evaluate  # noqa: PLC0415
        from captcha_ray.synthesis import demo  # noqa: PLC0415
        from captcha_ray.training import pseudo_labels, results, trainer  # noqa: PLC0415

        cluster.warn_without_gpu(config.use_gpu)
        init = fingerprint.shared(config.init)
        ray_session.check_shared(shards=config.shards, unlabeled=config.unlabeled, init=init, run=config.run)
        demo.ensure_shards(config.shards)
        shards = open_shards(config.shards)
        val = shards.labeled("val") if shards.manifest.num_images["val"] else None
        more = pseudo_labels.prepare(config, shards, val, cluster)
        facts: dict[str, Any] = {}
        if config.auto == "thorough":
            from captcha_ray.tuning import race  # noqa: PLC0415 -- imports Ray Tune and Optuna

            setting, raced = race.run(config.absolute(), shards)
            facts |= {"race": raced} if raced else {}
            config = dataclasses.replace(config, auto="rules", setting=setting)
        facts |= trainer.fit(config, shards, cluster, more)
        sample = val.sample(CALIBRATION_IMAGES) if val else None
        if sample is not None:
            facts["temperature"] = calibrate(sample, run.uri)
        exporting.export(run.uri, sample)
        split: Split = "test" if shards.manifest.num_images["test"] else "val" if val else "train"
        num_actors = 0 if cluster.embedded and not config.use_gpu else config.workers[0]
        evaluation = evaluate(shards.labeled(split), run.uri, num_actors, config.use_gpu)
        published = results.publish(run, {split: evaluation}, **facts)
        run.finish()
    return TrainResult(run.uri, published)


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Measure a network on labeled images, or its recipe by training it anew on parts of its shards."""
    from captcha_ray.runtime import capacity, ray_session  # noqa: PLC0415 -- imports Ray

    run = RunDirectory(config.run)
    if config.trains:
        with ray_session.connect():
            from captcha_ray.experiments import cross_validation  # noqa: PLC0415 -- imports torch

            ray_session.check_shared(run=config.run, shards=config.shards or run.shards)
            cross_validation.run_experiments(config, run)
        return EvaluateResult(run.read_json("results.json"), report=run.path("report.html"))
    from captcha_ray.evaluation import evaluate as measuring  # noqa: PLC0415 -- imports torch
    from captcha_ray.evaluation import sources  # noqa: PLC0415
    from captcha_ray.training.results import publish  # noqa: PLC0415

    model = fingerprint.absolute(config.run)
    spec = config.restriction.spec(fingerprint.load_spec(model))
    own = fingerprint.shared(config.run)
    own_shards = run.shards if own else ""
    adds = bool(own_shards) and config.as_trained  # a bare checkpoint is not ours to add to
    if config.out:
        filesystem.check_writable(filesystem.absolute(config.out).rpartition("/")[0])
    elif adds:
        filesystem.check_writable(run.uri)
    with ray_session.connect():
        capacity.wait_for_capacity(config.num_workers or 1, 1, config.use_gpu and config.num_workers > 0)
        shards = "" if config.corpus or config.table else config.shards or own_shards
        ray_session.check_shared(run=own, shards=shards, corpus=config.corpus, table=config.table)
        source = sources.open_labeled(config, own_shards, spec)
        how = (config.num_workers, config.use_gpu, config.restriction, config.engine, config.precision)
        evaluation = measuring.evaluate(source, model, *how)
    alone = {source.name: evaluation.summary()}
    if config.out:
        filesystem.write(filesystem.absolute(config.out), to_json(alone))
    elif adds:
        published = publish(run, {source.name: evaluation})
        return EvaluateResult(published, source.name, evaluation, run.path("report.html"))
    return EvaluateResult(alone, source.name, evaluation)


def export(config: ExportConfig) -> dict[str, Any]:
    """Write a network's ONNX models anew and return what was measured of them, see `exporting.export`.

    Without validation images, or for a checkpoint that knows of no shards, there is a model in fp32 alone.
    """
    from captcha_ray.runtime import ray_session  # noqa: PLC0415 -- imports Ray

    run = RunDirectory(config.run)
    spec = fingerprint.load_spec(run.uri)
    filesystem.check_writable(run.uri)
    own_shards = run.shards
    with ray_session.connect(meanwhile="captcha_ray.evaluation.exporting"):
        from captcha_ray.datasets.shards import open_shards  # noqa: PLC0415 -- not all verbs need it
        from captcha_ray.evaluation import exporting, sources  # noqa: PLC0415 -- imports torch
        from captcha_ray.evaluation.evaluate import CALIBRATION_IMAGES  # noqa: PLC0415

        shards = config.shards or own_shards
        ray_session.check_shared(run=run.uri, shards=shards)
        if not config.shards and shards and not filesystem.exists(filesystem.join(shards, "manifest.json")):
            raise InputError(f"the shards of this run, {shards}, are gone; --shards names others")
        if not shards or not open_shards(shards).manifest.num_images["val"]:
            return exporting.export(run.uri, None)
        measured = EvaluateConfig(run=run.uri, shards=shards, split="val")
        val = sources.open_labeled(measured, own_shards, spec).sample(CALIBRATION_IMAGES)
        return exporting.export(run.uri, val)


def tune(config: TuneConfig) -> TuneResult:
    """Search a better recipe, compare the best trial with the recipe and write the search's report."""
    from captcha_ray.runtime import ray_session  # noqa: PLC0415 -- imports Ray

    recipe = load_recipe(config.starting_recipe)
    space = search_space.build(recipe, config.space, config.vary, only=config.only)
    run = RunDirectory(config.run)
    with ray_session.connect(meanwhile="captcha_ray.tuning.tuner") as cluster:
        # torch takes seconds to import; Ray starts meanwhile
        from captcha_ray.datasets.shards import open_shards  # noqa: PLC0415
        from captcha_ray.synthesis import demo  # noqa: PLC0415
        from captcha_ray.tuning import report, tuner  # noqa: PLC0415

        cluster.warn_without_gpu(config.gpus_per_trial > 0)
        ray_session.check_shared(shards=config.shards, run=config.run)
        demo.ensure_shards(config.shards)
        shards = open_shards(config.shards)
        search = tuner.run(config, recipe, space, shards.manifest, shards.read("train"), shards.read("val"))
        page = report.write(run, space, search)
        run.finish()
    return TuneResult(search, run.path("best.json"), page)


def infer(config: InferConfig) -> "NightSummary":
    """Recognize what is new below `config.images` and commit it to the table at `config.out`.

    Neither Ray nor torch is started where nothing is new.
    """
    from captcha_ray.inference.job import transcribe  # noqa: PLC0415 -- not all verbs need it

    return transcribe(config, time.monotonic())
