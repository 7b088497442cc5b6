"""Say in a sentence what a training does not survive, or is refused at the start."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray

from captcha_ray.datasets.schema import Manifest
from captcha_ray.datasets.shards import Shards
from captcha_ray.errors import InputError, JobError
from captcha_ray.recipes import auto_config
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.runtime import ray_session
from captcha_ray.storage.lock import Lease
from captcha_ray.training import trainer
from captcha_ray.training.progress import EpochDone, Event, StepDone
from captcha_ray.training.trainer import _run_trainer, model_spec
from captcha_ray.training.worker import WorkerJob
from tests.support.trainings import config_for, fit


def test_a_loss_that_is_no_number_ends_the_run_in_one_sentence(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    config = config_for(glyph_shards, tmp_path / "run", learning_rate=1e30, optimizer="sgd")
    with pytest.raises(InputError, match=r"diverged in epoch \d: the loss is not a number; lower --learning-rate"):
        fit(config, glyph_shards, ray_cluster)
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_directory_that_holds_a_run_is_refused_and_left_alone(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    config = config_for(glyph_shards, tmp_path / "run", epochs=1)
    fit(config, glyph_shards, ray_cluster)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="already holds a run; continue it with --resume"):
        fit(config, glyph_shards, ray_cluster)
    with pytest.raises(InputError, match=r"was started with batch_size 16, not 8"):
        fit(dataclasses.replace(config, batch_size=8, resume=True), glyph_shards, ray_cluster)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_more_workers_than_the_cluster_holds_is_one_sentence_before_any_work(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"20 workers of 1 CPU each do not fit: the cluster has \d+ CPUs"):
        fit(config_for(glyph_shards, tmp_path / "run", num_workers=20), glyph_shards, ray_cluster)
    with pytest.raises(InputError, match=r"1 worker of 1 CPU and 1 GPU each do not fit"):
        fit(config_for(glyph_shards, tmp_path / "run", use_gpu=True), glyph_shards, ray_cluster)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"height": 60}, "hold images of 24x16 pixels .* needs height 60"),
        ({"width": 200}, "needs width 200; preprocess to that size, or pass --width 0"),
        ({"charset": "xyz"}, "made for charset 'abcd', not 'xyz'"),
        ({"max_length": 5}, "have 2 to 2 characters, but the network recognizes 5 in every"),
        ({"network": "glyph_vgg"}, "glyph_vgg recognizes one character an image, not 2"),
    ],
)
def test_shards_made_for_something_else_are_one_sentence(
    glyph_shards: Shards, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        model_spec(config_for(glyph_shards, Path("unused"), **changes), glyph_shards.manifest)


def test_labels_of_several_lengths_are_one_sentence(glyph_shards: Shards) -> None:
    manifest = Manifest.from_dict({**glyph_shards.manifest.to_dict(), "max_length": 7})
    with pytest.raises(InputError, match=r"have 2 to 7 characters, but .* recognizes 5 in every"):
        model_spec(config_for(glyph_shards, Path("unused"), max_length=5), manifest)


def test_batches_of_a_single_image_are_refused_before_any_work(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    few = dataclasses.replace(glyph_shards.manifest, num_images={"train": 3, "val": 1, "test": 1})
    config = config_for(glyph_shards, tmp_path / "run", batch_size=2)
    with pytest.raises(InputError, match="3 training images cut over 1 workers in batches of 2 leave fewer than"):
        trainer.fit(config, Shards(glyph_shards.uri, few), ray_cluster)


def test_two_jobs_do_not_train_into_one_run(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    config = config_for(glyph_shards, tmp_path / "run", epochs=1)
    fit(config, glyph_shards, ray_cluster)
    assert not list((tmp_path / "run").glob("_lease*")), "it is given back"
    with Lease(str(tmp_path / "run/_lease.json")), pytest.raises(InputError, match="is at work on"):
        fit(dataclasses.replace(config, resume=True), glyph_shards, ray_cluster)


def lossy_job(at: type[Event], shards: Shards, run: Path, how: str = "killed") -> WorkerJob:
    """Its worker is killed, or meets an error of ours, whenever it announces that."""

    def lose(event: Event) -> None:
        if isinstance(event, at) and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(event, at):
            raise KeyError(how)

    config = auto_config.resolve(config_for(shards, run, max_failures=1), shards.manifest)
    blocks = {"train": shards.read("train").materialize().to_arrow_refs(), "val": []}
    return WorkerJob(config, model_spec(config, shards.manifest), blocks, lose)


@pytest.mark.slow
def test_as_many_losses_are_allowed_again_after_an_epoch(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    _run_trainer(lossy_job(EpochDone, glyph_shards, tmp_path / "run"), local=False)
    assert [epoch["epoch"] for epoch in RunDirectory(str(tmp_path / "run")).read_metrics()] == [1, 2, 3]


@pytest.mark.slow
def test_workers_that_are_lost_again_and_again_end_the_training_in_a_sentence(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match="lost more than 1 times without progress between, the last one: Worker"):
        _run_trainer(lossy_job(StepDone, glyph_shards, tmp_path / "run"), local=False)


@pytest.mark.slow
def test_an_error_of_our_code_comes_with_its_trace(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    with pytest.raises(ray.train.WorkerGroupError, match=r"in train_worker(.|\n)*KeyError: 'a slip'"):
        _run_trainer(lossy_job(StepDone, glyph_shards, tmp_path / "run", "a slip"), local=False)
