"""Searching on a real Ray: what trials leave, what ends them, what goes on after a kill, and what is refused."""

import dataclasses
import json
import re
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from captcha_ray.datasets import schema
from captcha_ray.datasets.shards import Shards
from captcha_ray.errors import InputError, JobError
from captcha_ray.recipes.catalog import get
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.recipes.file import load_recipe
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.runtime import ray_session
from captcha_ray.tuning import report, search_space, trials, tuner
from captcha_ray.tuning.config import TuneConfig
from captcha_ray.tuning.progress import SearchProgress
from captcha_ray.tuning.suggest import Sampler
from captcha_ray.tuning.trials import SearchResult
from tests.factories import SHORT_RECIPE
from tests.support.processes import Job, kill, preprocessed
from tests.support.waiting import wait_until


def find(
    shards: Shards, run: Path, *vary: str, recipe: TrainConfig = SHORT_RECIPE, only: bool = False, **changes: Any
) -> SearchResult:
    """Searches `vary`, and the default parameters too, unless `only`."""
    given = {"num_trials": 4, "final_seeds": 0, "vary": vary, "only": only, **changes}
    config = TuneConfig(recipe="test", shards=shards.uri, run=str(run), **given)
    searched = search_space.build(recipe, "", vary, only=only)
    return tuner.run(config, recipe, searched, shards.manifest, shards.read("train"), shards.read("val"))


def states(found: SearchResult) -> list[str]:
    return [trial.status for trial in found.trials]


@pytest.mark.usefixtures("ray_cluster")
def test_a_search_leaves_trials_a_table_the_best_config_and_a_page(glyph_shards: Shards, tmp_path: Path) -> None:
    run = tmp_path / "run"
    slow = dataclasses.replace(SHORT_RECIPE, learning_rate=1e-4)  # it reads next to nothing: another trial is the best
    vary = ["optimizer=adam,adamw", "learning_rate=1e-4,3e-2", "augmentation=0", "dropout=0.1"]  # 3e-2 is surely better
    found = find(glyph_shards, run, *vary, recipe=slow, num_trials=5, final_seeds=3)
    assert [trial.number for trial in found.trials] == [0, 1, 2, 3, 4]
    assert found.trials[0].values == {
        "learning_rate": 1e-4, "batch_size": 16, "dropout": 0.1, "schedule": "constant", "augmentation": 0.0,
        "optimizer": "adam",
    }  # fmt: skip
    assert set(states(found)) <= {"finished", "stopped"}
    assert found.best.score == max(trial.score for trial in found.trials) > 0.5

    rows = pq.read_table(run / "trials.parquet").to_pylist()
    assert [row["score"] for row in rows] == [trial.score for trial in found.trials]
    for row, trial in zip(rows, found.trials, strict=True):
        kept = RunDirectory(str(run / f"trials/{trial.number:04d}"))
        assert [epoch["val_loss"] for epoch in row["epochs"]] == [epoch["val_loss"] for epoch in kept.read_metrics()]
        told = search_space.apply(slow, trial.values).to_dict()
        assert kept.read_json("config.json") == {**told, "shards": glyph_shards.uri, "run": kept.uri}
        assert Path(kept.path("resume.safetensors")).exists() == (trial.status == "stopped")

    best = load_recipe(str(run / "best.json"))
    told = search_space.apply(slow, found.best.values).to_dict()
    assert best.to_dict() == {
        **told, "recipe": str(run / "best.json"), "shards": glyph_shards.uri, "run": str(run / "best")
    }  # fmt: skip
    assert (best.epochs, best.shards, best.num_workers) == (6, glyph_shards.uri, 1)
    assert found.best.number > 0
    assert found.comparison is not None
    assert (found.comparison.num_seeds, found.comparison.num_images) == (3, glyph_shards.manifest.num_images["val"])
    for name in ("recipe-0", "recipe-1", f"trial-{found.best.number:04d}-0", f"trial-{found.best.number:04d}-1"):
        told = json.loads((run / f"final/{name}/config.json").read_text())
        read = pq.read_table(run / f"final/{name}/predictions.parquet").to_pylist()
        right = [row["prediction"] == row["text"] for row in read]
        metrics = RunDirectory(str(run / "final" / name)).read_metrics()
        assert told["seed"] == 1 + int(name[-1])
        assert len(metrics) == 6
        assert sum(right) / len(right) == pytest.approx(max(epoch["val_exact_match"] for epoch in metrics))
    assert "which is more: +" in found.comparison.verdict
    assert json.loads((run / "results.json").read_text()) == found.to_dict()

    uri = report.write(RunDirectory(str(run)), search_space.build(slow, "", vary), found)
    page = Path(uri).read_text()
    for name in ("best_so_far", "parameters", "parallel_coordinates", "learning_curves"):
        assert (run / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("<img") >= 4
    assert "learning_rate" in page


@pytest.mark.usefixtures("ray_cluster")
def test_a_loss_that_is_no_number_is_the_worst_and_a_failure_has_its_reason(
    glyph_shards: Shards, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"search": "grid", "scheduler": "none", "epochs": 2, "only": True}
    vary = "learning_rate=3e-3,1e30,1e-3"
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuner, "merge", interrupt)
        with pytest.raises(KeyboardInterrupt):
            find(glyph_shards, run, vary, **options)
    (run / "trials/0002").mkdir(parents=True)
    (run / "trials/0002/resume.safetensors").write_bytes(b"no such state")
    found = find(glyph_shards, run, vary, resume=True, **options)
    reasons = [trial.outcome.reason for trial in found.trials if trial.outcome]
    assert states(found) == ["finished", "diverged", "failed"]
    assert reasons[:2] == ["", "the loss of epoch 1 is not a number"]
    assert re.match(r"\w+Error: .+", reasons[2])
    assert [trial.score for trial in found.trials[1:]] == [trials.WORST, trials.WORST]
    assert found.best.number == 0


