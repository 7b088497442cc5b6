"""Search a recipe's parameters on Ray Tune: Optuna proposes the trials, ASHA promotes the good ones.

A trial is a training run that keeps every epoch in a directory of its own. What to do next follows from those
directories alone, so a kill loses nothing: an interrupted trial trains on from where it was kept, as does a stopped one
that is promoted later. Reads the training and validation splits only.
"""

import dataclasses
import logging
import math
import os
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.exceptions
import ray.train
import ray.tune
import ray.tune.search

from captcha_ray import console
from captcha_ray.datasets import schema
from captcha_ray.errors import JobError, check
from captcha_ray.experiments.parallel_runs import HOLDER, MAX_DEATHS, Training, right_in, train_all
from captcha_ray.metrics.comparison import Comparison, compare
from captcha_ray.recipes.auto_config import resolve
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.runtime import capacity
from captcha_ray.runtime.telemetry import Telemetry
from captcha_ray.storage import filesystem
from captcha_ray.storage.lock import Lease
from captcha_ray.training.trainer import check_batches, model_spec
from captcha_ray.tuning import scheduler, search_space, trials
from captcha_ray.tuning.config import TuneConfig
from captcha_ray.tuning.progress import SearchProgress
from captcha_ray.tuning.search_space import Space
from captcha_ray.tuning.search_state import SearchState, Step
from captcha_ray.tuning.suggest import Sampler, importance
from captcha_ray.tuning.trainable import DISK_FULL, Trainable
from captcha_ray.tuning.trials import SearchResult, Trial, TrialOutcome

RESUME_MAY_DIFFER = (
    "resume", "run", "space", "vary", "only", "num_trials", "hours", "final_seeds", "max_concurrent", "cpus_per_worker",
    "gpus_per_trial",
)  # fmt: skip
"""Fields that may change between the start of a search and its continuation, if the space stays the same."""

FEW_EPOCHS = 5
"""Fewer epochs before the first rung are worth a warning."""

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # its box of settings is printed even where nothing else is
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # every trial's directory has its metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the job; nothing has to be saved first
}
"""Settings of Ray Tune; the environment's own values win."""


def run(
    config: TuneConfig,
    recipe: TrainConfig,
    searched: Space,
    manifest: schema.Manifest,
    train: ray.data.Dataset,
    val: ray.data.Dataset,
) -> SearchResult:
    """Run all trials that are left, then train the best one's config and the recipe in full and compare them.

    Nothing is compared if none asks for it or the recipe is best. Writes all of the run directory but the report.

    Args:
        config: Of the search.
        recipe: Whose fields are varied.
        searched: The space.
        manifest: Of the shards.
        train: Rows of the training split.
        val: Rows of the validation split.

    Raises:
        InputError: Shards, workers, space or run directory do not fit.
        JobError: No trial gave a network.
    """
    directory = RunDirectory(config.run)
    config = dataclasses.replace(config, run=directory.uri, shards=filesystem.absolute(config.shards))
    settings = _settings(config, recipe, searched)
    recipe = _recipe_of_trials(config, recipe, manifest)
    _check_trials(recipe, searched, manifest)
    concurrent = num_concurrent(config)
    sampler = Sampler(config.search, searched, search_space.values_of(recipe, searched), config.num_trials, config.seed)
    directory.begin(settings, manifest.to_dict(), resume=config.resume, may_differ=RESUME_MAY_DIFFER)
    rungs = scheduler.rungs(recipe.epochs) if config.scheduler == "asha" else [recipe.epochs]
    _announce(sampler, rungs, concurrent)
    judged = [merge(val)]
    training = Training(recipe, manifest, {"train": [merge(train)], "val": judged, "test": judged})
    num_epochs = scheduler.expected_epochs(rungs, sampler.num_trials)
    display = SearchProgress(sampler.num_trials, recipe.epochs, num_epochs, list(searched))
    with Lease(directory.path("_lease.json")) as lease, display as progress:
        begun = _begun_before(directory)
        state = SearchState(sampler, rungs, begun, MAX_DEATHS)
        searcher = _Searcher(directory, recipe, state, begun, progress, lease, config.hours, concurrent)
        if searcher.next_step():
            _tune(config, training, searcher, concurrent)
        found, best, winner = _choose_best(directory, recipe)
        comparison = _compare(config, training, winner, best.number, concurrent, progress)
    shares = importance(searched, [(trial.values, trial.score) for trial in found])
    findings = SearchResult(found, best, winner == recipe, comparison, shares)
    directory.write_json("results.json", findings.to_dict())
    return findings


