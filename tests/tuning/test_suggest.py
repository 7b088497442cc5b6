"""What is proposed next: the recipe first, grids in full, and better values the more is known."""

import math
from typing import Any

import pytest

from captcha_ray.errors import InputError
from captcha_ray.tuning.search_space import Choice, Range, Space
from captcha_ray.tuning.suggest import Sampler, importance

SPACE: Space = {
    "learning_rate": Range(1e-5, 1.0, log=True),
    "optimizer": Choice(("sgd", "adam")),
    "size": Range(8, 64, whole=True),
}
START = {"learning_rate": 1e-3, "optimizer": "adam", "size": 32}


def goodness(values: dict[str, Any]) -> float:
    """Best at a learning rate of 1e-2 with adam; the size does not matter."""
    return -abs(math.log10(values["learning_rate"]) + 2) - (values["optimizer"] == "sgd")


def search(kind: Any, seed: int, num: int = 40, of: int = 0) -> list[dict[str, Any]]:
    sampler = Sampler(kind, SPACE, START, of or num, seed)
    earlier: list[tuple[dict[str, Any], float | None]] = []
    for number in range(num):
        values = sampler.propose(number, earlier)
        earlier.append((values, goodness(values)))
    return [values for values, _ in earlier]


def test_a_long_search_is_at_random_for_few_trials_only() -> None:
    values = [search("optuna", seed=0, num=24, of=of)[20:] for of in (80, 1000)]
    assert values[0] == values[1], "the estimator proposes from the 21st on"


@pytest.mark.parametrize("kind", ["optuna", "random"])
def test_the_recipe_comes_first_and_all_values_lie_in_the_space(kind: str) -> None:
    proposed = search(kind, seed=0)
    assert proposed[0] == START
    for values in proposed:
        assert 1e-5 <= values["learning_rate"] <= 1
        assert values["optimizer"] in ("sgd", "adam")
        assert 8 <= values["size"] <= 64
        assert isinstance(values["size"], int)
    assert len({values["learning_rate"] for values in proposed}) == len(proposed)


def test_a_recipe_outside_the_space_is_not_proposed() -> None:
    sampler = Sampler("random", SPACE, {**START, "learning_rate": 2.0}, 4, 0)
    assert sampler.propose(0, []) != {**START, "learning_rate": 2.0}


def test_optuna_learns_where_the_good_values_are() -> None:
    late = [[goodness(v) for v in search(kind, seed)[-10:]] for kind in ("optuna", "random") for seed in range(4)]
    means = [sum(values) / len(values) for values in late]
    assert min(means[:4]) > max(means[4:])


def test_a_seed_proposes_the_same() -> None:
    assert search("optuna", seed=3) == search("optuna", seed=3)
    assert search("optuna", seed=3) != search("optuna", seed=4)


def test_a_grid_is_proposed_in_full_and_then_nothing() -> None:
    space: Space = {"learning_rate": Choice((0.1, 0.2)), "optimizer": Choice(("sgd", "adam"))}
    sampler = Sampler("grid", space, {"learning_rate": 0.2, "optimizer": "adam"}, 9, 0)
    assert sampler.num_trials == 4
    assert [sampler.propose(number, []) for number in range(4)] == [
        {"learning_rate": 0.1, "optimizer": "sgd"},
        {"learning_rate": 0.1, "optimizer": "adam"},
        {"learning_rate": 0.2, "optimizer": "sgd"},
        {"learning_rate": 0.2, "optimizer": "adam"},
    ]


def test_a_grid_larger_than_the_number_of_trials_is_refused() -> None:
    with pytest.raises(InputError, match="the grid has 18 combinations, more than --num-trials 17"):
        Sampler("grid", SPACE, START, 17, 0)


@pytest.mark.parametrize("kind", ["optuna", "random"])
def test_a_search_that_was_cut_off_goes_on_as_if_it_had_not_been(kind: Any) -> None:
    whole = search(kind, seed=0, num=20)
    earlier = [(values, goodness(values)) for values in whole[:12]]
    assert Sampler(kind, SPACE, START, 20, 0).propose(12, earlier) == whole[12]


def test_trials_that_run_count_as_bad_ones() -> None:
    space: Space = {"learning_rate": Range(0.0, 1.0)}
    sampler = Sampler("optuna", space, {}, 8, 0)
    earlier: list[tuple[dict[str, Any], float | None]] = [({"learning_rate": k / 20}, k / 20) for k in range(20)]
    running: list[tuple[dict[str, Any], float | None]] = [({"learning_rate": 0.97 + k / 1000}, None) for k in range(30)]
    alone = [sampler.propose(number, earlier)["learning_rate"] for number in range(100, 130)]
    beside = [sampler.propose(number, [*earlier, *running])["learning_rate"] for number in range(100, 130)]
    assert sum(value > 0.96 for value in alone) > 2 * sum(value > 0.96 for value in beside)


def test_importance_names_the_parameter_that_matters() -> None:
    rows = [(values, -abs(values["size"] - 30.0)) for values in search("random", seed=0, num=60)]
    shares = importance(SPACE, rows)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda name: shares[name]) == "size"
    assert importance(SPACE, [(values, 1.0) for values, _ in rows]) == {}
    assert importance(SPACE, rows[:2]) == {}