def interrupt(split: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("ray_cluster")
def test_when_every_trial_fails_the_search_says_why(
    glyph_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = dataclasses.replace(SHORT_RECIPE, unlabeled="s3://bucket/more")
    flags: dict[str, Any] = {"only": True, "search": "grid", "epochs": 1, "recipe": recipe}
    with pytest.raises(JobError, match="none of 2 trials gave a network: the loss of epoch 1 is not a number"):
        find(glyph_shards, tmp_path / "run", "learning_rate=1e30,1e29", **flags)
    said = capsys.readouterr().err
    assert "trials learn from labeled images alone, without those of s3://bucket/more" in said


@pytest.mark.usefixtures("ray_cluster")
def test_asha_stops_the_poor_trials_and_none_stops_nobody(glyph_shards: Shards, tmp_path: Path) -> None:
    rates = "learning_rate=3e-3,1e-9,2e-9,3e-9,4e-9,5e-9"
    options: dict[str, Any] = {"only": True, "search": "grid", "num_trials": 6, "epochs": 9, "max_concurrent": 1}
    stopped = find(glyph_shards, tmp_path / "asha", rates, **options)
    assert states(stopped) == ["finished", *["stopped"] * 5]
    assert sorted(len(trial.epochs) for trial in stopped.trials) == [1, 1, 1, 1, 1, 9]
    every = find(glyph_shards, tmp_path / "none", rates, scheduler="none", **options)
    assert states(every) == ["finished"] * 6
    assert [len(trial.epochs) for trial in every.trials] == [9] * 6
    losses = [[epoch["val_loss"] for epoch in found.trials[0].epochs] for found in (stopped, every)]
    assert losses[0] == losses[1], "a trial that was let on did not train as one that never stopped"
    assert not list(tmp_path.glob("none/trials/*/resume.safetensors"))


def test_a_recipe_that_no_trial_tries_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    space = search_space.build(SHORT_RECIPE, "", ["dropout=0.3..0.5", "optimizer=sgd,adam"], only=True)
    values = search_space.values_of(SHORT_RECIPE, space)
    tuner._announce(Sampler("optuna", space, values, 4, 0), [1, 3, 6], 1)
    assert "no trial has the recipe's own values, as these are not searched: dropout 0.1\n" in capsys.readouterr().out
    tuner._announce(Sampler("optuna", space, values | {"dropout": 0.3}, 4, 0), [1, 3, 6], 1)
    assert "no trial has" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "recipe"), [({}, "demo-digits"), ({"shards": "mine"}, "auto"), ({"recipe": "wmail"}, "wmail")]
)
def test_a_search_starts_from_the_recipe_that_train_takes_but_for_the_demo(given: dict[str, str], recipe: str) -> None:
    assert TuneConfig(**given).starting_recipe == recipe


