"""Training on a real Ray: reproducible, resumable, the same for one worker and two, and clear about bad input."""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from captcha_ray.datasets import preprocess
from captcha_ray.datasets.shards import Shards, open_shards
from captcha_ray.errors import InputError
from captcha_ray.evaluation import evaluate
from captcha_ray.models import checkpoint
from captcha_ray.models.fingerprint import fingerprint
from captcha_ray.recipes import auto_config
from captcha_ray.recipes.catalog import get
from captcha_ray.recipes.file import load_recipe
from captcha_ray.recognizer import Recognizer
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.runtime import ray_session
from captcha_ray.training import loop, trainer
from captcha_ray.training import worker as training_worker
from captcha_ray.training.results import publish
from captcha_ray.training.schedule import best_epoch, epochs_without_gain
from captcha_ray.training.state import save_state
from captcha_ray.training.trainer import model_spec
from captcha_ray.training.worker import Worker, WorkerJob
from tests import factories
from tests.support.trainings import config_for, fit, restless


def test_the_same_seed_gives_the_same_losses_and_another_does_not(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    first, again, other = (
        fit(config_for(glyph_shards, tmp_path / name, seed=seed), glyph_shards, ray_cluster)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    assert [e["train_loss"] for e in first] != [e["train_loss"] for e in other]
    weights = [(tmp_path / name / "checkpoint/model.safetensors").read_bytes() for name in ("first", "again", "other")]
    assert weights[0] == weights[1] != weights[2]


def test_a_run_cut_off_after_any_file_continues_to_the_same_result(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = fit(config_for(glyph_shards, tmp_path / "undisturbed"), glyph_shards, ray_cluster)

    class CutError(Exception):
        """Stands for a kill between two writes."""

    for step, last in (
        ("save_model", 2),
        ("save_state", 2),
        ("write_metrics", 2),
        ("save_state", 3),
        ("write_metrics", 3),
    ):
        name = f"{step}-{last}"
        config = config_for(glyph_shards, tmp_path / name)
        calls = 0

        def cut(*arguments: Any, original: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == last:  # noqa: B023
                raise CutError
            original(*arguments)

        owner = {"write_metrics": RunDirectory, "save_state": training_worker, "save_model": checkpoint}[step]
        original = getattr(owner, step)
        monkeypatch.setattr(owner, step, lambda *a, original=original: cut(*a, original=original))
        with pytest.raises(CutError):
            fit(config, glyph_shards, ray_cluster)
        monkeypatch.undo()
        resumed = fit(dataclasses.replace(config, resume=True), glyph_shards, ray_cluster)
        assert resumed == undisturbed
        weights = [(tmp_path / run / "checkpoint/model.safetensors").read_bytes() for run in (name, "undisturbed")]
        assert weights[0] == weights[1]


@pytest.mark.usefixtures("plateau")
def test_a_training_that_is_stuck_begins_anew_and_goes_on_to_the_same_result_wherever_it_is_cut_off(
    glyph_shards: Shards,
    ray_cluster: ray_session.Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    undisturbed = fit(restless(glyph_shards, tmp_path / "undisturbed"), glyph_shards, ray_cluster)
    attempts = [epoch["attempt"] for epoch in undisturbed]
    assert attempts == sorted(attempts)
    assert max(attempts) == 1
    assert len(undisturbed) <= 24
    anew = attempts.index(1)
    told = capsys.readouterr().out
    assert told.count("starts over") == 1
    assert told.count("there is no time for another attempt") == 1
    fresh = [undisturbed[k]["train_loss"] for k in (0, anew)]
    assert fresh[1] > 3 * undisturbed[anew - 1]["train_loss"], "what was learned is forgotten"
    assert fresh[0] != fresh[1], "the second beginning has weights of its own"

    class CutError(Exception):
        """Stands for a kill."""

    save = save_state
    for last in (anew, anew + 2):
        config = restless(glyph_shards, tmp_path / f"cut-{last}")
        calls = itertools.count(1)

        def cut(*arguments: Any, calls: Iterator[int] = calls, last: int = last) -> None:
            save(*arguments)
            if next(calls) == last:
                raise CutError

        with monkeypatch.context() as patch:
            patch.setattr(training_worker, "save_state", cut)
            with pytest.raises(CutError):
                fit(config, glyph_shards, ray_cluster)
        assert fit(dataclasses.replace(config, resume=True), glyph_shards, ray_cluster) == undisturbed


def test_the_driver_hides_gpus_from_itself_while_it_trains_on_the_cpu(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's optimizers open a GPU that they see, whatever device their parameters are on."""
    seen = []
    train_epoch = loop.train_epoch

    def watch(*arguments: Any, **named: Any) -> Any:
        seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return train_epoch(*arguments, **named)

    monkeypatch.setattr(loop, "train_epoch", watch)
    for before in ("0,1", None):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before or "")
        if before is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        fit(config_for(glyph_shards, tmp_path / f"run-{before}", epochs=1), glyph_shards, ray_cluster)
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
    assert seen == ["", ""]


def test_two_workers_find_their_way_as_one(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    config = restless(glyph_shards, tmp_path / "two", num_workers=2, max_failures=0, batch_size=8)
    epochs = fit(config, glyph_shards, ray_cluster)
    assert max(epoch["val_exact_match"] for epoch in epochs) > 0.9
    assert len(epochs) < 24, "both know the loss of guessing, and so that the network reads"


def test_two_workers_see_every_image_once_and_their_sums_are_those_of_one(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    assert glyph_shards.manifest.num_images["train"] % 2 or glyph_shards.manifest.num_images["val"] % 2
    keeps: dict[str, Any] = {"batch_size": 2, "checkpoint_every_s": 1e-9}  # within each epoch
    config = config_for(glyph_shards, tmp_path / "two", num_workers=2, epochs=8, max_failures=0, **keeps)
    epochs = fit(config, glyph_shards, ray_cluster)
    assert [e["epoch"] for e in epochs] == list(range(1, 9))
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"] / 2
    best = epochs[best_epoch(epochs) - 1]
    alone = evaluate.evaluate(glyph_shards.labeled("val"), config.run).counts.summary()
    assert best["val_exact_match"] == pytest.approx(alone["exact_match"], abs=1e-12)
    assert best["val_loss"] == pytest.approx(alone["loss"], rel=1e-4)
    actors = evaluate.evaluate(glyph_shards.labeled("val"), config.run, num_workers=1)
    summary = actors.counts.summary()
    assert summary["confusion"] == alone["confusion"]
    assert summary["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def test_patience_stops_a_run_that_no_longer_gets_better(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    config = config_for(glyph_shards, tmp_path / "run", epochs=50, patience=2, learning_rate=1e-12)
    epochs = fit(config, glyph_shards, ray_cluster)
    assert epochs_without_gain(epochs) == 2


def test_an_evaluation_is_published_beside_what_the_run_holds_already(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    config = config_for(glyph_shards, tmp_path / "run", epochs=1)
    fit(config, glyph_shards, ray_cluster)
    run = RunDirectory(config.run)
    num = glyph_shards.manifest.num_images
    test = evaluate.evaluate(glyph_shards.labeled("test"), config.run)
    publish(run, {"test": test}, best_epoch=1)
    val = evaluate.evaluate(glyph_shards.labeled("val"), config.run)
    results = publish(run, {"val": val})
    assert (results["test"]["num_images"], results["val"]["num_images"], results["best_epoch"]) == (
        num["test"],
        num["val"],
        1,
    )
    assert json.loads((tmp_path / "run/results.json").read_text()) == results
    assert results["test"]["num_exact_match"] < num["test"], "one epoch is too short to read all of them"
    assert 0 < len(test.mistakes) <= evaluate.NUM_MISTAKES
    confidences = [mistake.confidence for mistake in test.mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert (tmp_path / "run/figures/mistakes_test.png").exists()
    moved = shutil.copytree(tmp_path / "run/checkpoint", tmp_path / "elsewhere")
    again = evaluate.evaluate(glyph_shards.labeled("test"), str(moved))
    assert again.counts.summary() == test.counts.summary()


def draw_words(folder: Path, count: int) -> None:
    """Words of 1 to 3 of the characters a to d, blocks at four heights, anywhere along 72x24 pixels."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for k in range(count):
        text = "".join("abcd"[c] for c in rng.integers(0, 4, rng.integers(1, 4)))
        pixels = rng.integers(0, 60, (24, 72), np.uint8)
        left = rng.integers(0, 72 - 20 * len(text) + 1)
        for position, character in enumerate(text):
            top, start = "abcd".index(character) * 5, left + 20 * position
            pixels[top : top + 9, start : start + 14] = 230
        Image.fromarray(pixels).save(folder / f"{text}-{k}.png")


def test_words_of_several_lengths_are_learned_and_read(ray_cluster: ray_session.Cluster, tmp_path: Path) -> None:
    draw_words(tmp_path / "corpus", 300)
    config = factories.config_for(tmp_path, height=24, width=72, splits=(0.7, 0.15, 0.15))
    preprocess.preprocess(config)
    shards = open_shards(config.out)
    fixed = dataclasses.replace(get("text"), shards=shards.uri, run=str(tmp_path / "run"), epochs=8)
    with pytest.raises(InputError, match=r"have 1 to 3 characters, but .* or train column_cnn with --variable-length"):
        fit(fixed, shards, ray_cluster)
    variable = dataclasses.replace(get("text-ctc"), shards=shards.uri, run=str(tmp_path / "run"), epochs=8)
    epochs = fit(variable, shards, ray_cluster)
    assert epochs[-1]["val_exact_match"] > 0.9
    found = evaluate.evaluate(shards.labeled("test"), variable.run).counts
    assert found.strings_correct > 0.9 * found.num_images
    assert found.loss_sum / found.num_images < 0.5
    reader = Recognizer.load(variable.run)
    paths = [next((tmp_path / "corpus").glob(f"{'?' * length}-*.png")) for length in (1, 2, 3)]
    predictions = reader.predict([str(path) for path in paths])
    assert [prediction.text for prediction in predictions] == [path.name.partition("-")[0] for path in paths]
    for prediction in predictions:
        assert len(prediction.char_confidence) == len(prediction.text)
        assert 0 < prediction.confidence <= min(prediction.char_confidence)


def test_without_validation_every_label_is_learned_and_the_last_epoch_is_kept(
    ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    factories.draw_glyphs(tmp_path / "corpus", factories.glyph_texts(60, 2))
    prepared = factories.config_for(tmp_path, splits=(1.0, 0.0, 0.0))
    preprocess.preprocess(prepared)
    shards = open_shards(prepared.out)
    config = config_for(shards, tmp_path / "run")
    with pytest.raises(InputError, match="patience is 2, but the shards have no validation split"):
        trainer.fit(dataclasses.replace(config, patience=2), shards, ray_cluster)
    facts = trainer.fit(config, shards, ray_cluster)
    epochs = RunDirectory(config.run).read_metrics()
    assert (facts["best_epoch"], len(epochs)) == (3, 3)
    assert not [name for name in epochs[0] if name.startswith("val_")]
    saved = dataclasses.replace(config, run=str(tmp_path / "cut"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "write_metrics", cut_off_after(2))
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(saved, shards, ray_cluster)
    assert not (tmp_path / "cut/checkpoint").exists(), "a network that is not the last one"
    state = checkpoint.load_model(config.run)[0].state_dict()
    kept = load((tmp_path / "run/resume.safetensors").read_bytes())
    assert all(torch.equal(kept[f"model.{name}"], tensor) for name, tensor in state.items())
    found = evaluate.evaluate(shards.labeled("train"), config.run)
    assert found.counts.num_images == 60
    assert "results" not in publish(RunDirectory(config.run), {"train": found}, **facts)


def cut_off_after(calls: int) -> Any:
    """A stand-in for `RunDirectory.write_metrics` that is interrupted at its last call."""
    left = iter(range(calls, 0, -1))

    def write(run: RunDirectory, epochs: list[dict[str, Any]]) -> None:
        if next(left) == 1:
            raise KeyboardInterrupt

    return write


def test_what_a_config_leaves_open_stands_in_the_run(
    glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_config, "IMAGES_SEEN", 250)
    monkeypatch.setattr(auto_config, "CLASS_SEEN", 1)
    auto = dataclasses.replace(get("auto"), shards=glyph_shards.uri, run=str(tmp_path / "run"))
    epochs = fit(auto, glyph_shards, ray_cluster)
    run = RunDirectory(auto.run)
    requested, resolved = run.read_json("config.json"), run.read_json("resolved_config.json")
    assert (requested["network"], requested["epochs"], requested["batch_size"]) == ("auto", 0, 0)
    assert (resolved["network"], resolved["batch_size"]) == ("column_cnn", 16)
    assert resolved["epochs"] == -(-250 // glyph_shards.manifest.num_images["train"])
    assert resolved["epochs"] <= len(epochs) <= resolved["max_epochs"] == 4 * resolved["epochs"]
    assert load_recipe(run.path("config.json")).epochs == 0
    monkeypatch.setattr(auto_config, "IMAGES_SEEN", 2500)
    resumed = fit(dataclasses.replace(auto, resume=True), glyph_shards, ray_cluster)
    assert resumed == epochs, "a run goes on as it was begun, though the rules have changed"


@pytest.mark.parametrize("num_workers", ["1:3", 1])
def test_a_step_of_an_elastic_training_has_as_many_images_with_fewer_workers(
    num_workers: int | str, glyph_shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    config = config_for(glyph_shards, tmp_path / "run", num_workers=num_workers, batch_size=8)
    blocks = {"train": glyph_shards.read("train").materialize().to_arrow_refs(), "val": []}
    spec = model_spec(config, glyph_shards.manifest)
    job = WorkerJob(config, spec, blocks, lambda message: None)
    with contextlib.closing(Worker(job, 0, 1, torch.device("cpu"))) as worker:
        steps = [batch.step_images for batch in worker._train.epoch(None)]
    images = glyph_shards.manifest.num_images["train"]
    assert len(steps) == -(-images // (24 if num_workers == "1:3" else 8))


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_images_that_lines_may_cross_bring_along_their_colors(
    fraction: float,
    glyph_shards: Shards,
    ray_cluster: ray_session.Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_epoch, found = loop.train_epoch, []

    def note_colors(model: Any, optimizer: Any, batches: Any, *arguments: Any, **named: Any) -> Any:
        batches = list(batches)
        found.extend(batch.colors is not None for batch in batches)
        return train_epoch(model, optimizer, batches, *arguments, **named)

    monkeypatch.setattr(loop, "train_epoch", note_colors)
    fit(config_for(glyph_shards, tmp_path / "run", lines_fraction=fraction, epochs=1), glyph_shards, ray_cluster)
    assert set(found) == {fraction > 0}


def test_a_run_that_was_begun_before_there_were_heads_goes_on_with_a_light_one(
    glyph_shards: Shards, tmp_path: Path
) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    config = dataclasses.replace(get("auto"), shards=glyph_shards.uri, run=run.uri, from_scratch=True, resume=True)
    assert trainer._resolved(config, glyph_shards.manifest, run).head == "deep"
    before = auto_config.resolve(config, glyph_shards.manifest).to_dict()
    del before["head"]
    run.write_json("resolved_config.json", before)
    assert trainer._resolved(config, glyph_shards.manifest, run).head == "light"


def test_a_network_without_columns_has_no_head_in_its_fingerprint(glyph_shards: Shards) -> None:
    config = dataclasses.replace(get("isfahan"), height=0, width=0, max_length=0)
    spec = model_spec(auto_config.resolve(config, glyph_shards.manifest), glyph_shards.manifest)
    assert fingerprint(spec, b"") == fingerprint(dataclasses.replace(spec, head="light"), b"")
