"""Searches a recipe's parameters on Ray Tune: Optuna proposes the trials, ASHA ends the poor ones.

A trial is a training run that keeps every epoch in a directory of its own; nothing else is needed to go on after a
kill. Trials that had ended are told to sampler and scheduler anew, the others repeat what they have reported and train
on from there. Reads the training and validation splits only.
"""

import dataclasses
import logging
import os
import tempfile
import time
import types
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
import ray.tune
import ray.tune.schedulers
import ray.tune.search

from captcha_ray import schema, space, storage, training, trials
from captcha_ray.cluster import check_fits, num_fitting
from captcha_ray.config import FailedError, TrainConfig, TuneConfig, check
from captcha_ray.console import SearchProgress
from captcha_ray.lease import Lease
from captcha_ray.runs import RunDirectory
from captcha_ray.sampler import Sampler, importance
from captcha_ray.space import Space
from captcha_ray.trial_worker import Trainable, TrialJob, train_in_full
from captcha_ray.trials import Comparison, Findings, Outcome, Trial

RESUME_MAY_DIFFER = (
    "resume", "run", "space", "vary", "num_trials", "final_seeds", "max_concurrent", "cpus_per_worker", "gpus_per_trial"
)  # fmt: skip
"""Fields that may change between the start of a search and its continuation; what the space comes to may not."""

REDUCTION = 4
"""ASHA lets the best quarter of the trials on, as in L. Li et al., "A System for Massively Parallel Hyperparameter
Tuning" (2020)."""

FIRST_LOOK = 6
"""ASHA looks at a trial after a sixth of its epochs, and again after four times as many. Networks that begin with a
plateau, as `multi_head_cnn` does, tell nothing earlier."""

MAX_DEATHS = 2
"""How often a trial whose process dies is started anew before it counts as failed."""

HOLDER: dict[str, float] = {"memory": 1 << 20}
"""What a trial of several workers asks for itself, bytes: its workers take the CPUs, and Ray Tune must be asked for
something."""

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # every trial's directory has its metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the job; nothing has to be saved first
}
"""Settings of Ray Tune; what the environment says goes first."""


def run(
    config: TuneConfig,
    recipe: TrainConfig,
    searched: Space,
    manifest: schema.Manifest,
    train: ray.data.Dataset,
    val: ray.data.Dataset,
) -> Findings:
    """Runs all trials, or those that are left, then trains the best one's config and the recipe in full and compares
    them, unless no comparison was asked for, or the best trial is the recipe itself.

    Writes all of the run directory but the report. Raises InputError for shards, workers, a space or a run directory
    that do not fit, FailedError where no trial gave a network.
    """
    directory = RunDirectory(config.run)
    config = dataclasses.replace(config, run=directory.uri, shards=storage.absolute(config.shards))
    recipe = _starting_point(config, recipe)
    _check_trials(recipe, searched, manifest)
    concurrent = num_concurrent(config)
    sampler = Sampler(config.search, searched, space.values_of(recipe, searched), config.num_trials, config.seed)
    told = {**config.to_dict(), "recipe_config": recipe.to_dict(), "parameters": space.to_dict(searched)}
    if config.resume:
        directory.reopen(told, manifest.to_dict(), RESUME_MAY_DIFFER)
    else:
        directory.create(told, manifest.to_dict())
    job = TrialJob(config, manifest, {"train": [merge(train)], "val": [merge(val)]})
    with (
        Lease(directory.path("_lease.json")),
        SearchProgress(config.num_trials, recipe.epochs, list(searched)) as progress,
    ):
        begun = trials.load(directory)
        searcher = _Searcher(config, recipe, sampler, begun, progress)
        if searcher.num_left:
            _tune(job, searcher, _scheduler(config, recipe.epochs, begun), concurrent)
        found = trials.load(directory)
        trials.write_table(directory, found)
        best = trials.best(found)
        if best is None:
            raise FailedError(f"none of {len(found)} trials gave a network: {_reasons(found)}")
        winner = space.apply(recipe, best.values)
        directory.write_json("best.json", winner.to_dict())
        comparison = _compare(job, recipe, winner, concurrent, progress)
    shares = importance(searched, [(trial.values, trial.score) for trial in found])
    findings = Findings(found, best, comparison, shares)
    directory.write_json("results.json", findings.to_dict())
    return findings


