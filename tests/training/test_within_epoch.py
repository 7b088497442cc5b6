"""An epoch that is interrupted goes on where it was kept, to the same result."""

import dataclasses
import itertools
import json
import os
import signal
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

EVERY_STEP = 1e-9


class CutError(Exception):
    """Stands for a kill."""


@dataclasses.dataclass
class Trainings:
    """Trains in folders of their own. begun_at: steps at which epochs began since the last cut."""

    shards: Shards
    cluster: ray_session.Cluster
    folder: Path
    patch: pytest.MonkeyPatch
    begun_at: list[int] = dataclasses.field(default_factory=list)

    def config(self, name: str = "cut", **changes: Any) -> TrainConfig:
        return config_for(self.shards, self.folder / name, **{"checkpoint_every_s": EVERY_STEP, **changes})

    def undisturbed(self, **changes: Any) -> list[dict[str, Any]]:
        return self.fit(self.config("undisturbed", checkpoint_every_s=0.0, **changes))

    def fit(self, config: TrainConfig) -> list[dict[str, Any]]:
        return fit(config, self.shards, self.cluster)

    def cut(self, config: TrainConfig, epoch: int, steps: int) -> Path:
        """Train until so many steps of an epoch are kept, be cut off then, and return the file that keeps them."""

        def save(uri: str, *arguments: Any) -> None:
            save_state(uri, *arguments)
            if uri.endswith(WITHIN_EPOCH) and (arguments[2]["epoch"], arguments[2]["step"]) == (epoch, steps):
                raise CutError

        with self.patch.context() as patch:
            patch.setattr(training_worker, "save_state", save)
            with pytest.raises(CutError):
                self.fit(config)
        self.begun_at.clear()
        return Path(config.run) / WITHIN_EPOCH


