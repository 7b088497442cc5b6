"""`train --auto thorough` on a real Ray: settings are tried, the winner is trained, and nothing is tried twice."""

import dataclasses
import json
from pathlib import Path

import pytest

import captcha_ray
from captcha_ray.datasets.shards import Shards
from captcha_ray.errors import InputError
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.tuning import trials, tuner
from tests.factories import SHORT_RECIPE

HOPELESS = dataclasses.replace(SHORT_RECIPE, dropout=0.97)  # with a dropout of .1 it learns at once


@pytest.mark.usefixtures("ray_cluster")
def test_the_setting_that_wins_by_validation_is_trained_and_the_report_says_by_how_much(
    glyph_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    config = dataclasses.replace(HOPELESS, shards=glyph_shards.uri, run=str(run), auto="thorough")
    trained = captcha_ray.train(config)
    race = trained.results["race"]
    assert race["setting"] == "low-dropout"
    assert [one["setting"] for one in race["tried"]] == ["rules", "noisy", "low-dropout", "slow"]
    best = max(race["tried"], key=lambda one: one["exact_match"])
    assert best["setting"] == "low-dropout"
    assert "trained in full with 2 seeds each: the best trial's config recognizes" in race["verdict"]
    assert json.loads((run / "resolved_config.json").read_text())["dropout"] == 0.1
    assert json.loads((run / "config.json").read_text())["setting"] == "low-dropout"
    page = (run / "report.html").read_text()
    assert "Race of settings" in page
    assert race["verdict"].split(":")[0] in page
    assert Path(race["report"]) == tmp_path / "run-race" / "report.html"
    assert Path(race["report"]).exists()

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
        return tuner.compare(tuner.np.array([[True, False]] * 2), tuner.np.array([[False, True]] * 2))

    monkeypatch.setattr(tuner, "_compare", no_better)
    trained = captcha_ray.train(dataclasses.replace(config, resume=True))
    assert {one.number: one.outcome for one in trials.load(RunDirectory(str(tmp_path / "run-race")))} == ended
    assert max(trained.results["race"]["tried"], key=lambda one: one["exact_match"])["setting"] == "low-dropout"
    assert trained.results["race"]["setting"] == "rules"


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_that_holds_a_run_is_refused_before_the_race(glyph_shards: Shards, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    with pytest.raises(InputError, match="run"):
        captcha_ray.train(
            dataclasses.replace(SHORT_RECIPE, shards=glyph_shards.uri, run=str(tmp_path / "run"), auto="thorough")
        )
    assert not (tmp_path / "run-race").exists()
