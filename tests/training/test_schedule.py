"""Schedules: step sizes, the alignment prior, and what a training makes of the losses it has seen."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from captcha_ray.recipes.catalog import get
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.training.schedule import Change, Plan

GUESS = 10.0
"""Loss of guessing."""

ADAPTIVE = dataclasses.replace(get("auto"), init="", epochs=20, max_epochs=80, learning_rate=1.0)
"""Planned for 20 epochs, 80 at most."""


def plan(config: TrainConfig = ADAPTIVE, steps: int = 50) -> Plan:
    return Plan.first(config, steps, GUESS)


def lines(losses: list[float], strings: list[float] | None = None) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl`; with validation where there are strings."""
    found: list[dict[str, Any]] = [{"epoch": n, "train_loss": loss} for n, loss in enumerate(losses, 1)]
    for line, share in zip(found, strings or [], strict=False):
        line["val_exact_match"] = share
    return found


def follow(start: Plan, epochs: list[dict[str, Any]]) -> tuple[Plan, list[tuple[int, Change]]]:
    """The plan after the last epoch, or the one that ended it, and when what was changed."""
    changes = []
    for done in range(1, len(epochs) + 1):
        start = start.after(epochs[:done])
        if start.change:
            changes.append((done, start.change))
        if done == start.num_epochs:
            break
    return start, changes


# --------------------------------------------------------------------------------------------------------- step sizes


@pytest.mark.parametrize(("fraction", "share"), [(0.0, 0.04), (0.15, 0.52), (0.3, 1.0), (0.65, 0.5), (1.0, 0.0)])
def test_one_cycle_warms_up_linearly_for_thirty_percent_and_falls_like_a_cosine_to_zero(
    fraction: float, share: float
) -> None:
    config = TrainConfig(schedule="one_cycle", learning_rate=0.2, epochs=10)
    assert plan(config).learning_rate(10 * fraction) == pytest.approx(0.2 * share)


@pytest.mark.parametrize(("fraction", "share"), [(0.05, 0.52), (0.1, 1.0), (0.55, 0.5), (1.0, 0.0)])
def test_one_cycle_warms_up_as_long_as_it_is_told(fraction: float, share: float) -> None:
    config = TrainConfig(schedule="one_cycle", learning_rate=0.2, warmup_fraction=0.1, epochs=4)
    assert plan(config).learning_rate(4 * fraction) == pytest.approx(0.2 * share)
    assert plan(dataclasses.replace(config, warmup_fraction=0.0)).learning_rate(0.0) == 0.2


@pytest.mark.parametrize("done", [0.0, 5.0, 10.0])
def test_a_constant_schedule_is_constant(done: float) -> None:
    assert plan(TrainConfig(schedule="constant", learning_rate=0.2, epochs=10)).learning_rate(done) == 0.2


@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_other_schedules_take_as_many_epochs_as_they_are_told_whatever_happens(epochs: int) -> None:
    for name in ("constant", "one_cycle"):
        start = plan(TrainConfig(schedule=name, epochs=epochs))  # type: ignore[arg-type]
        found, changes = follow(start, lines([GUESS] * 100))
        assert (found.num_epochs, changes) == (epochs, [])


def test_no_rate_jumps_within_a_cycle() -> None:
    recognizing = follow(plan(), lines([9.0, 4.0]))[0]
    for one, end in (
        (plan(TrainConfig(schedule="one_cycle", epochs=20, learning_rate=1.0)), 20.0),
        (recognizing, 20.0),
    ):
        rates = np.array([one.learning_rate(x) for x in np.linspace(0, end, 1001)])
        assert np.abs(np.diff(rates)).max() < 0.01
        assert rates.max() <= 1
        assert rates[-1] == pytest.approx(0)


def test_the_warm_up_takes_at_most_200_steps() -> None:
    """15 % of 20 epochs are 3, which are 150 steps of 50 an epoch and 30 of 10."""
    assert plan().learning_rate(1.5) == pytest.approx(0.52)
    assert plan(steps=10).learning_rate(1.5) == pytest.approx(0.52)
    assert plan(steps=500).learning_rate(0.2) == pytest.approx(0.52)
    assert plan(dataclasses.replace(ADAPTIVE, warmup_fraction=0.0)).learning_rate(0.0) == 1.0


def test_a_network_that_recognizes_text_early_is_taught_at_the_rates_of_one_cycle() -> None:
    """Two steps an epoch, as with 50 images: the warm-up is all of 30 % of 20 epochs."""
    early = follow(plan(dataclasses.replace(ADAPTIVE, warmup_fraction=0.3), steps=2), lines([9.0, 4.0]))[0]
    one_cycle = plan(TrainConfig(schedule="one_cycle", warmup_fraction=0.3, epochs=20, learning_rate=1.0), steps=2)
    assert early.decays_from == 2
    for done in np.linspace(2, 20, 181):
        assert early.learning_rate(done) == pytest.approx(one_cycle.learning_rate(done))


