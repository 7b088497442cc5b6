"""Trials on disk: what is kept, what counts as best, and what a comparison proves."""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from captcha_ray.metrics.comparison import compare
from captcha_ray.recipes.catalog import get
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.tuning import trials
from captcha_ray.tuning.trials import Trial, TrialOutcome
from tests.factories import epoch, trial

RECIPE = get("isfahan")


def test_a_trial_is_on_disk_from_its_proposal_to_its_end(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    assert trials.load(run) == []
    trials.begin(run, 0, {"dropout": 0.1}, RECIPE)
    trials.begin(run, 1, {"dropout": 0.2}, RECIPE)
    epochs = [epoch(1, 0.5), epoch(2, 0.25)]
    trials.trial_directory(run, 0).write_metrics(epochs)
    ended = trials.end(run, 0, TrialOutcome("stopped", "", 12.5))
    assert ended == Trial(0, {"dropout": 0.1}, epochs, TrialOutcome("stopped", "", 12.5))
    assert trials.load(run) == [ended, Trial(1, {"dropout": 0.2}, [], None)]
    assert (ended.score, ended.accuracy, ended.seconds) == (0.5 + 0.5e-6, 0.5, 4.0)
    assert trials.trial_directory(run, 1).read_json("config.json") == RECIPE.to_dict()


def test_a_proposal_that_was_cut_off_is_none(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    trials.trial_directory(run, 0).write_json("config.json", RECIPE.to_dict())
    assert trials.load(run) == []


def test_the_score_is_that_of_the_best_epoch_and_characters_decide_between_equals() -> None:
    assert trials.score([epoch(1, 0.5), epoch(2, 0.75), epoch(3, 0.25)]) == pytest.approx(0.75, abs=2e-6)
    few, many = [epoch(1, 0.0, characters=0.1)], [epoch(1, 0.0, characters=0.2)]
    assert trials.score(many) > trials.score(few) > 0
    assert trials.score([epoch(1, 0.01, characters=0.1)]) > trials.score([epoch(1, 0.0, characters=1.0)])
    assert trials.score([]) == trials.score([epoch(1, None, None)]) == trials.WORST


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_trial_that_went_wrong_is_the_worst_whatever_it_read_before(status: str) -> None:
    bad = trial(0, 0.9, 0.95, status=status, reason="the loss of epoch 3 is not a number")
    assert bad.score == trials.WORST < trial(1, 0.0).score
    assert trials.best([bad, trial(1, 0.0)]) == trial(1, 0.0)
    assert trials.best([bad]) is None
    assert trials.best([]) is None


def test_the_best_is_the_highest_and_of_equals_the_first() -> None:
    some = [trial(0, 0.5), trial(1, 0.75), trial(2, 0.75), trial(3, 0.25)]
    assert trials.best(some) == some[1]


def test_the_table_has_a_row_a_trial_for_other_readers_too(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    bad = trial(1, status="failed", reason="RuntimeError: no memory")
    running = Trial(2, {"dropout": 0.2, "optimizer": "adam"}, [epoch(1, None, None)], None)
    run.write_table("trials.parquet", trials.table([trial(0, 0.5, 0.75), bad, running]))
    found = duckdb.sql(
        f"SELECT trial, status, reason, score, exact_match, num_epochs, seconds, ended_s, dropout, optimizer, "
        f"epochs[2].val_exact_match FROM '{tmp_path}/trials.parquet'"
    ).fetchall()
    assert found == [
        (0, "finished", None, 0.75 + 0.5e-6, 0.75, 2, 4.0, 1.0, 0.0, "sgd", 0.75),
        (1, "failed", "RuntimeError: no memory", -1.0, 0.0, 0, 0.0, 2.0, 0.1, "sgd", None),
        (2, "running", None, -1.0, 0.0, 1, 2.0, None, 0.2, "adam", None),
    ]


def right(rate: float, seeds: int = 3, images: int = 200, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((seeds, images)) < rate


def test_a_clear_difference_is_told_from_noise() -> None:
    found = compare(right(0.9, seed=1), right(0.6, seed=2))
    assert found.low > 0
    assert "which is more: +" in found.verdict
    assert found.best - found.recipe == pytest.approx(found.difference)
    assert found.low < found.difference < found.high
    assert (found.num_images, found.num_seeds) == (200, 3)
    back = compare(right(0.6, seed=2), right(0.9, seed=1))
    assert "which is less: -" in back.verdict
    same = compare(right(0.75, seed=1), right(0.75, seed=2))
    assert "a difference that may be noise: " in same.verdict


@pytest.mark.parametrize("num_images", [100, 2000])
def test_the_interval_covers_no_difference_as_often_as_it_says(num_images: int) -> None:
    """Of two networks that are equally good, about one comparison in twenty looks like a difference; both seeds and
    images vary here."""

    def network(random: Any, hardness: Any) -> Any:
        skill = random.normal(1.0, 0.3, (3, 1))
        return random.random((3, len(hardness))) < 1 / (1 + np.exp(hardness - skill))

    wrong = 0
    for number in range(200):
        random = np.random.default_rng(number)
        hardness = random.normal(0, 1.5, num_images)
        found = compare(network(random, hardness), network(random, hardness), seed=number)
        wrong += found.low > 0 or found.high < 0
    assert 2 <= wrong <= 20


def test_a_single_seed_counts_the_images_alone() -> None:
    random = np.random.default_rng(0)
    found = compare(random.random((1, 400)) < 0.9, random.random((1, 400)) < 0.7)
    assert 0.1 < found.low < found.difference < found.high < 0.3


def test_one_lucky_seed_is_no_proof() -> None:
    lucky = np.zeros((3, 200), np.bool_)
    lucky[0] = True
    found = compare(lucky, np.zeros((3, 200), np.bool_))
    assert found.difference == pytest.approx(1 / 3)
    assert "a difference that may be noise" in found.verdict
