"""Asynchronous successive halving: which trials go on after a few epochs. Knows no Ray and no files.

L. Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020), algorithm 2 (ASHA with promotions). Ray
Tune's scheduler of that name lets a trial on as soon as it is among the best so far, which in a search of twenty nearly
every second one once was, and never goes back to one that it has stopped.
"""

from collections.abc import Sequence

from captcha_ray.tuning import trials
from captcha_ray.tuning.trials import Trial

REDUCTION = 4
"""The best quarter of the trials at a rung goes on to the next, as in the paper."""

RUNGS = (1 / 6, 1 / 2)
"""Where trials stop, as shares of the epochs. Networks that begin with a plateau, as `multi_head_cnn` does, tell
nothing before the first."""

HELD = 2 / 3
"""Nobody goes on before this share of the trials has been to the first rung: among few, poor ones are the best."""


def rungs(epochs: int) -> list[int]:
    """Epochs after which trials are compared, the last of which is the end."""
    return sorted({*(max(int(epochs * share), 1) for share in RUNGS), epochs})


def next_rung(rungs: Sequence[int], num_epochs: int) -> int:
    """The first rung of at least so many epochs."""
    return next(rung for rung in rungs if rung >= num_epochs)


def promotable(rungs: Sequence[int], found: Sequence[Trial], num_trials: int, last: bool) -> Trial | None:
    """The stopped trial to go on with; None where none has earned it. The highest rung is looked at first.

    found: all trials that were begun. num_trials: of the whole search. last: no trial runs or will begin, so that,
    where a rung has too few for a quarter of them, its best one goes on.
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
    """Epochs of a search, were no trial let on that a later one has outdone."""
    total = before = 0
    for rung in rungs:
        total += num_trials * (rung - before)
        num_trials, before = max(num_trials // REDUCTION, 1), rung
    return total


def _reached(trial: Trial, rung: int) -> bool:
    """A trial whose patience was spent has been everywhere."""
    return len(trial.epochs) >= rung or trial.status == "finished"