# ---------------------------------------------------------------------------------------------------- alignment prior


@pytest.mark.parametrize(
    ("steps", "epochs", "whole"),
    [
        (50, 40, 100),  # steps: a hundred, however many more there are
        (5, 320, 48),  # few images: 9.6 epochs
        (50, 10, 50),  # a short training: a tenth of its 500 steps
    ],
)
def test_the_prior_is_whole_at_first_and_gone_after_ten_thirds_of_that_time(
    steps: int, epochs: int, whole: int
) -> None:
    one = plan(dataclasses.replace(ADAPTIVE, epochs=epochs, max_epochs=4 * epochs), steps)
    shares = [one.prior(step / steps) for step in (0, whole, 13 / 6 * whole, 10 / 3 * whole, 10 * whole)]
    assert shares == pytest.approx([1, 1, 0.5, 0, 0])


def test_the_prior_lasts_three_times_as_long_at_every_new_beginning() -> None:
    again = dataclasses.replace(plan(), attempt=1, begun=14)
    assert [again.prior(14 + step / 50) for step in (0, 300, 650, 1000)] == pytest.approx([1, 1, 0.5, 0])


# ------------------------------------------------------------------------------------------- what the losses lead to


def test_the_rate_is_held_until_the_network_reads_and_then_falls_within_the_planned_epochs() -> None:
    found, changes = follow(plan(), lines([50.0, 30.0, 9.0, 6.0, 4.9, 3.0]))
    assert changes == [(5, Change.RECOGNIZES)]
    assert (found.decays_from, found.num_epochs) == (5, 20)
    assert found.learning_rate(5) == pytest.approx(1)
    assert found.learning_rate(12.5) == pytest.approx(0.5)
    assert found.learning_rate(20) == pytest.approx(0)


def test_a_network_that_reads_late_has_seven_tenths_of_the_planned_epochs_left() -> None:
    slowly = [10.0 * 0.97**n for n in range(23)]  # falls by a tenth in 150 steps, below half after 22 epochs
    found, changes = follow(plan(), lines([*slowly, 4.0]))
    assert changes == [(24, Change.RECOGNIZES)]
    assert found.num_epochs == 24 + 14


def test_a_network_on_a_plateau_begins_anew_with_a_longer_prior() -> None:
    """The first prior ends after 6.7 epochs, and then twice 3 epochs are compared."""
    found, changes = follow(plan(), lines([60.0, 30.0, *[8.0] * 11]))
    assert changes == [(13, Change.RESTART)]
    assert (found.attempt, found.begun, found.decays_from) == (1, 13, None)
    assert found.learning_rate(13) == pytest.approx(0.04)
    assert found.prior(13 + 5.9) == 1


def test_a_loss_that_still_falls_is_no_plateau() -> None:
    falling = [10.0 * 0.992**n for n in range(20)]  # by 2.4 % in 150 steps
    stuck = [10.0 * 0.9945**n for n in range(20)]  # by 1.6 %
    assert follow(plan(), lines(falling))[1] == []
    assert follow(plan(), lines(stuck))[1] == [(13, Change.RESTART)]


def test_the_second_beginning_is_the_last_one_there_is_time_for_and_the_training_ends() -> None:
    """Its prior takes 20 epochs, the third one's would take 60 of the 80."""
    found, changes = follow(plan(), lines([8.0] * 100))
    assert changes == [(13, Change.RESTART), (39, Change.LIMIT)]
    assert found.num_epochs == 39 + 14


def test_with_time_enough_there_are_three_beginnings() -> None:
    config = dataclasses.replace(ADAPTIVE, max_epochs=400)
    found, changes = follow(plan(config), lines([8.0] * 500))
    assert [change for _, change in changes] == [Change.RESTART, Change.RESTART, Change.LIMIT]
    assert found.attempt == 2


@pytest.mark.parametrize(("epochs", "decays_from"), [(1, 0), (2, 0), (3, 0), (10, 3), (20, 6)])
def test_a_training_of_a_named_length_has_it_and_its_rate_falls_for_seven_tenths(epochs: int, decays_from: int) -> None:
    named = dataclasses.replace(ADAPTIVE, epochs=epochs, max_epochs=epochs)
    for loss in (8.0, 1.0):
        found, _ = follow(plan(named), lines([loss] * 40, [0.2] * 40))
        assert found.num_epochs == epochs
        assert found.decays_from == (decays_from if loss > 5 else min(decays_from, 1))
        assert found.learning_rate(epochs) == pytest.approx(0)


