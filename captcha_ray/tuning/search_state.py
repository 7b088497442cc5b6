"""Decide what a search does next: which trial runs up to which epoch, and when the search is over. Pure.

Knows no Ray and no files: the adapter to Ray Tune keeps trials on disk and tells this state what became of them.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable

from captcha_ray.tuning import scheduler
from captcha_ray.tuning.suggest import Sampler
from captcha_ray.tuning.trials import Trial


@dataclasses.dataclass(frozen=True)
class Step:
    """A trial to run, perhaps a new one, and the epoch to run it up to."""

    trial: Trial
    until: int


class SearchState:
    """Trials of a search as far as they are known, and which of them run.

    Args:
        sampler: Proposes the values of new trials.
        rungs: Epochs at which trials are compared, the last of which is the end.
        trials: Those that were begun before, by an interrupted search.
        max_deaths: Times that the process of a trial may die before the trial counts as failed.
    """

    def __init__(self, sampler: Sampler, rungs: list[int], trials: Iterable[Trial], max_deaths: int) -> None:
        self._sampler, self.rungs, self._max_deaths = sampler, rungs, max_deaths
        self._trials = {trial.number: trial for trial in trials}
        self._running: set[int] = set()
        self._deaths: Counter[int] = Counter()
        self._num_trials = sampler.num_trials

    @property
    def num_trials(self) -> int:
        """Return the trials of the whole search."""
        return self._num_trials

    def begin_no_more(self) -> bool:
        """Make the search one of the trials that were begun; return whether it had more, and had begun some."""
        ends = 0 < len(self._trials) < self._num_trials
        if ends:
            self._num_trials = len(self._trials)
        return ends

    @property
    def ended(self) -> list[Trial]:
        """Return the trials that have an outcome."""
        return [trial for trial in self._trials.values() if trial.outcome]

    @property
    def num_begun(self) -> int:
        """Return the trials that were begun."""
        return len(self._trials)

    @property
    def is_idle(self) -> bool:
        """Return whether no trial runs."""
        return not self._running

    def next_step(self) -> Step | None:
        """Return what to run now; None if running trials must end first, or if the search is over.

        Interrupted trials come first, then promotions, then new trials. Only once nothing runs and nothing is new, the
        best trial of a rung with too few for a quarter is promoted.
        """
        for trial in self._trials.values():
            if trial.outcome is None and trial.number not in self._running:
                return Step(trial, scheduler.next_rung(self.rungs, len(trial.epochs)))
        better = self._promotable(last=False)
        if better is None and (number := len(self._trials)) < self.num_trials:
            known = [(t.values, None if t.outcome is None and not t.epochs else t.score) for t in self._trials.values()]
            return Step(Trial(number, self._sampler.propose(number, known), [], None), self.rungs[0])
        if better is None and self.is_idle:
            better = self._promotable(last=True)
        return Step(better, scheduler.next_rung(self.rungs, len(better.epochs) + 1)) if better else None

    def begin(self, trial: Trial) -> None:
        """Note that a trial runs."""
        self._trials[trial.number] = trial
        self._running.add(trial.number)

    def die(self, number: int) -> bool:
        """Note that a trial's process died; return whether the trial has failed by that, and does not go on."""
        self._running.discard(number)
        self._deaths[number] += 1
        return self._deaths[number] > self._max_deaths

    def end(self, trial: Trial) -> None:
        """Note how a trial ended, or that it came to its rung."""
        self._trials[trial.number] = trial
        self._running.discard(trial.number)

    def _promotable(self, *, last: bool) -> Trial | None:
        return scheduler.promotable(self.rungs, list(self._trials.values()), self.num_trials, last)
