"""Cross-validation and the learning curve on real trainings of a small corpus: who trains on what, what is kept."""

import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from captcha_ray.datasets import preprocess, schema
from captcha_ray.datasets.shards import Shards, open_shards
from captcha_ray.datasets.splits import Split, fold_of, place
from captcha_ray.errors import InputError, JobError
from captcha_ray.evaluation import evaluate
from captcha_ray.evaluation.config import EvaluateConfig
from captcha_ray.experiments import cross_validation, learning_curve, parallel_runs
from captcha_ray.models import fingerprint
from captcha_ray.recipes.catalog import get
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.storage.lock import Lease
from tests.factories import config_for, draw_glyphs, glyph_texts

RECIPE = dataclasses.replace(get("auto"), epochs=2, batch_size=16, dropout=0.0, lines_fraction=0.0, precision="fp32")
"""Enough to see who was trained on what; not to read well."""


def begun(folder: Path, shards: Shards, **changes: Any) -> RunDirectory:
    """A run directory as a training leaves it, as far as studies need it."""
    run = RunDirectory(str(folder / "run"))
    config = dataclasses.replace(RECIPE, shards=shards.uri, run=run.uri, **changes)
    run.create(config.to_dict(), shards.manifest.to_dict())
    return run


def hashes(shards: Shards, split: Split | None = None) -> dict[str, bytes]:
    rows = shards.read(split).take_all()
    return {row["uri"]: row["sha256"] for row in rows}


def uris(blocks: list[Any]) -> set[str]:
    """Of all rows of the blocks."""
    return {uri for block in blocks for uri in ray.get(block)["uri"].to_pylist()}


