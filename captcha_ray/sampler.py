"""Proposes the values of a search's next trial: Optuna's TPE, random values, or a grid. Knows no Ray and no files."""

from collections.abc import Iterator, Mapping
from typing import Any

import optuna

from captcha_ray.config import Search, check
from captcha_ray.space import Parameter, Range, Space, grid

Values = dict[str, Any]


class Sampler:
    """Proposals one after another; what is told of the earlier ones shapes the later ones.

    optuna: tree-structured Parzen estimator (J. Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011)
    after a quarter of the trials at random; trials that still run count as bad ones, so that two at once do not try
    the same. start: values of the recipe, proposed first where the space holds them, except in a grid.
    """

    def __init__(self, search: Search, space: Space, start: Mapping[str, Any], num_trials: int, seed: int) -> None:
        self._distributions = {name: _distribution(parameter) for name, parameter in space.items()}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
        if search == "optuna":
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=max(num_trials // 4, 4), constant_liar=True
            )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: dict[int, optuna.Trial] = {}
        self._endless = search != "grid"
        if search == "grid":
            points = grid(space)
            check(
                len(points) <= num_trials,
                f"the grid has {len(points):,} combinations, more than --num-trials {num_trials:,}; raise it, or vary "
                f"fewer parameters or values",
            )
        else:
            points = [dict(start)] if all(_holds(one, start.get(name)) for name, one in space.items()) else []
        self._first: Iterator[Values] = iter(points)

    def replay(self, number: int, values: Values, score: float | None) -> None:
        """Takes a trial of an earlier session for the next proposal. score: None where it has not ended."""
        next(self._first, None)
        self._study.enqueue_trial(values)
        self._asked[number] = self._study.ask(self._distributions)
        if score is not None:
            self.tell(number, score)

    def propose(self, number: int) -> Values | None:
        """The values of trial `number`; None where a grid is done."""
        values = next(self._first, None)
        if values is not None:
            self._study.enqueue_trial(values)
        elif not self._endless:
            return None
        self._asked[number] = self._study.ask(self._distributions)
        return dict(self._asked[number].params)

    def tell(self, number: int, score: float) -> None:
        """The score, the higher the better, of a trial that was proposed or replayed."""
        self._study.tell(self._asked.pop(number), score)


def importance(space: Space, trials: list[tuple[Values, float]]) -> dict[str, float]:
    """Share of each parameter in what tells good trials from the rest, adding up to 1; empty where nothing tells.

    PED-ANOVA (S. Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
    Subspaces", 2023), for trials of (values, score); it looks at the best tenth, so fewer than ten tell nothing.
    """
    if len({score for _, score in trials}) < 2 or len(trials) < 10:
        return {}
    distributions = {name: _distribution(parameter) for name, parameter in space.items()}
    study = optuna.create_study(direction="maximize")
    for values, score in trials:
        study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=score))
    found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    total = sum(found.values())
    return {name: value / total for name, value in found.items()} if total > 0 else {}


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
