"""What a search does next follows from its trials alone: no Ray, no files."""

import dataclasses

from captcha_ray.tuning import search_space
from captcha_ray.tuning.search_state import SearchState
from captcha_ray.tuning.suggest import Sampler
from captcha_ray.tuning.trials import Trial, TrialOutcome
from tests.factories import SHORT_RECIPE, epoch, trial

RUNGS = [1, 3, 6]


def state(num_trials: int = 8, begun: tuple[Trial, ...] = ()) -> SearchState:
    space = search_space.build(SHORT_RECIPE, "", ["dropout"], only=True)
    sampler = Sampler("random", space, search_space.values_of(SHORT_RECIPE, space), num_trials, 0)
    return SearchState(sampler, RUNGS, begun, max_deaths=2)


def run(search: SearchState, strings: float) -> Trial:
    """Runs the next step to its epoch, where so many strings are right; returns the trial as it then is."""
    step = search.next_step()
    assert step
    search.begin(dataclasses.replace(step.trial, outcome=None))
    epochs = [epoch(number, strings) for number in range(1, step.until + 1)]
    status = "finished" if step.until == RUNGS[-1] else "stopped"
    ended = dataclasses.replace(step.trial, epochs=epochs, outcome=TrialOutcome(status, "", 1.0))
    search.end(ended)
    return ended


def test_new_trials_run_to_the_first_rung_and_the_recipes_own_values_come_first() -> None:
    search = state()
    step = search.next_step()
    assert step
    assert (step.trial.number, step.until, step.trial.values) == (0, 1, {"dropout": SHORT_RECIPE.dropout})


def test_what_was_cut_off_comes_before_anything_new() -> None:
    cut_off = dataclasses.replace(trial(0, 0.1, 0.2), values={"dropout": 0.3}, outcome=None)
    search = state(begun=(cut_off,))
    step = search.next_step()
    assert step
    assert (step.trial, step.until) == (cut_off, 3)
    search.begin(cut_off)
    following = search.next_step()
    assert following
    assert following.trial.number == 1, "it runs, so the next is new"


def test_the_best_are_promoted_and_the_search_is_over_once_one_has_come_to_the_end() -> None:
    search = state()
    steps = []
    while step := search.next_step():
        strings = step.trial.number / 10
        steps.append((step.trial.number, step.until))
        run(search, strings)
        assert len(steps) < 30
    assert {number for number, _ in steps} == set(range(8))
    assert steps[-1] == (7, 6), "the best of all goes on to the end"
    assert search.is_idle
    assert len(search.ended) == 8


def test_a_search_that_begins_no_more_ends_as_one_of_the_trials_that_it_has() -> None:
    search = state(num_trials=100)
    assert not search.begin_no_more(), "one trial at least is begun"
    for _ in range(5):
        run(search, 0.5)
    assert search.begin_no_more()
    assert not search.begin_no_more(), "it is told once"
    assert search.num_trials == 5
    steps = []
    while step := search.next_step():
        steps.append((step.trial.number, step.until))
        run(search, 0.5)
        assert len(steps) < 30
    assert steps == [(0, 3), (0, 6)], "the best quarter goes on"


def test_while_trials_run_nothing_more_is_begun_than_there_are() -> None:
    search = state(num_trials=2)
    for _ in range(2):
        step = search.next_step()
        assert step
        search.begin(step.trial)
    assert search.next_step() is None
    assert not search.is_idle


def test_a_trial_whose_process_dies_goes_on_until_it_has_died_too_often() -> None:
    search = state(num_trials=1)
    for has_failed in (False, False, True):
        step = search.next_step()
        assert step
        search.begin(step.trial)
        assert search.next_step() is None
        assert search.die(step.trial.number) is has_failed