def planned(config: EvaluateConfig, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> list[parallel_runs.Training]:
    """Return the trainings that a study would begin, without beginning one."""
    trainings: list[parallel_runs.Training] = []

    def refuse(pending: Any, *_: Any, **__: Any) -> Any:
        trainings.extend(pending)
        raise KeyboardInterrupt

    for study in (cross_validation, learning_curve):
        monkeypatch.setattr(study, "train_all", refuse)
    with pytest.raises(KeyboardInterrupt):
        cross_validation.run_experiments(config, run)
    return trainings


@pytest.fixture(scope="module")
def validated(glyph_shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that was cross-validated in three folds."""
    run = begun(tmp_path_factory.mktemp("validated"), glyph_shards)
    cross_validation.run_experiments(EvaluateConfig(run=run.uri, folds=3), run)
    return run


def test_every_image_is_read_once_by_the_network_that_has_not_seen_it(
    validated: RunDirectory, glyph_shards: Shards
) -> None:
    rows = validated.read_table("folds.parquet").to_pylist()
    known = hashes(glyph_shards)
    assert sorted(row["uri"] for row in rows) == sorted(known)
    for row in rows:
        assert row["fold"] == f"fold-{fold_of(known[row['uri']], 0, 3)}"
    for k in range(3):
        directory = RunDirectory(validated.path("folds-3", f"fold-{k}"))
        own = {row["uri"]: row["prediction"] for row in rows if row["fold"] == f"fold-{k}"}
        assert len(directory.read_metrics()) == 2
        table = pa.Table.from_pylist(glyph_shards.read().take_all(), schema=schema.shard_schema(
            glyph_shards.manifest.image_spec
        ))  # fmt: skip
        reread = evaluate.RecognizeImages(directory.uri)(table).to_pylist()
        assert {row["uri"]: row["prediction"] for row in reread if row["uri"] in own} == own


def test_a_fold_is_trained_and_validated_on_the_others_in_the_shards_proportions(
    glyph_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path, glyph_shards)
    trainings = planned(EvaluateConfig(run=run.uri, folds=3), run, monkeypatch)
    everything = set(hashes(glyph_shards))
    for one in trainings:
        parts = {name: uris(refs) for name, refs in one.blocks.items()}
        assert parts["train"] | parts["val"] | parts["test"] == everything
        assert sum(map(len, parts.values())) == len(everything)
        assert {name: len(part) for name, part in parts.items()} == one.manifest.num_images
        assert len(parts["val"]) / (len(parts["val"]) + len(parts["train"])) == pytest.approx(0.25, abs=0.09)
    tested = [uris(one.blocks["test"]) for one in trainings]
    assert set().union(*tested) == everything


def test_the_run_says_what_was_found(validated: RunDirectory, glyph_shards: Shards) -> None:
    found = validated.read_json("results.json")["cross_validation"]
    rows = validated.read_table("folds.parquet").to_pylist()
    right = sum(row["prediction"] == row["text"] for row in rows)
    assert (found["num_images"], found["num_exact_match"]) == (203, right)
    assert [one["fold"] for one in found["folds"]] == ["fold-0", "fold-1", "fold-2"]
    assert sum(one["num_exact_match"] for one in found["folds"]) == right
    assert found["num_disputed"] == sum(r["prediction"] != r["text"] and r["confidence"] >= 0.99 for r in rows)
    page = Path(validated.path("report.html")).read_text()
    assert "Cross-validation in 3 folds" in page
    assert "Disputed labels" in page
    assert "fold-2" in page


def test_what_is_done_is_not_done_again(
    validated: RunDirectory, glyph_shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = validated.read_json("results.json")["cross_validation"]
    monkeypatch.setattr(parallel_runs.train_in_full, "options", None)
    cross_validation.run_experiments(EvaluateConfig(run=validated.uri, folds=3), validated)
    assert validated.read_json("results.json")["cross_validation"] == before


@pytest.mark.usefixtures("ray_cluster")
def test_wrong_labels_are_disputed_first(tmp_path: Path) -> None:
    folder = draw_glyphs(tmp_path / "corpus", glyph_texts(400, 2))
    wrong = {}
    for path in sorted(folder.iterdir())[::100]:
        text, _, number = path.stem.partition("-")
        other = text[0] + "abcd"[("abcd".index(text[1]) + 1) % 4]
        wrong[other] = path.rename(folder / f"{other}-{number}x.png").name
    config = config_for(tmp_path, splits=(0.8, 0.2, 0.0))
    preprocess.preprocess(config)
    shards = open_shards(config.out)
    run = begun(tmp_path, shards, epochs=30)
    cross_validation.run_experiments(EvaluateConfig(run=run.uri, folds=2), run)
    rows = run.read_table("folds.parquet").to_pylist()
    bad = sorted((row for row in rows if row["prediction"] != row["text"]), key=lambda row: -row["confidence"])
    assert {os.path.basename(row["uri"]) for row in bad[: len(wrong)]} == set(wrong.values())
    assert (tmp_path / "run/figures/mistakes_cross_validation.png").exists()
    found = run.read_json("results.json")["cross_validation"]
    sure = sum(row["confidence"] >= cross_validation.DISPUTED for row in bad)
    assert found["num_disputed"] == sure > 0
    assert f"In place of {sure} labels" in (tmp_path / "run/report.html").read_text()
    temperatures = [fingerprint.load_spec(run.path("folds-2", name)).temperature for name in ("fold-0", "fold-1")]
    assert 1.0 not in temperatures


def test_the_curve_trains_on_nested_parts_without_validation_and_reads_the_test_split(
    glyph_shards: Shards, tmp_path: Path
) -> None:
    run = begun(tmp_path, glyph_shards)
    cross_validation.run_experiments(EvaluateConfig(run=run.uri, learning_curve=True), run)
    curve = run.read_json("results.json")["learning_curve"]
    train = glyph_shards.manifest.num_images["train"]
    expected = [-(-train * percent // 100) for percent in (5, 10, 25, 50, 100)]
    assert [point["num_images"] for point in curve["points"]] == expected
    tested = hashes(glyph_shards, "test")
    for size in expected:
        directory = RunDirectory(run.path("curve", f"images-{size}"))
        rows = pq.read_table(directory.path("predictions.parquet")).to_pylist()
        assert {row["uri"] for row in rows} == set(tested)
        epochs = directory.read_metrics()
        assert len(epochs) == 2
        assert "val_loss" not in epochs[0]
        assert not Path(directory.path("resume.safetensors")).exists()
    assert "images" in curve["answer"]
    assert "Learning curve" in Path(run.path("report.html")).read_text()


def test_parts_of_a_curve_lie_within_the_next(
    glyph_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path, glyph_shards, epochs=0)
    trainings = planned(EvaluateConfig(run=run.uri, learning_curve=True), run, monkeypatch)
    parts = [uris(one.blocks["train"]) for one in trainings]
    assert all(smaller < larger for larger, smaller in itertools.pairwise(parts))
    known = hashes(glyph_shards, "train")
    assert parts[0] == set(known)
    first = sorted(known, key=lambda uri: place(known[uri], 0, b"curve"))[: len(parts[-1])]
    assert parts[-1] == set(first), "chosen by their pixels, not by their names, which hold the labels"
    assert [one.config.epochs for one in trainings] == sorted(one.config.epochs for one in trainings)
    assert trainings[-1].config.epochs > 2 * trainings[0].config.epochs  # as the rules have it for few images


def test_a_training_that_fails_ends_the_study_in_one_sentence(glyph_shards: Shards, tmp_path: Path) -> None:
    run = begun(tmp_path, glyph_shards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel_runs.train_in_full, "options", None)
        with pytest.raises(TypeError):
            cross_validation.run_experiments(EvaluateConfig(run=run.uri, folds=2), run)
    (tmp_path / "run/folds-2/fold-0/resume.safetensors").write_bytes(b"no such state")
    with pytest.raises(JobError, match="the training fold-0 failed, the same command repeats it: "):
        cross_validation.run_experiments(EvaluateConfig(run=run.uri, folds=2), run)


def test_a_loss_that_is_no_number_is_no_result(glyph_shards: Shards, tmp_path: Path) -> None:
    run = begun(tmp_path, glyph_shards, learning_rate=1e30, optimizer="sgd")
    with pytest.raises(JobError, match=r"diverged in epoch \d: the loss is not a number; lower --learning-rate"):
        cross_validation.run_experiments(EvaluateConfig(run=run.uri, folds=2), run)


def test_patience_and_several_workers_of_a_run_do_not_keep_its_recipe_from_a_study(
    glyph_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path, glyph_shards, patience=5, num_workers=8, unlabeled="s3://bucket/more")
    trainings = planned(EvaluateConfig(run=run.uri, learning_curve=True), run, monkeypatch)
    configs = [one.config for one in trainings]
    found = {(one.patience, one.num_workers, one.batch_size, one.unlabeled) for one in configs}
    assert found == {(0, 1, 8 * 16, "")}
    assert "learns from labeled images alone, without those of s3://bucket/more" in capsys.readouterr().err


def test_a_second_study_of_a_run_at_the_same_time_is_refused(glyph_shards: Shards, tmp_path: Path) -> None:
    run = begun(tmp_path, glyph_shards)
    with Lease(run.path("_lease.json")), pytest.raises(InputError, match="at work"):
        cross_validation.run_experiments(EvaluateConfig(run=run.uri, folds=2), run)


def test_folds_of_other_shards_are_not_taken_for_these(validated: RunDirectory, tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(90, 2, seed=5))
    config = config_for(tmp_path)
    preprocess.preprocess(config)
    other = EvaluateConfig(run=validated.uri, folds=3, shards=config.out)
    with pytest.raises(InputError, match=r"the shards were made anew since .*folds-3/fold-0 was started"):
        cross_validation.run_experiments(other, validated)


@pytest.mark.usefixtures("ray_cluster")
def test_too_few_images_for_a_curve_are_refused(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "corpus", glyph_texts(12, 2))
    for share in range(1, 12):  # until the training split has some, but few
        config = config_for(tmp_path, splits=(share / 12, 0.0, 1 - share / 12), out=str(tmp_path / f"shards{share}"))
        if 1 <= preprocess.preprocess(config).num_images["train"] <= 3:
            break
    shards = open_shards(config.out)
    assert 1 <= shards.manifest.num_images["train"] <= 3
    run = begun(tmp_path, shards)
    with pytest.raises(InputError, match="training images are too few for a learning curve"):
        cross_validation.run_experiments(EvaluateConfig(run=run.uri, learning_curve=True), run)


def test_more_folds_than_images_can_fill_are_refused(glyph_shards: Shards, tmp_path: Path) -> None:
    run = begun(tmp_path, glyph_shards)
    with pytest.raises(InputError, match="203 images in 100 folds leave a fold of 0"):
        cross_validation.run_experiments(EvaluateConfig(run=run.uri, folds=100), run)


def test_a_bare_checkpoint_has_no_recipe_to_study(glyph_shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run, whose recipe could be trained anew"):
        cross_validation.run_experiments(EvaluateConfig(run=str(tmp_path), folds=2), RunDirectory(str(tmp_path)))


def test_folds_are_of_about_the_same_size_and_stay_when_images_are_added() -> None:
    many = [np.random.default_rng(k).bytes(32) for k in range(5000)]
    counts = np.bincount([fold_of(h, 0, 5) for h in many])
    assert counts.sum() == 5000
    assert counts.min() > 900
    assert [fold_of(h, 1, 5) for h in many[:50]] != [fold_of(h, 0, 5) for h in many[:50]]
    places = [(place(h, 0), place(h, 0, b"validation")) for h in many]
    assert abs(np.corrcoef(np.array(places).T)[0, 1]) < 0.05


def test_configs_that_exclude_each_other() -> None:
    for wrong, said in (
        ({"folds": 1}, "must be 2 to 100"),
        ({"folds": 3, "learning_curve": True}, "exclude each other"),
        ({"folds": 3, "corpus": "x"}, "do not go with them"),
        ({"folds": 3, "split": "val"}, "do not go with them"),
        ({"folds": 3, "labels": "table", "table": "x.csv"}, "do not go with them"),
        ({"learning_curve": True, "out": "x.json"}, "do not go with them"),
    ):
        with pytest.raises(InputError, match=said):
            EvaluateConfig(**wrong)  # type: ignore[arg-type]
    assert json.loads(json.dumps(EvaluateConfig(folds=5).to_dict()))["folds"] == 5
    assert TrainConfig().recipe == "auto"