def _recipe_of_trials(config: TuneConfig, recipe: TrainConfig, manifest: schema.Manifest) -> TrainConfig:
    """Return the resolved recipe that trials vary."""
    if recipe.unlabeled:
        console.warn(f"trials learn from labeled images alone, without those of {recipe.unlabeled}")
    resolved = resolve(_starting_point(config, recipe), manifest)
    return dataclasses.replace(resolved, max_epochs=0)  # trials are compared after as many epochs


def _settings(config: TuneConfig, recipe: TrainConfig, searched: Space) -> dict[str, Any]:
    """Return what a search that is continued must agree in, for `config.json`. recipe: as requested."""
    settings = {f"recipe.{name}": value for name, value in recipe.to_dict().items()}
    settings |= {f"space.{name}": str(searched.get(name, "off")) for name in search_space.OFFERED}
    return settings | config.to_dict()


def _announce(sampler: Sampler, rungs: list[int], concurrent: int) -> None:
    """Say what the search will do, and warn if trials are stopped too early to be told apart."""
    varied = ", ".join(f"{name} {one}" for name, one in sampler.space.items())
    console.say(f"{sampler.num_trials} trials of up to {rungs[-1]} epochs, {concurrent} at a time, varying {varied}")
    if sampler.missed and sampler.search != "grid":
        values = ", ".join(f"{name} {sampler.start.get(name)}" for name in sampler.missed)
        console.say(f"no trial has the recipe's own values, as these are not searched: {values}")
    if len(rungs) > 1 and rungs[0] < FEW_EPOCHS:
        console.warn(f"asha stops trials after {rungs[0]} epochs, where chance may decide; --scheduler none does not")


def _begun_before(directory: RunDirectory) -> list[Trial]:
    """Return the trials that an interrupted search has left, and say how many."""
    begun = trials.load(directory)
    if begun:
        ended = sum(trial.outcome is not None for trial in begun)
        console.say(f"{ended} trials are kept; {len(begun) - ended} were cut off and go on where they were kept")
    return begun


def _choose_best(directory: RunDirectory, recipe: TrainConfig) -> tuple[list[Trial], Trial, TrainConfig]:
    """Write `trials.parquet` and `best.json`; return all trials, the best one and its config.

    Raises JobError if no trial gave a network.
    """
    found = trials.load(directory)
    directory.write_table("trials.parquet", trials.table(found))
    best = trials.best(found)
    if best is None:
        raise JobError(f"none of {len(found)} trials gave a network: {_reasons(found)}")
    winner = search_space.apply(recipe, best.values)
    directory.write_json("best.json", winner.to_dict())
    return found, best, winner


def _reasons(found: list[Trial]) -> str:
    return "; ".join(sorted({trial.outcome.reason for trial in found if trial.outcome and trial.outcome.reason}))


def _starting_point(config: TuneConfig, recipe: TrainConfig) -> TrainConfig:
    """Return the recipe as the trials train it, on images of the shards' size."""
    return dataclasses.replace(
        recipe,
        height=0,
        width=0,
        max_length=0,
        shards=config.shards,
        unlabeled="",
        run=filesystem.join(config.run, "best"),
        epochs=config.epochs or recipe.epochs,
        max_epochs=0,
        num_workers=config.workers_per_trial,
        cpus_per_worker=config.cpus_per_worker,
        use_gpu=config.gpus_per_trial > 0,
        seed=config.seed,
        resume=False,
    )


