"""An epoch that is interrupted goes on where it was kept, to the same result."""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from captcha_ray.datasets.shards import Shards
from captcha_ray.recipes import auto_config
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runs.directory import STATE, WITHIN_EPOCH, RunDirectory
from captcha_ray.runtime import ray_session
from captcha_ray.storage.retries import StoreError
from captcha_ray.training import loop, trainer
from captcha_ray.training import worker as training_worker
from captcha_ray.training.progress import EpochTakenUp, Event, WorkersBegan
from captcha_ray.training.state import State, save_state
from captcha_ray.training.trainer import model_spec
from captcha_ray.training.worker import WorkerJob
from tests.support.trainings import TIMINGS, config_for, fit, restless
from tests.support.waiting import wait_until

EVERY_STEP = 1e-9

Cut = Callable[[TrainConfig, Shards, ray_session.Cluster, int, int], None]


class CutError(Exception):
    """Stands for a kill."""


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Cut:
    """Trains until so many steps of an epoch are kept, and is cut off then."""

    def train(config: TrainConfig, shards: Shards, cluster: ray_session.Cluster, epoch: int, steps: int) -> None:
        def save(uri: str, *arguments: Any) -> None:
            save_state(uri, *arguments)
            if uri.endswith(WITHIN_EPOCH) and (arguments[2]["epoch"], arguments[2]["step"]) == (epoch, steps):
                raise CutError

        with monkeypatch.context() as patch:
            patch.setattr(training_worker, "save_state", save)
            with pytest.raises(CutError):
                fit(config, shards, cluster)

    return train


@pytest.fixture
def begun_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lists the steps at which epochs began."""
    steps: list[int] = []
    train_epoch = loop.train_epoch

    def watch(*arguments: Any, **named: Any) -> Any:
        steps.append(named["begin"].step)
        return train_epoch(*arguments, **named)

    monkeypatch.setattr(loop, "train_epoch", watch)
    return steps


@pytest.mark.parametrize("stream", ["never", "always"])
def test_an_interrupted_epoch_goes_on_to_the_same_result(
    stream: str,
    glyph_shards: Shards,
    ray_cluster: ray_session.Cluster,
    tmp_path: Path,
    cut: Cut,
    begun_at: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    augmented: dict[str, Any] = {"network": "column_cnn", "lines_fraction": 0.3, "noise_fraction": 0.1}
    config = config_for(glyph_shards, tmp_path / "cut", stream=stream, **augmented)
    plain = dataclasses.replace(config, run=str(tmp_path / "plain"), checkpoint_every_s=0.0)
    undisturbed = fit(plain, glyph_shards, ray_cluster)
    config = dataclasses.replace(config, checkpoint_every_s=EVERY_STEP)
    cut(config, glyph_shards, ray_cluster, 2, 5)
    begun_at.clear()
    capsys.readouterr()
    assert fit(dataclasses.replace(config, resume=True), glyph_shards, ray_cluster) == undisturbed
    assert begun_at == [5, 0]
    assert "goes on in epoch 2, 71% of which is done" in capsys.readouterr().out
    weights = [(tmp_path / run / "checkpoint/model.safetensors").read_bytes() for run in ("cut", "plain")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "cut" / WITHIN_EPOCH).exists(), "it is removed with the end of its epoch"


@pytest.mark.usefixtures("plateau")
def test_the_first_epoch_of_another_attempt_goes_on_too(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path, cut: Cut, begun_at: list[int]
) -> None:
    undisturbed = fit(restless(glyph_shards, tmp_path / "undisturbed"), glyph_shards, ray_cluster)
    first = 1 + [epoch["attempt"] for epoch in undisturbed].index(1)
    config = restless(glyph_shards, tmp_path / "cut", checkpoint_every_s=EVERY_STEP)
    cut(config, glyph_shards, ray_cluster, first, 3)
    begun_at.clear()
    assert fit(dataclasses.replace(config, resume=True), glyph_shards, ray_cluster) == undisturbed
    assert begun_at[:2] == [3, 0]


@pytest.mark.parametrize(
    "change",
    [{"epoch": 1}, {"num_workers": 2}, {"num_steps": 9}, {"streamed": True}, {"attempt": 1}, {"device": "cuda"}],
)
def test_what_was_kept_of_another_epoch_or_division_is_left_alone(
    change: dict[str, Any],
    glyph_shards: Shards,
    ray_cluster: ray_session.Cluster,
    tmp_path: Path,
    cut: Cut,
    begun_at: list[int],
) -> None:
    undisturbed = fit(config_for(glyph_shards, tmp_path / "undisturbed"), glyph_shards, ray_cluster)
    config = config_for(glyph_shards, tmp_path / "cut", checkpoint_every_s=EVERY_STEP)
    cut(config, glyph_shards, ray_cluster, 2, 5)
    path = tmp_path / "cut" / WITHIN_EPOCH
    state = State.read(str(path))
    assert trainer._how_far(RunDirectory(config.run)) == (1, 5)
    rewrite(path, state.progress | change)
    assert trainer._how_far(RunDirectory(config.run)) == (1, 0 if "epoch" in change else 5)
    begun_at.clear()
    config = dataclasses.replace(config, resume=True, checkpoint_every_s=0.0)
    assert fit(config, glyph_shards, ray_cluster) == undisturbed
    assert begun_at == [0, 0]
    assert not path.exists()
    assert trainer._how_far(RunDirectory(config.run)) == (3, 0)


@pytest.mark.parametrize("cut_to", [0, 100, 20_000])
def test_a_damaged_file_costs_the_epoch_and_no_more(
    cut_to: int,
    glyph_shards: Shards,
    ray_cluster: ray_session.Cluster,
    tmp_path: Path,
    cut: Cut,
    begun_at: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    undisturbed = fit(config_for(glyph_shards, tmp_path / "undisturbed"), glyph_shards, ray_cluster)
    config = config_for(glyph_shards, tmp_path / "cut", checkpoint_every_s=EVERY_STEP)
    cut(config, glyph_shards, ray_cluster, 2, 5)
    path = tmp_path / "cut" / WITHIN_EPOCH
    path.write_bytes(path.read_bytes()[:cut_to])
    assert trainer._how_far(RunDirectory(config.run)) == (1, 0)
    begun_at.clear()
    capsys.readouterr()
    config = dataclasses.replace(config, resume=True, checkpoint_every_s=0.0)
    assert fit(config, glyph_shards, ray_cluster) == undisturbed
    assert begun_at == [0, 0]
    assert "epoch 2 could not be kept, and training goes on: resume_epoch.safetensors is damaged" in (
        capsys.readouterr().err
    )
    assert not path.exists()


def test_a_kill_before_the_file_is_removed_leaves_none_for_ever(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path, cut: Cut
) -> None:
    config = config_for(glyph_shards, tmp_path / "run", checkpoint_every_s=EVERY_STEP)
    cut(config, glyph_shards, ray_cluster, 3, 5)
    path = tmp_path / "run" / WITHIN_EPOCH
    kept = path.read_bytes()
    config = dataclasses.replace(config, resume=True)
    fit(config, glyph_shards, ray_cluster)
    path.write_bytes(kept)
    assert len(fit(config, glyph_shards, ray_cluster)) == 3
    assert not path.exists()


def test_nothing_is_kept_before_its_time(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []

    def save(uri: str, *arguments: Any) -> None:
        kept.append(Path(uri).name)
        save_state(uri, *arguments)

    monkeypatch.setattr(training_worker, "save_state", save)
    fit(config_for(glyph_shards, tmp_path / "run", checkpoint_every_s=3600.0), glyph_shards, ray_cluster)
    assert kept == [STATE] * 3


def rewrite(path: Path, progress: dict[str, Any]) -> None:
    """Replace the progress of a state."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["progress"] = json.dumps(progress)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])


