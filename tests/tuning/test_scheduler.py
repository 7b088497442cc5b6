"""Successive halving: where trials stop, who goes on, and what a whole search of them costs."""

import dataclasses

import numpy as np
import pytest

from captcha_ray.tuning import scheduler
from captcha_ray.tuning.trials import Trial, TrialOutcome
from tests.factories import trial


def stopped(number: int, *strings: float) -> Trial:
    return trial(number, *strings, status="stopped")


def choose(found: list[Trial], rungs: list[int], last: bool = False, num_trials: int = 4) -> int | None:
    chosen = scheduler.promotable(rungs, found, num_trials, last)
    return None if chosen is None else chosen.number


@pytest.mark.parametrize(
    ("epochs", "rungs"),
    [(60, [10, 30, 60]), (120, [20, 60, 120]), (10, [1, 5, 10]), (4, [1, 2, 4]), (2, [1, 2]), (1, [1])],
)
def test_rungs_lie_at_a_sixth_a_half_and_the_end(epochs: int, rungs: list[int]) -> None:
    assert scheduler.rungs(epochs) == rungs
    assert scheduler.next_rung(rungs, 0) == rungs[0]
    assert scheduler.next_rung(rungs, rungs[0]) == rungs[0]
    assert scheduler.next_rung(rungs, epochs) == epochs


def test_the_best_quarter_goes_on() -> None:
    found = [stopped(0, 0.5), stopped(1, 0.25), stopped(2, 0.125)]
    assert choose(found, [1, 3]) is None
    found.append(stopped(3, 0.75))
    assert choose(found, [1, 3]) == 3
    found[3] = trial(3, 0.75, 0.75, 0.75)
    assert choose(found, [1, 3]) is None
    found += [stopped(number, 0.125) for number in range(4, 8)]
    assert choose(found, [1, 3]) == 0


def test_nobody_goes_on_before_two_thirds_have_been_to_the_first_rung() -> None:
    found = [stopped(number, number / 8) for number in range(4)]
    assert choose(found, [1, 3], num_trials=6) == 3
    assert choose(found, [1, 3], num_trials=7) is None
    assert choose(found, [1, 3], num_trials=7, last=True) == 3
    begun = [dataclasses.replace(stopped(4), epochs=[], outcome=None)]
    assert choose([*found, *begun], [1, 3], num_trials=7) is None
    assert choose([*found, trial(4, 0.125, status="diverged")], [1, 3], num_trials=7) == 3


def test_trials_are_compared_as_they_were_at_the_rung() -> None:
    found = [trial(0, 0.25, 0.9, 0.9), stopped(1, 0.5), stopped(2, 0.125), stopped(3, 0.125)]
    assert choose(found, [1, 3]) == 1


def test_the_highest_rung_goes_first() -> None:
    found = [stopped(number, 0.5, 0.5, 0.5 + number / 8) for number in range(4)]
    found += [stopped(number, 0.75) for number in range(4, 16)]
    assert choose(found, [1, 3, 9]) == 3


def test_who_runs_or_has_failed_does_not_go_on() -> None:
    running = dataclasses.replace(stopped(0, 0.75), outcome=None)
    failed = Trial(1, {}, stopped(1, 1.0).epochs, TrialOutcome("failed", "no memory", 1.0))
    found = [running, failed, stopped(2, 0.5), stopped(3, 0.25)]
    assert choose(found, [1, 3]) is None
    assert choose([*found, *(stopped(number, 0.125) for number in range(4, 9))], [1, 3]) == 2


def test_one_that_was_cut_off_beyond_its_rung_goes_on_all_the_same() -> None:
    found = [stopped(0, 0.5, 0.75), *(stopped(number, 0.25) for number in range(1, 4))]
    assert choose(found, [1, 3]) == 0


def test_one_that_diverged_late_does_not_keep_others_from_the_end() -> None:
    found = [trial(0, 0.5, 0.5, 0.5, status="diverged"), stopped(1, 0.25), stopped(2, 0.125)]
    assert choose(found, [1, 3], last=True) == 1


def test_at_the_end_of_a_small_search_the_best_one_is_trained_in_full() -> None:
    found = [stopped(0, 0.25), stopped(1, 0.5)]
    assert choose(found, [1, 3, 9], last=True) == 1
    found[1] = stopped(1, 0.5, 0.5, 0.5)
    assert choose(found, [1, 3, 9], last=True) == 1
    found[1] = trial(1, *[0.5] * 9)
    assert choose(found, [1, 3, 9], last=True) is None


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_search_of_it_costs_less_than_a_third_and_finds_a_good_trial(at_once: int) -> None:
    """Of 60 trials whose order is known from the first rung on."""
    random = np.random.default_rng(at_once)
    quality = random.permutation(60) / 60
    rungs, found = scheduler.rungs(60), []
    running: list[Trial] = []
    while True:
        while len(running) < at_once:
            busy = {one.number for one in running}
            shown = [dataclasses.replace(one, outcome=None) if one.number in busy else one for one in found]
            chosen = scheduler.promotable(rungs, shown, 60, last=False)
            if chosen is None and len(found) < 60:
                chosen = Trial(len(found), {}, [], None)
                found.append(chosen)
            if chosen is None and not running:
                chosen = scheduler.promotable(rungs, shown, 60, last=True)
            if chosen is None:
                break
            running.append(chosen)
        if not running:
            break
        number = running.pop(0).number
        until = scheduler.next_rung(rungs, len(found[number].epochs) + 1)
        found[number] = trial(
            number, *[float(quality[number])] * until, status="finished" if until == 60 else "stopped"
        )
    total = sum(len(one.epochs) for one in found)
    assert max(quality[one.number] for one in found if len(one.epochs) == 60) == quality.max()
    assert scheduler.expected_epochs(rungs, 60) == 60 * 10 + 15 * 20 + 3 * 30
    assert scheduler.expected_epochs(rungs, 60) <= total < 60 * 60 / 3


def test_one_whose_patience_was_spent_counts_at_every_rung() -> None:
    found = [trial(0, 0.25), *(stopped(number, *[number / 8] * 3) for number in range(1, 4))]
    assert choose(found, [1, 3, 9]) == 3


@pytest.mark.parametrize(
    ("num_trials", "num_concurrent", "epochs"),
    [(1, 1, 12), (7, 1, 12), (8, 1, 2 + 2 * 4 + 6), (32, 1, 2 + 8 * 4 + 2 * 6), (32, 4, 2 + 2 * 4 + 6), (32, 99, 12)],
)
def test_what_is_left_when_the_last_trial_begins_depends_on_how_many_run_at_a_time(
    num_trials: int, num_concurrent: int, epochs: int
) -> None:
    assert scheduler.left_seconds([2, 6, 12], num_trials, num_concurrent, 60.0) == 60 * epochs