def _reasons(found: list[Trial]) -> str:
    return "; ".join(sorted({trial.outcome.reason for trial in found if trial.outcome and trial.outcome.reason}))


def _starting_point(config: TuneConfig, recipe: TrainConfig) -> TrainConfig:
    """The recipe as the trials train it."""
    return dataclasses.replace(
        recipe,
        shards=config.shards,
        run=storage.join(config.run, "best"),
        epochs=config.epochs or recipe.epochs,
        num_workers=config.workers_per_trial,
        cpus_per_worker=config.cpus_per_worker,
        use_gpu=config.gpus_per_trial > 0,
        seed=config.seed,
        resume=False,
    )


def _check_trials(recipe: TrainConfig, searched: Space, manifest: schema.Manifest) -> None:
    """Raises InputError where the shards are not what the recipe reads, or a batch is larger than the split."""
    training.model_spec(recipe, manifest)
    images = manifest.num_images["train"] // recipe.num_workers
    for size in searched["batch_size"].ends() if "batch_size" in searched else [recipe.batch_size]:
        check(
            size <= images,
            f"a batch_size of {size:g} is more than the {images:,} training images of a worker; search smaller ones",
        )
        training.check_batches(dataclasses.replace(recipe, batch_size=size), manifest)
    check(manifest.num_images["val"] > 0, "the shards have no validation split, by which trials are judged")


def num_concurrent(config: TuneConfig) -> int:
    """How many trials to run at once. Raises InputError where not even one fits."""
    workers, gpus = config.workers_per_trial, config.gpus_per_trial / config.workers_per_trial
    check_fits(workers, config.cpus_per_worker, gpus)
    fitting = num_fitting(config.cpus_per_worker, gpus) // workers
    return min(config.max_concurrent or fitting, fitting, config.num_trials)


def merge(split: ray.data.Dataset) -> Any:
    """A reference of the whole split as one table, which all trials of a machine read where it lies."""
    return _concatenate.remote(*split.materialize().to_arrow_refs())