def test_an_epoch_that_cannot_be_kept_goes_on_with_a_warning(
    glyph_shards: Shards,
    ray_cluster: ray_session.Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    undisturbed = fit(config_for(glyph_shards, tmp_path / "undisturbed"), glyph_shards, ray_cluster)
    capsys.readouterr()
    calls = itertools.count(1)

    def save(uri: str, *arguments: Any) -> None:
        if uri.endswith(WITHIN_EPOCH) and next(calls) == 2:
            raise StoreError("the store is on holiday")
        save_state(uri, *arguments)

    monkeypatch.setattr(training_worker, "save_state", save)
    config = config_for(glyph_shards, tmp_path / "run", checkpoint_every_s=EVERY_STEP)
    assert fit(config, glyph_shards, ray_cluster) == undisturbed
    warned = capsys.readouterr().err
    assert warned.count("epoch 1 could not be kept, and training goes on: the store is on holiday") == 1


@pytest.mark.slow
def test_two_workers_that_are_killed_within_an_epoch_go_on_to_the_same_result(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    two: dict[str, Any] = {"num_workers": 2, "batch_size": 2, "epochs": 4, "max_failures": 1}
    undisturbed = fit(config_for(glyph_shards, tmp_path / "undisturbed", **two), glyph_shards, ray_cluster)
    run, told = RunDirectory(str(tmp_path / "run")), tmp_path / "told"

    def send(event: Event) -> None:
        """Kill the process, once, as soon as an epoch that is not the first is kept; note where it was taken up."""
        if isinstance(event, WorkersBegan) and event.num_epochs == 0:
            threading.Thread(target=kill_once_kept, args=(run,), daemon=True).start()
        if isinstance(event, EpochTakenUp):
            told.write_text(f"{event.epoch} {event.fraction}")

    config = config_for(glyph_shards, Path(run.uri), checkpoint_every_s=EVERY_STEP, **two)
    config = auto_config.resolve(config, glyph_shards.manifest)
    blocks = {split: glyph_shards.read(split).materialize().to_arrow_refs() for split in ("train", "val")}
    trainer._run_trainer(WorkerJob(config, model_spec(config, glyph_shards.manifest), blocks, send), local=False)
    epochs = [{name: x for name, x in epoch.items() if name not in TIMINGS} for epoch in run.read_metrics()]
    assert epochs == undisturbed
    epoch, fraction = told.read_text().split()
    assert int(epoch) > 1
    assert float(fraction) == training_worker.AGREE_STEPS / 26


def kill_once_kept(run: RunDirectory) -> None:
    """Kill this process once a step of the second epoch, or of a later one, is kept."""

    def is_kept() -> bool:
        with contextlib.suppress(FileNotFoundError):  # the epoch may end just now
            epochs, steps = trainer._how_far(run)
            return epochs > 0 and steps > 0
        return False

    wait_until(is_kept)
    os.kill(os.getpid(), signal.SIGKILL)
