"""A run's folder is claimed once, says how it was made, and can be read back file by file."""

import dataclasses
import json
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from captcha_ray.errors import InputError
from captcha_ray.recipes.catalog import get
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.recipes.file import load_recipe
from captcha_ray.runs import environment as runs_environment
from captcha_ray.runs.directory import RunDirectory, read_json
from captcha_ray.runs.environment import PACKAGES, commit
from captcha_ray.runs.event_log import EventLog
from captcha_ray.storage import objectstore
from tests.support.s3_server import serve_s3

CONFIG = TrainConfig(epochs=2, shards="/shards", run="/run").to_dict()
EPOCHS: list[dict[str, Any]] = [
    {"epoch": 1, "train_loss": 0.1 + 0.2, "val_loss": None, "val_position_accuracy": [0.25, 0.5], "seconds": 3},
    {"epoch": 2, "train_loss": 1e-9, "val_loss": 0.5, "val_position_accuracy": [1.0, 1 / 3], "seconds": 2},
]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(f"{tmp_path}/run")


MANIFEST = {"num_images": {"train": 8, "val": 1, "test": 1}, "seconds": 1.5}


def test_a_new_run_explains_itself(run: RunDirectory) -> None:
    run.create(CONFIG, MANIFEST)
    assert run.read_json("config.json") == CONFIG
    assert set(run.read_json("environment.json")) == {
        *("versions", "commit", "command", "platform", "processor", "num_cpus", "memory_bytes", "gpus")
    }
    assert not run.finished


def test_a_run_is_claimed_only_once(run: RunDirectory) -> None:
    run.create(CONFIG, MANIFEST)
    with pytest.raises(InputError, match=r"run already holds a run; continue it with --resume or name another --run"):
        run.create({**CONFIG, "epochs": 3}, MANIFEST)
    assert run.read_json("config.json") == CONFIG


def test_a_run_goes_on_with_the_config_it_was_started_with(run: RunDirectory) -> None:
    run.create(CONFIG, MANIFEST)
    run.reopen({**CONFIG, "resume": True}, MANIFEST, may_differ=("resume",))


def test_a_run_does_not_go_on_with_another_config_and_names_the_field(run: RunDirectory) -> None:
    run.create(CONFIG, MANIFEST)
    with pytest.raises(InputError, match="was started with epochs 2, not 3; resume with the same flags"):
        run.reopen({**CONFIG, "epochs": 3, "resume": True}, MANIFEST, may_differ=("resume",))


def test_a_run_is_begun_once_or_gone_on_with(run: RunDirectory) -> None:
    run.begin(CONFIG, MANIFEST, resume=True)
    assert run.read_json("config.json") == CONFIG
    run.begin(CONFIG, MANIFEST, resume=True)
    with pytest.raises(InputError, match="was started with"):
        run.begin({**CONFIG, "epochs": 3}, MANIFEST, resume=True)
    run.begin({**CONFIG, "epochs": 3}, MANIFEST, resume=True, may_differ=("epochs",))
    with pytest.raises(InputError, match="already holds a run"):
        run.begin(CONFIG, MANIFEST, resume=False)


def test_a_run_is_finished_when_it_says_so(run: RunDirectory) -> None:
    run.create(CONFIG, MANIFEST)
    run.finish()
    assert run.finished
    assert Path(run.path("_SUCCESS")).read_bytes() == b""


def test_metrics_come_back_with_every_digit_one_line_an_epoch(run: RunDirectory) -> None:
    run.write_metrics(EPOCHS)
    assert run.read_metrics() == EPOCHS
    assert len(Path(run.path("metrics.jsonl")).read_text().splitlines()) == 2


def test_metrics_are_empty_before_the_first_epoch(run: RunDirectory) -> None:
    assert run.read_metrics() == []


def test_json_is_for_people(run: RunDirectory) -> None:
    run.write_json("x.json", {"charset": "äé∅", "list": [1]})
    assert Path(run.path("x.json")).read_text() == '{\n  "charset": "äé∅",\n  "list": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize(("data", "said"), [(None, "does not exist"), (b"{", "cannot be read"), (b"\xff", "cannot be")])
def test_json_that_is_absent_or_broken_is_named(tmp_path: Path, data: bytes | None, said: str) -> None:
    path = tmp_path / "x.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=f"{path} {said}"):
        read_json(str(path))


def test_a_recipe_is_a_name_or_a_config_in_a_file(tmp_path: Path) -> None:
    assert load_recipe("isfahan") == get("isfahan")
    config = dataclasses.replace(get("isfahan"), dropout=0.25, resume=True)
    path = tmp_path / "best.json"
    path.write_text(json.dumps(config.to_dict()))
    assert load_recipe(str(path)) == dataclasses.replace(config, recipe=str(path), resume=False)
    path.write_text(json.dumps({**config.to_dict(), "droput": 0.5}))
    with pytest.raises(InputError, match="did you mean 'dropout'"):
        load_recipe(str(path))
    path.write_text("[1]")
    with pytest.raises(InputError, match="holds no config of a training"):
        load_recipe(str(path))