def _check_trials(recipe: TrainConfig, searched: Space, manifest: schema.Manifest) -> None:
    """Raise InputError if the shards do not fit the recipe, or a batch is larger than the split."""
    model_spec(recipe, manifest)
    images = manifest.num_images["train"] // recipe.workers[1]
    for size in searched["batch_size"].ends() if "batch_size" in searched else [recipe.batch_size]:
        check(
            size <= images,
            f"a batch_size of {size:g} is more than the {images:,} training images of a worker; search smaller ones",
        )
        check_batches(dataclasses.replace(recipe, batch_size=size), manifest)
    check(manifest.num_images["val"] > 0, "the shards have no validation split, by which trials are judged")


def num_concurrent(config: TuneConfig) -> int:
    """Return how many trials to run at once. Raises InputError if not even one fits."""
    workers, gpus = config.workers_per_trial, config.gpus_per_trial / config.workers_per_trial
    capacity.wait_for_capacity(workers, config.cpus_per_worker, gpus, shards=config.shards, run=config.run)
    fitting = capacity.num_fitting(config.cpus_per_worker, gpus) // workers
    return min(config.max_concurrent or fitting, fitting, config.num_trials)


def merge(split: ray.data.Dataset) -> Any:
    """Return a reference of the whole split as one table, which all trials of a machine read in place."""
    return _concatenate.remote(*split.materialize().to_arrow_refs())