@pytest.fixture
def trainings(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Trainings:
    made = Trainings(glyph_shards, ray_cluster, tmp_path, monkeypatch)
    train_epoch = loop.train_epoch

    def watch(*arguments: Any, **named: Any) -> Any:
        made.begun_at.append(named["begin"].step)
        return train_epoch(*arguments, **named)

    monkeypatch.setattr(loop, "train_epoch", watch)
    return made


@pytest.mark.parametrize("stream", ["never", "always"])
def test_an_interrupted_epoch_goes_on_to_the_same_result(
    stream: str, trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    augmented = {"stream": stream, "network": "column_cnn", "lines_fraction": 0.3, "noise_fraction": 0.1}
    undisturbed = trainings.undisturbed(**augmented)
    config = trainings.config(**augmented)
    kept = trainings.cut(config, 2, 5)
    capsys.readouterr()
    assert trainings.fit(dataclasses.replace(config, resume=True)) == undisturbed
    assert trainings.begun_at == [5, 0]
    assert "goes on in epoch 2, 71% of which is done" in capsys.readouterr().out
    weights = [(trainings.folder / run / "checkpoint/model.safetensors").read_bytes() for run in ("cut", "undisturbed")]
    assert weights[0] == weights[1]
    assert not kept.exists(), "it is removed with the end of its epoch"


@pytest.mark.usefixtures("plateau")
def test_the_first_epoch_of_another_attempt_goes_on_too(trainings: Trainings) -> None:
    undisturbed = trainings.fit(restless(trainings.shards, trainings.folder / "undisturbed"))
    first = 1 + [epoch["attempt"] for epoch in undisturbed].index(1)
    config = restless(trainings.shards, trainings.folder / "cut", checkpoint_every_s=EVERY_STEP)
    trainings.cut(config, first, 3)
    assert trainings.fit(dataclasses.replace(config, resume=True)) == undisturbed
    assert trainings.begun_at[:2] == [3, 0]


@pytest.mark.parametrize(
    "change",
    [{"epoch": 1}, {"num_workers": 2}, {"num_steps": 9}, {"streamed": True}, {"attempt": 1}, {"device": "cuda"}],
)
def test_what_was_kept_of_another_epoch_or_division_is_left_alone(change: dict[str, Any], trainings: Trainings) -> None:
    undisturbed, config = trainings.undisturbed(), trainings.config()
    kept, run = trainings.cut(config, 2, 5), RunDirectory(config.run)
    assert trainer._how_far(run) == (1, 5)
    rewrite(kept, State.read(str(kept)).progress | change)
    assert trainer._how_far(run) == (1, 0 if "epoch" in change else 5)
    assert trainings.fit(dataclasses.replace(config, resume=True, checkpoint_every_s=0.0)) == undisturbed
    assert trainings.begun_at == [0, 0]
    assert not kept.exists()
    assert trainer._how_far(run) == (3, 0)


@pytest.mark.parametrize("cut_to", [0, 100, 20_000])
def test_a_damaged_file_costs_the_epoch_and_no_more(
    cut_to: int, trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, config = trainings.undisturbed(), trainings.config()
    kept = trainings.cut(config, 2, 5)
    kept.write_bytes(kept.read_bytes()[:cut_to])
    assert trainer._how_far(RunDirectory(config.run)) == (1, 0)
    capsys.readouterr()
    assert trainings.fit(dataclasses.replace(config, resume=True, checkpoint_every_s=0.0)) == undisturbed
    assert trainings.begun_at == [0, 0]
    said = capsys.readouterr().err
    assert "epoch 2 could not be kept, and training goes on: resume_epoch.safetensors is damaged" in said
    assert not kept.exists()


def test_a_kill_before_the_file_is_removed_leaves_none_for_ever(trainings: Trainings) -> None:
    config = trainings.config()
    kept = trainings.cut(config, 3, 5)
    data = kept.read_bytes()
    config = dataclasses.replace(config, resume=True)
    trainings.fit(config)
    kept.write_bytes(data)
    assert len(trainings.fit(config)) == 3
    assert not kept.exists()


def test_nothing_is_kept_before_its_time(trainings: Trainings) -> None:
    saved: list[str] = []

    def save(uri: str, *arguments: Any) -> None:
        saved.append(Path(uri).name)
        save_state(uri, *arguments)

    trainings.patch.setattr(training_worker, "save_state", save)
    trainings.fit(trainings.config(checkpoint_every_s=3600.0))
    assert saved == [STATE] * 3


def test_an_epoch_that_cannot_be_kept_goes_on_with_a_warning(
    trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = trainings.undisturbed()
    capsys.readouterr()
    calls = itertools.count(1)

    def save(uri: str, *arguments: Any) -> None:
        if uri.endswith(WITHIN_EPOCH) and next(calls) == 2:
            raise StoreError("the store is on holiday")
        save_state(uri, *arguments)

    trainings.patch.setattr(training_worker, "save_state", save)
    assert trainings.fit(trainings.config()) == undisturbed
    warned = capsys.readouterr().err
    assert warned.count("epoch 1 could not be kept, and training goes on: the store is on holiday") == 1


def rewrite(path: Path, progress: dict[str, Any]) -> None:
    """Replace the progress of a state."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["progress"] = json.dumps(progress)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])


@pytest.mark.slow
def test_two_workers_that_are_killed_within_an_epoch_go_on_to_the_same_result(trainings: Trainings) -> None:
    two: dict[str, Any] = {"num_workers": 2, "batch_size": 2, "epochs": 4, "max_failures": 1}
    undisturbed = trainings.undisturbed(**two)
    told = trainings.folder / "told"

    def send(event: Event) -> None:
        """Let the first process of rank 0 be killed once it has kept a part of epoch 2; note where that goes on."""

        def save(uri: str, *arguments: Any) -> None:
            save_state(uri, *arguments)
            if uri.endswith(WITHIN_EPOCH) and arguments[2]["epoch"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        if isinstance(event, WorkersBegan) and event.num_epochs == 0:
            training_worker.save_state = save
        if isinstance(event, EpochTakenUp):
            told.write_text(f"{event.epoch} {event.fraction}")

    manifest = trainings.shards.manifest
    config = auto_config.resolve(trainings.config("run", **two), manifest)
    blocks = {split: trainings.shards.read(split).materialize().to_arrow_refs() for split in ("train", "val")}
    trainer._run_trainer(WorkerJob(config, model_spec(config, manifest), blocks, send), local=False)
    epochs = RunDirectory(config.run).read_metrics()
    assert [{name: x for name, x in epoch.items() if name not in TIMINGS} for epoch in epochs] == undisturbed
    assert told.read_text() == f"2 {training_worker.AGREE_STEPS / 26}"
