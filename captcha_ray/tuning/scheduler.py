"""Decide which trials go on after a few epochs, by asynchronous successive halving. Knows no Ray and no files.

L. Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020), algorithm 2 (ASHA with promotions). Ray
Tune's scheduler of that name lets a trial go on as soon as it is among the best so far, which in a search of twenty
nearly every second one once was, and never returns to a stopped one.
"""

import math
from collections.abc import Iterator, Sequence

from captcha_ray.tuning import trials
from captcha_ray.tuning.trials import Trial

REDUCTION = 4
"""The best quarter of the trials at a rung is promoted, as in the paper."""

RUNGS = (1 / 6, 1 / 2)
"""Rungs as shares of the epochs. Networks that begin with a plateau, as `multi_head_cnn`, tell nothing before the
first.
"""

HELD = 2 / 3
"""No trial is promoted before this share of all has reached the first rung: among few, poor ones are the best."""


def rungs(epochs: int) -> list[int]:
    """Return the epochs after which trials are compared, the last of which is the end."""
    return sorted({*(max(int(epochs * share), 1) for share in RUNGS), epochs})


def next_rung(rungs: Sequence[int], num_epochs: int) -> int:
    """Return the first rung of at least so many epochs."""
    return next(rung for rung in rungs if rung >= num_epochs)


def promotable(rungs: Sequence[int], found: Sequence[Trial], num_trials: int, last: bool) -> Trial | None:
    """Return the stopped trial to promote, from the highest rung down; None if none has earned it.

    Args:
        rungs: Of the search.
        found: All trials that were begun.
        num_trials: Of the whole search.
        last: No trial runs or will begin; then a rung with too few trials for a quarter promotes its best.
    """
    judged = sum(trial.outcome is not None or _reached(trial, rungs[0]) for trial in found)
    if judged < HELD * num_trials and not last:
        return None
    for rung, beyond in zip(reversed(rungs[:-1]), reversed(rungs[1:]), strict=True):
        there = [trial for trial in found if trial.score > trials.WORST and _reached(trial, rung)]
        quota = len(there) // REDUCTION
        if last and not any(_reached(trial, beyond) for trial in there):
            quota = max(quota, 1)
        there.sort(key=lambda trial: (-trials.score(trial.epochs[:rung]), trial.number))
        for trial in there[:quota]:
            if trial.status == "stopped" and not _reached(trial, beyond):
                return trial
    return None


def expected_epochs(rungs: Sequence[int], num_trials: int) -> int:
    """Return the epochs of a search in which no promoted trial is outdone by a later one."""
    return sum(trials_there * epochs for trials_there, epochs in _stages(rungs, num_trials))


def left_seconds(rungs: Sequence[int], num_trials: int, num_concurrent: int, epoch_s: float) -> float:
    """Return about how long a search takes from when its last trial begins, if no trial was promoted before.

    Args:
        rungs: Of the search.
        num_trials: Of the search, the last one included.
        num_concurrent: Trials at a time.
        epoch_s: Seconds of an epoch.
    """
    (_, first), *later = _stages(rungs, num_trials)
    epochs = first + sum(math.ceil(trials_there / num_concurrent) * epochs for trials_there, epochs in later)
    return epochs * epoch_s


def _stages(rungs: Sequence[int], num_trials: int) -> Iterator[tuple[int, int]]:
    """Yield for each rung how many trials come to it, and the epochs that they train for it."""
    before = 0
    for rung in rungs:
        yield num_trials, rung - before
        num_trials, before = max(num_trials // REDUCTION, 1), rung


def _reached(trial: Trial, rung: int) -> bool:
    """Return whether a trial was at a rung; one whose patience was spent has been at all."""
    return len(trial.epochs) >= rung or trial.status == "finished"