def test_the_environment_has_versions_commit_and_command() -> None:
    found = runs_environment.environment()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    for name in PACKAGES:
        assert re.match(r"\d+\.\d+", found["versions"][name]), name
    assert found["command"] == sys.argv
    assert found["num_cpus"] >= 1


def test_the_commit_is_the_checkouts() -> None:
    if (Path(__file__).parents[2] / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{12,40}(-dirty)?", commit() or "")
    else:
        assert commit() is None


def test_outside_a_checkout_the_commit_is_what_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runs_environment, "__file__", str(tmp_path / "captcha_ray/runs/environment.py"))
    read = commit.__wrapped__  # without what is remembered
    monkeypatch.setenv("CAPTCHA_RAY_COMMIT", "0123456789ab")
    assert read() == "0123456789ab"
    monkeypatch.setenv("CAPTCHA_RAY_COMMIT", "")
    assert read() is None


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """{tag: {epoch: value}} of TensorBoard's event files, read with TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


EXPECTED = {
    "train_loss": {1: 0.3, 2: 1e-9},
    "val_loss": {2: 0.5},
    "val_position_accuracy/1": {1: 0.25, 2: 1.0},
    "val_position_accuracy/2": {1: 0.5, 2: 1 / 3},
    "seconds": {1: 3.0, 2: 2.0},
}


def agree(found: dict[str, dict[int, float]], expected: dict[str, dict[int, float]]) -> bool:
    return {t: list(c) for t, c in found.items()} == {t: list(c) for t, c in expected.items()} and all(
        math.isclose(found[tag][epoch], value, rel_tol=1e-6)
        for tag in expected
        for epoch, value in expected[tag].items()
    )


@pytest.mark.filterwarnings("ignore")  # TensorBoard's own
def test_tensorboard_reads_every_value_of_every_epoch(run: RunDirectory) -> None:
    log = EventLog(run)
    for record in EPOCHS:
        log.add(record)
    assert agree(curves(Path(run.path("tensorboard"))), EXPECTED)
    log.close()
    assert agree(curves(Path(run.path("tensorboard"))), EXPECTED)


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_goes_on_with_the_same_curves(run: RunDirectory) -> None:
    for record in EPOCHS:
        log = EventLog(run)
        log.add(record)
        log.close()
    assert agree(curves(Path(run.path("tensorboard"))), EXPECTED)


@pytest.mark.filterwarnings("ignore")
def test_a_run_in_a_bucket_has_all_its_files_there_after_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with serve_s3(tmp_path / "s3") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        objectstore.forget_clients()
        run = RunDirectory("s3://bucket/runs/one/")
        run.create(CONFIG, MANIFEST)
        with pytest.raises(InputError, match="s3://bucket/runs/one already holds a run"):
            run.create(CONFIG, MANIFEST)
        assert run.read_metrics() == []
        run.write_metrics(EPOCHS)
        assert run.read_metrics() == EPOCHS
        log = EventLog(run)
        for record in EPOCHS:
            log.add(record)
            assert record["epoch"] in curves(tmp_path / "s3/bucket/runs/one/tensorboard")["seconds"]
        log.close()
        run.finish()
        assert run.finished
    objectstore.forget_clients()
    assert agree(curves(tmp_path / "s3/bucket/runs/one/tensorboard"), EXPECTED)
    assert not list((tmp_path / "scratch").glob("captcha_ray-*"))


def test_a_run_is_not_continued_on_shards_that_were_made_anew(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    run.create(CONFIG, MANIFEST)
    run.reopen(CONFIG, {**MANIFEST, "seconds": 2.5}, may_differ=())
    with pytest.raises(InputError, match="the shards were made anew"):
        run.reopen(CONFIG, {**MANIFEST, "num_images": {"train": 7, "val": 2, "test": 1}}, may_differ=())


def test_a_start_that_was_cut_off_is_made_up_for(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    run.create(CONFIG, MANIFEST)
    (tmp_path / "run/environment.json").unlink()
    (tmp_path / "run/manifest.json").unlink()
    run.reopen(CONFIG, MANIFEST, may_differ=())
    assert run.read_json("environment.json")["versions"]
    assert run.read_json("manifest.json") == MANIFEST


def test_a_file_in_place_of_the_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match="run is not empty and holds no run"):
        RunDirectory(str(tmp_path / "run")).create(CONFIG, MANIFEST)
    with pytest.raises(InputError, match="run/below cannot be written: Not a directory"):
        RunDirectory(str(tmp_path / "run/below")).create(CONFIG, MANIFEST)
    assert (tmp_path / "run").read_text() == "a file"


def test_a_folder_that_holds_anything_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/cat.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="images is not empty and holds no run; name another --run"):
        RunDirectory(str(tmp_path / "images")).create(CONFIG, MANIFEST)
    assert [p.name for p in (tmp_path / "images").iterdir()] == ["cat.png"]
