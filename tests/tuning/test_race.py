"""Run `train --auto thorough` on a real Ray: settings are tried, the winner is trained, and nothing is tried twice."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import captcha_ray
from captcha_ray.datasets.shards import Shards
from captcha_ray.errors import InputError
from captcha_ray.metrics.comparison import compare
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.training import trainer
from captcha_ray.tuning import race, trials, tuner
from tests.factories import SHORT_RECIPE

HOPELESS = dataclasses.replace(SHORT_RECIPE, dropout=0.97)  # with a dropout of .1 it learns at once


@pytest.mark.usefixtures("ray_cluster")
def test_the_setting_that_wins_by_validation_is_trained_and_the_report_says_by_how_much(
    glyph_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    config = dataclasses.replace(HOPELESS, shards=glyph_shards.uri, run=str(run), auto="thorough")
    trained = captcha_ray.train(config)
    raced = trained.results["race"]
    assert raced["setting"] == "low-dropout"
    assert [one["setting"] for one in raced["tried"]] == ["rules", "noisy", "low-dropout", "slow"]
    best = max(raced["tried"], key=lambda one: one["exact_match"])
    assert best["setting"] == "low-dropout"
    assert "trained in full with 2 seeds each: the best trial's config recognizes" in raced["verdict"]
    assert json.loads((run / "resolved_config.json").read_text())["dropout"] == 0.1
    assert json.loads((run / "config.json").read_text())["setting"] == "low-dropout"
    page = (run / "report.html").read_text()
    assert "Race of settings" in page
    assert raced["verdict"].split(":")[0] in page
    assert Path(raced["report"]) == tmp_path / "run-race" / "report.html"
    assert Path(raced["report"]).exists()

    monkeypatch.setattr(tuner, "run", None)
    again = captcha_ray.train(dataclasses.replace(config, resume=True))
    assert again.results == trained.results


@pytest.mark.usefixtures("ray_cluster")
def test_a_race_that_was_cut_off_goes_on_and_lucky_settings_do_not_win(
    glyph_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(HOPELESS, shards=glyph_shards.uri, run=str(tmp_path / "run"), auto="thorough")
    with monkeypatch.context() as patch:
        patch.setattr(tuner, "_compare", interrupt)
        with pytest.raises(KeyboardInterrupt):
            captcha_ray.train(config)
    ended = {one.number: one.outcome for one in trials.load(RunDirectory(str(tmp_path / "run-race")))}
    assert len(ended) == 4
    with pytest.raises(InputError, match="run-race already holds a run"):
        captcha_ray.train(config)

    def no_better(*_: object) -> object:
        return compare(np.array([[True, False]] * 2), np.array([[False, True]] * 2))

    monkeypatch.setattr(tuner, "_compare", no_better)
    trained = captcha_ray.train(dataclasses.replace(config, resume=True))
    assert {one.number: one.outcome for one in trials.load(RunDirectory(str(tmp_path / "run-race")))} == ended
    assert max(trained.results["race"]["tried"], key=lambda one: one["exact_match"])["setting"] == "low-dropout"
    assert trained.results["race"]["setting"] == "rules"


@pytest.mark.usefixtures("ray_cluster")
def test_a_training_that_has_begun_keeps_its_setting(
    glyph_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(HOPELESS, shards=glyph_shards.uri, run=str(tmp_path / "run"), epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_run_trainer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            captcha_ray.train(dataclasses.replace(config, setting="slow"))
    monkeypatch.setattr(tuner, "run", None)
    trained = captcha_ray.train(dataclasses.replace(config, auto="thorough", resume=True))
    assert "race" not in trained.results
    assert json.loads((tmp_path / "run/config.json").read_text())["setting"] == "slow"


@pytest.mark.usefixtures("ray_cluster")
def test_a_race_that_is_over_is_not_run_again(
    glyph_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided: dict[str, Any] = {"setting": "slow", "best": "slow", "verdict": "it won", "tried": [], "report": "page"}
    directory = RunDirectory(str(tmp_path / "run-race"))
    directory.write_json("race.json", decided)
    directory.finish()
    monkeypatch.setattr(tuner, "run", None)
    config = dataclasses.replace(HOPELESS, shards=glyph_shards.uri, run=str(tmp_path / "run"), epochs=1)
    trained = captcha_ray.train(dataclasses.replace(config, auto="thorough", resume=True))
    assert trained.results["race"] == decided
    resolved = json.loads((tmp_path / "run/resolved_config.json").read_text())
    assert resolved["learning_rate"] == pytest.approx(HOPELESS.learning_rate / 3)


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"epochs": 29}, {"scheduler": "none", "hours": 1.0}),
        ({"epochs": 30, "race_hours": 0.5}, {"scheduler": "asha", "hours": 0.5}),
        ({"num_workers": 2, "batch_size": 8}, {"workers_per_trial": 1}),
    ],
)
def test_a_race_is_a_search_within_the_hours_that_were_named(
    glyph_shards: Shards, tmp_path: Path, changes: dict[str, Any], asked: dict[str, Any]
) -> None:
    config = dataclasses.replace(SHORT_RECIPE, shards=glyph_shards.uri, run=str(tmp_path / "run"), **changes)
    search, recipe = race._search(config, "race", glyph_shards)
    assert {name: getattr(search, name) for name in asked} == asked
    assert recipe.workers == (1, 1)
    assert recipe.batch_size == config.batch_size * config.workers[1], "a step has as many images"


def test_what_would_fail_after_the_race_is_refused_before(glyph_shards: Shards, tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT_RECIPE, shards=glyph_shards.uri, run=str(tmp_path / "run"), auto="thorough")
    with pytest.raises(InputError, match="holds no checkpoint"):
        race.run(
            dataclasses.replace(config, network="column_cnn", init=str(tmp_path / "old"), head="light"), glyph_shards
        )
    with pytest.raises(InputError, match="batch normalization needs"):
        race.run(dataclasses.replace(config, num_workers=150), glyph_shards)


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_that_holds_a_run_is_refused_before_the_race(glyph_shards: Shards, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    with pytest.raises(InputError, match="run already holds a run"):
        captcha_ray.train(
            dataclasses.replace(SHORT_RECIPE, shards=glyph_shards.uri, run=str(tmp_path / "run"), auto="thorough")
        )
    assert not (tmp_path / "run-race").exists()