@ray.remote
def _concatenate(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks()


def _scheduler(config: TuneConfig, epochs: int, begun: list[Trial]) -> ray.tune.schedulers.TrialScheduler:
    """The scheduler, told of the trials that have ended."""
    if config.scheduler == "none":
        return ray.tune.schedulers.FIFOScheduler()  # type: ignore[no-untyped-call]
    scheduler = ray.tune.schedulers.ASHAScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        max_t=epochs,
        grace_period=max(epochs // FIRST_LOOK, 1),
        reduction_factor=REDUCTION,
    )
    nobody: Any = None  # it does not ask its controller anything
    for trial in begun:
        if trial.outcome and trial.epochs:
            known: Any = types.SimpleNamespace(trial_id=f"{trial.number:04d} of an earlier session")
            scheduler.on_trial_add(nobody, known)
            for count, epoch in enumerate(trial.epochs, start=1):
                result = {"epoch": epoch["epoch"], "score": trials.score(trial.epochs[:count])}
                scheduler.on_trial_result(nobody, known, result)
    return scheduler


class _Searcher(ray.tune.search.Searcher):
    """Between Ray Tune and what is kept: gives trials out, first those that were interrupted, and writes their ends."""

    def __init__(
        self, config: TuneConfig, recipe: TrainConfig, sampler: Sampler, begun: list[Trial], progress: SearchProgress
    ) -> None:
        super().__init__()
        self._directory = RunDirectory(config.run)
        self._recipe, self._sampler, self._progress = recipe, sampler, progress
        self._interrupted = [trial for trial in begun if trial.outcome is None]
        self._next, self._num_trials = len(begun), config.num_trials
        self._numbers: dict[str, int] = {}
        self._before_s = trials.seconds_searched(begun)
        self._started = time.monotonic()
        for trial in begun:
            sampler.replay(trial.number, trial.values, trial.score if trial.outcome else None)
            if trial.outcome:
                progress.end(trial.number, trial.values, len(trial.epochs), trial.accuracy, trial.score)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune writes a copy to resume from, which nobody reads."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""

    @property
    def num_left(self) -> int:
        """Trials that have not ended."""
        return len(self._interrupted) + max(self._num_trials - self._next, 0)

    def suggest(self, trial_id: str) -> Any:
        """The next trial's number and config; both are on disk before it starts."""
        if self._interrupted:
            number, values = (trial := self._interrupted.pop(0)).number, trial.values
        elif self._next < self._num_trials and (proposed := self._sampler.propose(self._next)) is not None:
            number, values = self._next, proposed
            self._next += 1
        else:
            return self.FINISHED
        directory = trials.trial_directory(self._directory, number)
        config = dataclasses.replace(space.apply(self._recipe, values), run=directory.uri)
        trials.begin(self._directory, number, values, config)
        self._numbers[trial_id] = number
        self._progress.begin(number, values)
        return {"number": number, "config": config.to_dict()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch of a trial that goes on."""
        self._progress.epoch(self._numbers[trial_id], result["epoch"], result["accuracy"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial is over: by itself, by the scheduler, or because its process died too often."""
        number = self._numbers.pop(trial_id)
        if error or not result:
            status, reason = "failed", f"its process died {MAX_DEATHS + 1} times, perhaps for lack of memory"
        else:
            last = result["epoch"] >= self._recipe.epochs
            status, reason = result["status"] or ("finished" if last else "stopped"), result["reason"]
        ended_s = self._before_s + time.monotonic() - self._started
        ended = trials.end(self._directory, number, Outcome(status, reason, ended_s))
        storage.delete(trials.trial_directory(self._directory, number).path(training.STATE))
        self._sampler.tell(number, ended.score)
        how = f"{status}: {reason}" if reason else status
        self._progress.end(number, ended.values, len(ended.epochs), ended.accuracy, ended.score, how)


def _tune(job: TrialJob, searcher: _Searcher, scheduler: ray.tune.schedulers.TrialScheduler, concurrent: int) -> None:
    config = job.config
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial that fails has its line and its reason
    alone = config.workers_per_trial == 1
    resources: dict[str, float] = {"cpu": config.cpus_per_worker, "gpu": config.gpus_per_trial} if alone else HOLDER
    with tempfile.TemporaryDirectory(prefix="captcha_ray-") as unused:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(ray.tune.with_parameters(Trainable, job=job), resources),
            tune_config=ray.tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=searcher.num_left,
                max_concurrent_trials=concurrent,
                reuse_actors=alone,
            ),
            run_config=ray.tune.RunConfig(
                storage_path=unused,
                verbose=0,
                failure_config=ray.tune.FailureConfig(max_failures=MAX_DEATHS),
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()


def _compare(
    job: TrialJob, recipe: TrainConfig, winner: TrainConfig, concurrent: int, progress: SearchProgress
) -> Comparison | None:
    """Trains both with seeds that the search has not used, as many at once as fit. None where there is nothing to
    compare: no seeds are asked for, or the best trial is the recipe."""
    config = job.config
    if not config.final_seeds or winner == recipe:
        return None
    todo = {
        f"{name}-{k}": dataclasses.replace(
            one, run=storage.join(config.run, "final", f"{name}-{k}"), seed=config.seed + 1 + k
        )
        for k in range(config.final_seeds)
        for name, one in (("recipe", recipe), ("best", winner))
    }
    alone = config.workers_per_trial == 1
    cpus, gpus = (config.cpus_per_worker, config.gpus_per_trial) if alone else (0, 0)
    train = train_in_full.options(max_retries=MAX_DEATHS, num_cpus=cpus, num_gpus=gpus)
    right: dict[str, list[bool]] = {}
    waiting: dict[Any, str] = {}

    def take() -> None:
        done, _ = ray.wait(list(waiting))
        name = waiting.pop(done[0])
        right[name] = ray.get(done[0])
        RunDirectory(todo[name].run).write_json("outcome.json", {"right": right[name]})
        storage.delete(storage.join(todo[name].run, training.STATE))
        progress.compared(name, sum(right[name]) / len(right[name]), len(right), len(todo))

    for name, one in todo.items():
        directory = RunDirectory(one.run)
        if storage.exists(directory.path("outcome.json")):
            right[name] = directory.read_json("outcome.json")["right"]
            continue
        directory.write_json("config.json", one.to_dict())
        if len(waiting) == concurrent:
            take()
        waiting[train.remote(job, one)] = name
    while waiting:
        take()
    read = {name: np.array([right[f"{name}-{k}"] for k in range(config.final_seeds)]) for name in ("best", "recipe")}
    return trials.compare(read["best"], read["recipe"])
