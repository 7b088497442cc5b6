"""Learning from images without labels: which are learned from, as what, and where an interruption leaves it."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from captcha_ray import cluster, corpus, evaluation, selftraining, storage, training
from captcha_ray.config import InputError, TrainConfig
from captcha_ray.runs import RunDirectory
from tests import conftest


@pytest.fixture(scope="module")
def few(ray_cluster: cluster.Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[corpus.Shards, Path]:
    """Shards of 60 labeled images; a folder of 120 others, of 10 of the shards', and of a file that is no image."""
    folder = tmp_path_factory.mktemp("few")
    conftest.draw_glyphs(folder / "corpus", conftest.glyph_texts(60, 2))
    config = conftest.config_for(folder, splits=(0.7, 0.15, 0.15))
    corpus.preprocess(config)
    more = conftest.draw_glyphs(folder / "more", conftest.glyph_texts(120, 2, seed=1), seed=1)
    for number, path in enumerate(sorted((folder / "corpus").iterdir())[:10]):
        shutil.copy(path, more / f"again-{number}.png")
    (more / "broken.png").write_bytes(b"no image")
    return corpus.open_shards(config.out), more


def config_for(shards: corpus.Shards, more: Path, run: Path, **changes: Any) -> TrainConfig:
    base = TrainConfig(
        recipe="test",
        shards=shards.uri,
        unlabelled=str(more),
        run=str(run),
        network="multi_head_cnn",
        epochs=20,
        learning_rate=3e-3,
        dropout=0.1,
    )
    return dataclasses.replace(base, **changes)


def fit(config: TrainConfig, shards: corpus.Shards, resources: cluster.Cluster) -> dict[str, Any]:
    val = shards.labeled("val")
    more = selftraining.prepare(config, shards, val, resources)
    return training.fit(config, shards.manifest, shards.read("train"), val.dataset, resources, more)


def test_what_a_first_network_is_sure_of_is_learned_from(
    few: tuple[corpus.Shards, Path], ray_cluster: cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, more = few
    blocks: list[Any] = []
    run_trainer = training._run_trainer
    monkeypatch.setattr(training, "_run_trainer", lambda job, local: (blocks.append(job), run_trainer(job, local)))
    facts = fit(config_for(shards, more, tmp_path / "run"), shards, ray_cluster)
    teacher, student = blocks
    assert facts["unlabelled"]["num_files"] == 131
    number = facts["unlabelled"]["num_learned_from"]
    assert 90 < number <= 120
    labeled, every = (ray.get(job.blocks["train"]) for job in (teacher, student))
    rows = pa.concat_tables(every)
    assert len(rows) == len(pa.concat_tables(labeled)) + number
    known = set(pa.concat_tables(shards.read().iter_batches(batch_format="pyarrow"))["sha256"].to_pylist())
    added = [row for row in rows.select(["uri", "text", "sha256"]).to_pylist() if "/more/" in row["uri"]]
    assert len(added) == number
    assert not known & {row["sha256"] for row in added}, "what is in the shards, a test image above all, stays there"
    right = [row["text"] == Path(row["uri"]).name.partition("-")[0] for row in added]
    assert sum(right) / len(right) > 0.95
    assert student.config.batch_size == 16
    assert not storage.exists(str(tmp_path / "run/teacher/teacher"))
    assert RunDirectory(str(tmp_path / "run")).read_json("config.json")["unlabelled"] == str(more)


def test_only_sure_readings_are_learned_from(
    few: tuple[corpus.Shards, Path], ray_cluster: cluster.Cluster, tmp_path: Path
) -> None:
    shards, more = few
    images, _ = corpus.read_images(str(more), shards.manifest.image_spec)
    (rows,) = images.iter_batches(batch_size=None, batch_format="pyarrow")
    run = conftest.save_network(tmp_path / "run", conftest.GLYPHS)
    nothing = pa.array([], pa.binary(32))
    assert len(selftraining.ReadSurely(str(run), nothing)(rows)) == 0, "an untrained network is sure of nothing"
    assert len(selftraining.ReadSurely(str(run), rows["sha256"].combine_chunks())(rows)) == 0


def test_a_training_cut_off_between_its_networks_does_not_train_the_first_again(
    few: tuple[corpus.Shards, Path], ray_cluster: cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, more = few
    config = config_for(shards, more, tmp_path / "run", epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "calibrate", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            fit(config, shards, ray_cluster)
    first = tmp_path / "run/teacher/checkpoint/model.safetensors"
    trained = first.stat().st_mtime_ns
    assert not (tmp_path / "run/checkpoint").exists()
    facts = fit(dataclasses.replace(config, resume=True), shards, ray_cluster)
    assert facts["num_epochs"] == 2
    assert first.stat().st_mtime_ns == trained
    assert (tmp_path / "run/teacher/_SUCCESS").exists()


def test_a_folder_without_images_is_refused_before_a_run_is_begun(
    few: tuple[corpus.Shards, Path], ray_cluster: cluster.Cluster, tmp_path: Path
) -> None:
    shards, _ = few
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no images to read"):
        fit(config_for(shards, tmp_path / "empty", tmp_path / "run"), shards, ray_cluster)
    assert not (tmp_path / "run").exists()
