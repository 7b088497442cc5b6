"""Decide which trials go on after a few epochs, by asynchronous successive halving. Knows no Ray and no files.

L. Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020), algorithm 2 (ASHA with promotions). Ray
Tune's scheduler of that name lets a trial go on as soon as it is among the best so far, which in a search of twenty
nearly every second one once was, and never returns to a stopped one.
"""

import math
from collections.abc import Sequence

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
    total = before = 0
    for rung in rungs:
        total += num_trials * (rung - before)
        num_trials, before = max(num_trials // REDUCTION, 1), rung
    return total


def left_seconds(rungs: Sequence[int], num_trials: int, num_concurrent: int, epoch_s: float) -> float:
    """Return about how long a search takes from when its last trial begins, if no trial was promoted before.

    Args:
        rungs: Of the search.
        num_trials: Of the search, the last one included.
        num_concurrent: Trials at a time.
        epoch_s: Seconds of an epoch.
    """
    total, before, trials_there = float(rungs[0]), rungs[0], num_trials
    for rung in rungs[1:]:
        trials_there = max(trials_there // REDUCTION, 1)
        total += math.ceil(trials_there / num_concurrent) * (rung - before)
        before = rung
    return total * epoch_s


def _reached(trial: Trial, rung: int) -> bool:
    """Return whether a trial was at a rung; one whose patience was spent has been at all."""
    return len(trial.epochs) >= rung or trial.status == "finished"