def test_a_limit_is_kept_whatever_happens() -> None:
    rng = np.random.default_rng(0)
    for limit in (20, 27, 35, 80):
        config = dataclasses.replace(ADAPTIVE, max_epochs=limit)
        for _ in range(50):
            losses = (rng.choice([4.0, 8.0, 9.0, 30.0], 100, p=[0.02, 0.5, 0.38, 0.1])).tolist()
            found, _ = follow(plan(config), lines(losses, rng.random(100).tolist()))
            assert found.num_epochs <= limit
            assert found.decays_from is not None


# ---------------------------------------------------------------------------------------------- while it gets better


def test_a_training_goes_on_at_half_the_rate_while_validation_gets_better() -> None:
    """Cycles of ten epochs; the third one gains less than a point."""
    strings = [0.0] * 3 + [0.5] * 17 + [0.6] * 10 + [0.605] * 100
    found, changes = follow(plan(), lines([9.0, 9.0] + [3.0] * 128, strings))
    assert changes == [(3, Change.RECOGNIZES), (20, Change.EXTEND), (30, Change.EXTEND)]
    assert found.num_epochs == 40
    second, _ = follow(plan(), lines([9.0, 9.0] + [3.0] * 18, strings))
    assert second.learning_rate(20) == pytest.approx(0.5)
    assert second.learning_rate(30) == pytest.approx(0)


@pytest.mark.parametrize("strings", [[0.0] + [0.96] * 39, [0.0] * 40, None], ids=["good", "nothing", "no validation"])
def test_a_training_ends_where_there_is_little_to_gain(strings: list[float] | None) -> None:
    found, changes = follow(plan(), lines([9.0] + [3.0] * 39, strings))
    assert changes == [(2, Change.RECOGNIZES)]
    assert found.num_epochs == 20


def test_a_plan_that_was_kept_goes_on_as_one_that_was_never_cut_off() -> None:
    rng = np.random.default_rng(1)
    epochs = lines(rng.choice([3.0, 8.0, 30.0], 60, p=[0.05, 0.85, 0.1]).tolist(), rng.uniform(0, 0.3, 60).tolist())
    undisturbed = kept = plan()
    for done in range(1, 61):
        undisturbed = undisturbed.after(epochs[:done])
        kept = plan().restored(json.loads(json.dumps(kept.after(epochs[:done]).to_dict())))
        assert dataclasses.replace(undisturbed, change=Change.NONE) == kept


def test_what_was_decided_stays_where_epochs_have_another_number_of_steps() -> None:
    """So it is where a training goes on with more workers: the attempt that began at epoch 13 goes on."""
    before, _ = follow(plan(), lines([8.0] * 14))
    for steps in (25, 49, 100):
        again = plan(steps=steps).restored(before.to_dict())
        assert (again.attempt, again.begun, again.steps) == (1, 13, steps)


def test_a_network_that_reads_is_not_begun_anew_though_its_loss_stands_still() -> None:
    found, changes = follow(plan(), lines([5.5] * 40, [0.6] * 40))
    assert changes[0] == (13, Change.RECOGNIZES)
    assert found.attempt == 0


def test_a_network_that_has_nothing_to_tell_apart_reads_at_once() -> None:
    """All labels are the same: guessing costs nothing, and no loss is below that."""
    found, changes = follow(Plan.first(ADAPTIVE, 50, 0.0), lines([1e-4] * 40, [1.0] * 40))
    assert changes == [(1, Change.RECOGNIZES)]
    assert found.num_epochs == 20
    unvalidated = [{"epoch": 1, "train_loss": 1e-4, "train_exact_match": 1.0}]
    assert Plan.first(ADAPTIVE, 50, 0.0).after(unvalidated).change is Change.RECOGNIZES


def test_a_loss_that_is_no_number_changes_nothing() -> None:
    assert follow(plan(), [{"epoch": 1, "train_loss": None}])[0].change is Change.NONE


def test_a_training_that_begins_with_weights_has_the_prior_from_its_second_attempt_on() -> None:
    fresh, begun = plan(ADAPTIVE), plan(dataclasses.replace(ADAPTIVE, init="runs/old"))
    assert (fresh.prior(0), begun.prior(0)) == (1.0, 0.0)
    second = dataclasses.replace(begun, attempt=1)
    assert [second.prior(done) for done in (0, 2, 4, 8)] == [fresh.prior(done) for done in (0, 2, 4, 8)]
