"""Propose the values of a search's next trial: Optuna's TPE, random values, or a grid. Knows no Ray and no files."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from captcha_ray.errors import check
from captcha_ray.tuning.config import Search
from captcha_ray.tuning.search_space import Parameter, Range, Space, grid

Values = dict[str, Any]

MOST_AT_RANDOM = 20
"""Most trials at random before the estimator proposes, as in Hyperopt, whose authors devised it."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Proposes trials: the same number after the same earlier trials gets the same values.

    optuna: tree-structured Parzen estimator (J. Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011)
    after a quarter of the trials at random, at most `MOST_AT_RANDOM`; running trials count as bad ones, so that two at
    once do not try the same.
    start: values of the recipe, proposed first if the space holds them, except in a grid. at_most: trials of the whole
    search. Raises InputError for a grid of more combinations than that.
    """

    search: Search
    space: Space
    start: Mapping[str, Any]
    at_most: int
    seed: int

    def __post_init__(self) -> None:
        check(
            self.num_trials <= self.at_most,
            f"the grid has {self.num_trials:,} combinations, more than --num-trials {self.at_most:,}; raise it, or "
            f"vary fewer parameters or values",
        )

    @property
    def num_trials(self) -> int:
        """Return how many trials there are to propose."""
        return math.prod(len(one.points()) for one in self.space.values()) if self.search == "grid" else self.at_most

    @property
    def missed(self) -> list[str]:
        """Return the parameters whose space lacks the recipe's value, so that no trial has the recipe's own values."""
        return [name for name, one in self.space.items() if not _holds(one, self.start.get(name))]

    def propose(self, number: int, earlier: Sequence[tuple[Values, float | None]]) -> Values:
        """Return the values of trial `number`, below `num_trials`.

        earlier: values of the other trials and their scores, higher is better; None for a trial without one.
        """
        if self.search == "grid":
            return next(itertools.islice(grid(self.space), number, None))
        if number == 0 and not self.missed:
            return {name: self.start[name] for name in self.space}
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
        if self.search == "optuna":
            at_random = min(max(self.num_trials // 4, 4), MOST_AT_RANDOM)
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=at_random, constant_liar=True, multivariate=True
            )
        study = _study(self.space, earlier, sampler)
        return dict(study.ask(_distributions(self.space)).params)


def importance(space: Space, trials: Sequence[tuple[Values, float]]) -> dict[str, float]:
    """Return each parameter's share in what tells good trials from the rest, adding up to 1; empty if nothing tells.

    PED-ANOVA (S. Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
    Subspaces", 2023), which looks at the best tenth, so fewer than ten trials tell nothing.
    """
    if len({score for _, score in trials}) < 2 or len(trials) < 10:
        return {}
    study = _study(space, trials)
    found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    total = sum(found.values())
    return {name: value / total for name, value in found.items()} if total > 0 else {}


def _study(
    space: Space, trials: Sequence[tuple[Values, float | None]], sampler: optuna.samplers.BaseSampler | None = None
) -> optuna.Study:
    """Return the study that Optuna would have after proposing these trials.

    A study kept from proposal to proposal would not do: a trial that is promoted later gets another score, which Optuna
    allows no finished trial.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for values, score in trials:
        state = optuna.trial.TrialState.RUNNING if score is None else optuna.trial.TrialState.COMPLETE
        known = optuna.trial.create_trial(params=values, distributions=_distributions(space), value=score, state=state)
        study.add_trial(known)
    return study


def _distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    return {name: _distribution(parameter) for name, parameter in space.items()}


def _distribution(parameter: Parameter) -> optuna.distributions.BaseDistribution:
    if not isinstance(parameter, Range):
        return optuna.distributions.CategoricalDistribution(parameter.values)
    if parameter.whole:
        return optuna.distributions.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return optuna.distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _holds(parameter: Parameter, value: Any) -> bool:
    if isinstance(parameter, Range):
        return value is not None and parameter.low <= value <= parameter.high
    return value in parameter.values
