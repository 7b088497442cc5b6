"""Keep a search on disk: a directory a trial, the table of all of them, and the result.

    config.json  manifest.json  environment.json  trials.parquet  best.json  results.json  report.html  _SUCCESS
    trials/0007/{trial,config,outcome}.json  trials/0007/{metrics.jsonl,checkpoint/,tensorboard/}
    final/{recipe,trial-0007}-0/  the same, for the trainings in full at the end

A trial has ended when `outcome.json` stands; until then it goes on where it was kept. Knows no Ray and no torch.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from captcha_ray.metrics.comparison import Comparison
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.reporting.page import text
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.storage import filesystem

WORST = -1.0
"""Score of a trial that diverged or failed: below any accuracy."""

CHARACTER_WEIGHT = 1e-6
"""Weight of the characters' accuracy in a score: it only orders trials with equally many strings right."""


EPOCH_FIELDS = {
    "epoch": pa.int32(),
    "train_loss": pa.float64(),
    "val_loss": pa.float64(),
    "train_char_accuracy": pa.float64(),
    "val_char_accuracy": pa.float64(),
    "val_exact_match": pa.float64(),
    "learning_rate": pa.float64(),
    "images_per_second": pa.float64(),
    "seconds": pa.float64(),
}
"""Fields of `metrics.jsonl` that `trials.parquet` keeps."""


@dataclasses.dataclass(frozen=True)
class TrialOutcome:
    """End of a trial.

    status: finished (all epochs, or patience spent), stopped (at a rung, from where it may be promoted), diverged or
    failed. reason: of the last two. ended_s: seconds of searching until then, without pauses between resumes.
    """

    status: str
    reason: str
    ended_s: float


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial as it is on disk. values: of the searched parameters. outcome: None while it is not over."""

    number: int
    values: dict[str, Any]
    epochs: list[dict[str, Any]]
    outcome: TrialOutcome | None

    @property
    def status(self) -> str:
        """Return its outcome's status, or running."""
        return self.outcome.status if self.outcome else "running"

    @property
    def score(self) -> float:
        """Return the score of its best epoch; `WORST` if it diverged or failed."""
        return WORST if self.status in ("diverged", "failed") else score(self.epochs)

    @property
    def accuracy(self) -> float:
        """Return the exact match in validation of its best epoch; 0 if it diverged or failed."""
        return accuracy(self.epochs) if self.score > WORST else 0.0

    @property
    def seconds(self) -> float:
        """Return the seconds of its epochs."""
        return float(sum(epoch["seconds"] for epoch in self.epochs))


def score(epochs: Sequence[dict[str, Any]]) -> float:
    """Return the exact match in validation of the best epoch, and a trace of its characters; `WORST` without any."""
    return max((_score(epoch) for epoch in epochs), default=WORST)


def accuracy(epochs: Sequence[dict[str, Any]]) -> float:
    """Return the exact match in validation of the best epoch; 0 without any."""
    return max((epoch["val_exact_match"] or 0.0 for epoch in epochs), default=0.0)


def _score(epoch: dict[str, Any]) -> float:
    if epoch["train_loss"] is None or epoch["val_loss"] is None:
        return WORST
    return float(epoch["val_exact_match"] + CHARACTER_WEIGHT * epoch["val_char_accuracy"])


def trial_directory(run: RunDirectory, number: int) -> RunDirectory:
    """Return the directory of one trial."""
    return RunDirectory(run.path("trials", f"{number:04d}"))


def begin(run: RunDirectory, number: int, values: dict[str, Any], config: TrainConfig) -> None:
    """Record that a trial was proposed; `trial.json` is written last."""
    directory = trial_directory(run, number)
    directory.write_json("config.json", config.to_dict())
    directory.write_json("trial.json", {"values": values})


def end(run: RunDirectory, number: int, outcome: TrialOutcome) -> Trial:
    """Record how a trial ended, and return the trial."""
    trial_directory(run, number).write_json("outcome.json", dataclasses.asdict(outcome))
    ended = _load(run, number)
    assert ended is not None
    return ended


def reopen(run: RunDirectory, trial: Trial) -> Trial:
    """Record that a stopped trial goes on, and return the trial."""
    filesystem.delete(trial_directory(run, trial.number).path("outcome.json"))
    return dataclasses.replace(trial, outcome=None)