@pytest.mark.usefixtures("ray_cluster")
def test_a_search_begins_no_trial_for_which_there_is_no_time(
    glyph_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a clock on which an epoch takes a minute. Trials are compared after 2, 6 and 12 epochs, so once the last of
    8 to 11 trials has begun 2 + 2 * 4 + 6 minutes are needed."""
    epochs = [0]
    noted, loaded = SearchProgress.epoch, RunDirectory.read_metrics

    def note(self: SearchProgress, number: int, epoch: int, accuracy: float) -> None:
        epochs[0] += 1
        noted(self, number, epoch, accuracy)

    monkeypatch.setattr(SearchProgress, "epoch", note)
    monkeypatch.setattr(RunDirectory, "read_metrics", lambda self: [e | {"seconds": 60.0} for e in loaded(self)])
    monkeypatch.setattr(tuner._Searcher, "_searched_s", lambda self: 60.0 * epochs[0])
    options: dict[str, Any] = {"num_trials": 24, "epochs": 12, "max_concurrent": 1}
    found = find(glyph_shards, tmp_path / "run", "dropout", only=True, search="random", hours=34.5 / 60, **options)
    assert len(found.trials) == 10, "the tenth begins after 18 minutes, and an eleventh would end after 36"
    assert sorted(len(trial.epochs) for trial in found.trials) == [*[2] * 8, 6, 12]
    said = capsys.readouterr().out
    assert said.count("there is no time for more trials; the best of these 10 are trained to the end") == 1
    options |= {"hours": 1.0, "resume": True}
    again = find(glyph_shards, tmp_path / "run", "dropout", only=True, search="random", **options)
    assert len(again.trials) > 10, "with more hours it goes on"


@pytest.mark.usefixtures("ray_cluster")
def test_a_finished_search_goes_on_with_more_trials_and_keeps_those_it_has(
    glyph_shards: Shards, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"epochs": 2, "scheduler": "none"}
    first = find(glyph_shards, tmp_path / "run", num_trials=3, **options)
    RunDirectory(str(tmp_path / "run")).finish()
    outcomes = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/trials").rglob("*") if path.is_file()}
    again = find(glyph_shards, tmp_path / "run", num_trials=5, resume=True, **options)
    assert not (tmp_path / "run/_SUCCESS").exists(), "killed now, it would count as finished"
    assert again.trials[:3] == first.trials
    assert len(again.trials) == 5
    assert {path: path.stat().st_mtime_ns for path in outcomes} == outcomes
    ended = [trial.outcome.ended_s for trial in again.trials if trial.outcome]
    assert min(ended[3:]) > max(ended[:3])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_of_two_workers_trains_as_two_workers_do(glyph_shards: Shards, tmp_path: Path) -> None:
    rates = "learning_rate=3e-3,1e-9,2e-9,3e-9"
    options: dict[str, Any] = {"only": True, "search": "grid", "epochs": 6, "workers_per_trial": 2, "final_seeds": 1}
    found = find(glyph_shards, tmp_path / "run", rates, **options)
    assert states(found) == ["finished", "stopped", "stopped", "stopped"]
    assert [len(trial.epochs) for trial in found.trials] == [6, 1, 1, 1]
    told = json.loads((tmp_path / "run/trials/0000/config.json").read_text())
    assert told["num_workers"] == 2
    one = find(glyph_shards, tmp_path / "one", rates, **{**options, "workers_per_trial": 1})
    assert found.trials[0].epochs[0]["train_loss"] != one.trials[0].epochs[0]["train_loss"]


@pytest.mark.slow
def test_a_killed_search_continues_where_it_was_and_nobody_reads_the_test_split(tmp_path: Path) -> None:
    shards = preprocessed(tmp_path)
    parts = {part: part.read_bytes() for part in shards.glob("split=test/*.parquet")}
    assert parts
    for part in parts:
        part.write_bytes(b"nobody reads this")
    recipe = dataclasses.replace(SHORT_RECIPE, shards=str(shards), run=str(tmp_path / "unused"))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    run = tmp_path / "run"
    command = ("--recipe", tmp_path / "recipe.json", "--shards", shards, "--run", run, "--num-trials", "4")
    command = (*command, "--epochs", "60", "--scheduler", "none", "--final-seeds", "1")

    def lines() -> dict[str, list[str]]:
        return {path.parent.name: path.read_text().splitlines() for path in run.glob("trials/*/metrics.jsonl")}

    with Job("tune", *command, cwd=tmp_path) as job:
        wait_until(lambda: any(run.glob("trials/*/outcome.json")), job.process, explain=lambda: job.said)
        job.process.send_signal(signal.SIGSTOP)  # no trial begins or ends any more
        with Job("tune", *command, "--resume", cwd=tmp_path) as second:
            assert second.wait() == 2
            assert "is at work on" in second.said
        kill(job.process.pid)
        before = lines()
    ended = {path: path.read_text() for path in run.glob("trials/*/outcome.json")}
    assert 0 < len(ended) < 4
    with Job("tune", *command, "--resume", cwd=tmp_path) as job:
        assert job.wait() == 0, job.said
        said = job.said
    after = lines()
    for name, rows in before.items():
        assert after[name][: len(rows)] == rows, "an epoch was run twice"
    assert {path: path.read_text() for path in ended} == ended
    assert [len(rows) for rows in after.values()] == [60] * 4
    assert len(list(run.glob("trials/*"))) == 4
    assert "4 trials: 4 finished" in said
    assert "experiment" not in said, "Ray Tune's own output"
    written = {path: path.stat().st_mtime_ns for path in run.glob("*/*/*") if path.is_file()}
    with Job("tune", *command, "--resume", cwd=tmp_path) as job:
        assert job.wait() == 0
        assert "4 trials: 4 finished" in job.said
        assert "4 trials are kept; 0 were cut off" in job.said
    assert {path: path.stat().st_mtime_ns for path in written} == written, "something was trained again"
    with Job("tune", *command, "--resume", "--vary", "dropout=0..0.1", cwd=tmp_path) as job:
        assert job.wait() == 2
        assert "was started with space.dropout '0..0.7', not '0..0.1'" in job.said
    for part, data in parts.items():
        part.write_bytes(data)
    train = ("--recipe", run / "best.json", "--run", tmp_path / "trained", "--epochs", "1")
    with Job("train", *train, cwd=tmp_path) as job:
        assert job.wait() == 0, job.said


@pytest.mark.usefixtures("ray_cluster")
def test_what_cannot_be_searched_is_refused_and_nothing_is_overwritten(glyph_shards: Shards, tmp_path: Path) -> None:
    run = tmp_path / "run"
    find(glyph_shards, run, num_trials=1, epochs=1)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused: list[tuple[str, Any]] = [
        ("already holds a run", lambda: find(glyph_shards, run, num_trials=1, epochs=1)),
        (
            "was started with space.dropout '0..0.7', not '0..0.1'",
            lambda: find(glyph_shards, run, "dropout=0..0.1", epochs=1, resume=True),
        ),
        ("was started with epochs 1, not 2", lambda: find(glyph_shards, run, epochs=2, resume=True)),
        ("a batch_size of 512 is more than the", lambda: find(glyph_shards, tmp_path / "a", "batch_size=16,512")),
        ("the grid has 243 combinations", lambda: find(glyph_shards, tmp_path / "a", search="grid")),
        (
            "3 workers of 1 CPU each do not fit",
            lambda: find(glyph_shards, tmp_path / "a", "batch_size=off", workers_per_trial=3),
        ),
        ("and 1 GPU", lambda: find(glyph_shards, tmp_path / "a", gpus_per_trial=1)),
        (
            "recognizes one character an image, not 2",
            lambda: find(glyph_shards, tmp_path / "a", recipe=get("wmail")),
        ),
    ]
    for sentence, call in refused:
        with pytest.raises(InputError) as caught:
            call()
        assert sentence in str(caught.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "a").exists()


def test_fractions_of_a_gpu_let_several_trials_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Resources": {"CPU": 16.0, "GPU": 1.0}}, {"Resources": {"CPU": 8.0}}]
    monkeypatch.setattr(ray_session, "nodes", lambda: nodes)
    assert tuner.num_concurrent(TuneConfig(gpus_per_trial=0.25)) == 4
    assert tuner.num_concurrent(TuneConfig(gpus_per_trial=0.6)) == 1
    assert tuner.num_concurrent(TuneConfig(gpus_per_trial=0.25, cpus_per_worker=8)) == 2
    assert tuner.num_concurrent(TuneConfig(gpus_per_trial=0.25, max_concurrent=3)) == 3
    assert tuner.num_concurrent(TuneConfig()) == 20
    assert tuner.num_concurrent(TuneConfig(workers_per_trial=6)) == 4


@pytest.mark.usefixtures("ray_cluster")
def test_a_split_is_one_table_that_a_trial_reads_where_it_lies(glyph_shards: Shards) -> None:
    table = ray.get(tuner.merge(glyph_shards.read("train")))
    assert table["image"].num_chunks == 1
    assert len(table) == glyph_shards.manifest.num_images["train"]
    pixels = schema.unpack_images(table["image"], glyph_shards.manifest.image_spec)
    assert not pixels.flags.owndata
    assert not pixels.flags.writeable