@ray.remote(num_cpus=0)
def _concatenate(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks()


class _Searcher(ray.tune.search.Searcher):
    """The link between Ray Tune and the disk: says which trial to run up to which rung, and records how it ended."""

    def __init__(
        self,
        directory: RunDirectory,
        recipe: TrainConfig,
        state: SearchState,
        begun: list[Trial],
        progress: SearchProgress,
        lease: Lease,
        hours: float,
        num_concurrent: int,
    ) -> None:
        super().__init__()
        self._most_s, self._num_concurrent = 3600 * hours or math.inf, num_concurrent
        self._directory, self._recipe, self._state = directory, recipe, state
        self._progress, self._lease = progress, lease
        self._running: dict[str, int] = {}
        self._refusal = ""
        self._telemetry = Telemetry("tune", directory.uri)
        self._before_s = trials.seconds_searched(begun)
        progress.most_s = self._most_s - self._before_s
        self._started = time.monotonic()
        for trial in begun:
            if trial.outcome:
                progress.end(trial.number, trial.values, len(trial.epochs), trial.accuracy, trial.score)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray Tune writes a copy to resume from, which nobody reads."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, for the same reason."""

    def check(self) -> None:
        """Raise JobError if the search cannot go on; at each call of Ray Tune, as it tries again."""
        self._lease.check()
        if self._refusal:
            raise JobError(self._refusal)

    def suggest(self, trial_id: str) -> Any:
        """Return number, config and last epoch of the trial to run; it is on disk before it starts."""
        self.check()
        if (step := self.next_step()) is None:
            return self.FINISHED if self._state.is_idle else None
        trial = step.trial
        config = search_space.apply(self._recipe, trial.values)
        config = dataclasses.replace(config, run=trials.trial_directory(self._directory, trial.number).uri)
        if trial.outcome:
            trial = trials.reopen(self._directory, trial)
        else:
            trials.begin(self._directory, trial.number, trial.values, config)
        self._state.begin(trial)
        self._running[trial_id] = trial.number
        self._progress.begin(trial.number, trial.values, len(trial.epochs), trial.accuracy)
        return {"config": config.to_dict(), "until": step.until}

    def next_step(self) -> Step | None:
        """Return what to run now, see `SearchState.next_step`; no new trial where time is short."""
        if self._is_late and self._state.begin_no_more():
            num_trials = self._state.num_trials
            self._progress.begin_no_more(num_trials, scheduler.expected_epochs(self._state.rungs, num_trials))
        return self._state.next_step()

    @property
    def _is_late(self) -> bool:
        """Return whether one more trial, and what the best ones then need, would take more than the time."""
        seconds = [epoch["seconds"] for trial in self._state.ended for epoch in trial.epochs]
        if not seconds:
            return False
        epoch_s = sum(seconds) / len(seconds)
        number = self._state.num_begun + 1
        return (
            self._searched_s() + scheduler.left_seconds(self._state.rungs, number, self._num_concurrent, epoch_s)
            > self._most_s
        )

    def _searched_s(self) -> float:
        return self._before_s + time.monotonic() - self._started

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Show an epoch of a trial that goes on."""
        self._progress.epoch(self._running[trial_id], result["epoch"], result["accuracy"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record that a trial has ended, or come to its rung, or that its process has died."""
        if result and result["status"] == DISK_FULL:
            self._refusal = result["reason"]
        self.check()
        number = self._running.pop(trial_id)
        if error or not result:
            if not self._state.die(number):
                return  # it goes on where it was, as after a resume
            status, reason = "failed", f"its process died {MAX_DEATHS + 1} times, perhaps for lack of memory"
        else:
            status, reason = result["status"], result["reason"]
        directory = trials.trial_directory(self._directory, number)
        if status in ("stopped", "finished") and not directory.read_metrics():
            status, reason = "failed", f"no metrics in {directory.uri}; for several machines --run must be a bucket"
        ended = trials.end(self._directory, number, TrialOutcome(status, reason, self._searched_s()))
        self._state.end(ended)
        ended_trials = self._state.ended
        self._telemetry.set("captcha_progress", len(ended_trials) / self._state.num_trials)
        self._telemetry.set("captcha_val_exact_match", max(trial.accuracy for trial in ended_trials))
        if status != "stopped":
            directory.forget_state()
        how = f"{status}: {reason}" if reason else status
        self._progress.end(number, ended.values, len(ended.epochs), ended.accuracy, ended.score, how)


def _resources(config: TuneConfig) -> tuple[float, float]:
    """Return CPUs and GPUs of a trial's own process; its workers, if it has several, take theirs."""
    alone = config.workers_per_trial == 1
    return (capacity.cpu_request(config.cpus_per_worker), config.gpus_per_trial) if alone else (0, 0)


def _tune(config: TuneConfig, recipe: Training, searcher: _Searcher, concurrent: int) -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial that fails has its line and its reason
    cpus, gpus = _resources(config)
    resources = {"cpu": cpus, "gpu": gpus} if cpus else {"memory": float(HOLDER)}
    with tempfile.TemporaryDirectory(prefix="captcha_ray-") as unused:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(ray.tune.with_parameters(Trainable, training=recipe), resources),
            tune_config=ray.tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,  # until the searcher has no more
                max_concurrent_trials=concurrent,
                reuse_actors=bool(cpus),
            ),
            run_config=ray.tune.RunConfig(
                storage_path=unused,
                verbose=0,
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
        except ray.tune.TuneError:  # it has the text alone of what a searcher raises
            searcher.check()
            raise


def _compare(
    config: TuneConfig, recipe: Training, winner: TrainConfig, number: int, concurrent: int, progress: SearchProgress
) -> Comparison | None:
    """Train both with seeds that the search has not used, as many at once as fit, and compare them.

    number: the winner's. Returns None if no seeds are requested, or the best trial is the recipe.
    """
    seeds = range(config.final_seeds)
    if not seeds or winner == recipe.config:
        return None
    best = f"trial-{number:04d}"
    pending = [
        dataclasses.replace(
            recipe,
            config=dataclasses.replace(
                one, run=filesystem.join(config.run, "final", f"{name}-{k}"), seed=config.seed + 1 + k
            ),
        )
        for k in seeds
        for name, one in (("recipe", recipe.config), (best, winner))
    ]
    right: dict[str, list[bool]] = {}
    for one, rows in train_all(pending, concurrent, config.gpus_per_trial, again="--resume repeats it"):
        right[one.name] = right_in(rows)
        progress.compared(one.name, sum(right[one.name]) / len(right[one.name]), len(right), len(pending))
    of_best, of_recipe = (np.array([right[f"{name}-{k}"] for k in seeds]) for name in (best, "recipe"))
    return compare(of_best, of_recipe)