def load(run: RunDirectory) -> list[Trial]:
    """Return all trials that were begun, by number."""
    found = (_load(run, number) for number in itertools.count())
    return list(itertools.takewhile(lambda trial: trial is not None, found))  # type: ignore[arg-type]


def _load(run: RunDirectory, number: int) -> Trial | None:
    directory = trial_directory(run, number)
    if not filesystem.exists(directory.path("trial.json")):
        return None
    ended = filesystem.exists(directory.path("outcome.json"))
    outcome = TrialOutcome(**directory.read_json("outcome.json")) if ended else None
    return Trial(number, directory.read_json("trial.json")["values"], directory.read_metrics(), outcome)


def best(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial of the highest score, of equals the first; None if none has any."""
    able = [trial for trial in trials if trial.score > WORST]
    return max(able, key=lambda trial: (trial.score, -trial.number), default=None)


def seconds_searched(trials: Sequence[Trial]) -> float:
    """Return the seconds of searching until the last trial ended, without pauses between resumes."""
    return max((trial.outcome.ended_s for trial in trials if trial.outcome), default=0.0)


def table(trials: Sequence[Trial]) -> pa.Table:
    """Return a row a trial, its values under their parameters' names, its epochs as a list."""
    names = list(trials[0].values) if trials else []
    columns: dict[str, Any] = {
        "trial": pa.array([t.number for t in trials], pa.int32()),
        "status": pa.array([t.status for t in trials], pa.string()),
        "reason": pa.array([t.outcome.reason or None if t.outcome else None for t in trials], pa.string()),
        "score": pa.array([t.score for t in trials], pa.float64()),
        "exact_match": pa.array([t.accuracy for t in trials], pa.float64()),
        "num_epochs": pa.array([len(t.epochs) for t in trials], pa.int32()),
        "seconds": pa.array([t.seconds for t in trials], pa.float64()),
        "ended_s": pa.array([t.outcome.ended_s if t.outcome else None for t in trials], pa.float64()),
        **{name: pa.array([t.values[name] for t in trials]) for name in names},
        "epochs": pa.array(
            [[{name: epoch.get(name) for name in EPOCH_FIELDS} for epoch in t.epochs] for t in trials],
            pa.list_(pa.struct(list(EPOCH_FIELDS.items()))),
        ),
    }
    return pa.table(columns)


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The result of a search. comparison: None if none was requested, or the best trial is the recipe.

    importance: share of each parameter, empty if it is unknown.
    """

    trials: list[Trial]
    best: Trial
    best_is_recipe: bool
    comparison: Comparison | None
    importance: dict[str, float]

    @property
    def verdict(self) -> str:
        """Return a sentence on what the search has proved."""
        if self.comparison:
            count = self.comparison.num_seeds
            return f"trained in full with {count} seed{'s' * (count > 1)} each: {self.comparison.verdict}"
        if self.best_is_recipe:
            return "the best trial is the recipe itself"
        return "no comparison with the recipe was asked for"

    @property
    def better(self) -> bool:
        """Return whether the best trial's config is proved to be better, or nobody requested a proof."""
        return self.comparison.low > 0 if self.comparison else not self.best_is_recipe

    @property
    def num_epochs(self) -> int:
        """Return the epochs of all trials."""
        return sum(len(trial.epochs) for trial in self.trials)

    @property
    def epoch_seconds(self) -> float:
        """Return the seconds of all epochs, one after another."""
        return sum(trial.seconds for trial in self.trials)

    @property
    def states(self) -> Counter[str]:
        """Return how many trials ended how."""
        return Counter(trial.status for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Return what `results.json` holds."""
        return {
            "num_trials": len(self.trials),
            "trials": dict(self.states),
            "num_epochs": self.num_epochs,
            "epoch_seconds": round(self.epoch_seconds, 3),
            "search_seconds": round(seconds_searched(self.trials), 3),
            "best": {"trial": self.best.number, "values": self.best.values, "exact_match": self.best.accuracy},
            "importance": self.importance,
            "comparison": dataclasses.asdict(self.comparison) if self.comparison else None,
        }

    def describe(self) -> list[str]:
        """Return lines for a person."""
        values = ", ".join(f"{name} {text(value)}" for name, value in self.best.values.items())
        states = ", ".join(f"{count} {status}" for status, count in self.states.most_common())
        return [
            f"{len(self.trials)} trials: {states}; {self.num_epochs:,} epochs",
            f"best: trial {self.best.number} recognizes {self.best.accuracy:.2%} of validation images with {values}",
            self.verdict,
        ]
