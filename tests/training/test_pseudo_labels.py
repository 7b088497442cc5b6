"""Learning from images without labels: which are learned from, as what, and where an interruption leaves it."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from captcha_ray.datasets import labels, preprocess
from captcha_ray.datasets.shards import Shards, open_shards
from captcha_ray.errors import InputError
from captcha_ray.evaluation import evaluate
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.runtime import ray_session
from captcha_ray.storage import filesystem
from captcha_ray.training import pseudo_labels, trainer
from captcha_ray.training.trainer import _run_trainer
from tests import factories
from tests.support.processes import run_job


@pytest.fixture(scope="module")
def few(ray_cluster: ray_session.Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shards, Path]:
    """Shards of 60 labeled images; a folder of 120 others, one of them twice, of 10 of the shards', and of a file that
    is no image."""
    folder = tmp_path_factory.mktemp("few")
    factories.draw_glyphs(folder / "corpus", factories.glyph_texts(60, 2))
    config = factories.config_for(folder, splits=(0.7, 0.15, 0.15))
    preprocess.preprocess(config)
    more = factories.draw_glyphs(folder / "more", factories.glyph_texts(120, 2, seed=1), seed=1)
    for number, path in enumerate(sorted((folder / "corpus").iterdir())[:10]):
        shutil.copy(path, more / f"again-{number}.png")
    shutil.copy(next(path for path in sorted(more.iterdir()) if "again" not in path.name), more / "twice.png")
    (more / "broken.png").write_bytes(b"no image")
    return open_shards(config.out), more


def config_for(shards: Shards, more: Path, run: Path, **changes: Any) -> TrainConfig:
    base = TrainConfig(
        recipe="test",
        shards=shards.uri,
        unlabeled=str(more),
        run=str(run),
        network="multi_head_cnn",
        epochs=20,
        learning_rate=3e-3,
        dropout=0.1,
    )
    return dataclasses.replace(base, **changes)


def fit(config: TrainConfig, shards: Shards, resources: ray_session.Cluster) -> dict[str, Any]:
    val = shards.labeled("val")
    more = pseudo_labels.prepare(config, shards, val, resources)
    return trainer.fit(config, shards, resources, more)


def test_what_a_first_network_is_sure_of_is_learned_from(
    few: tuple[Shards, Path],
    ray_cluster: ray_session.Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shards, more = few
    blocks: list[Any] = []
    run_trainer = _run_trainer
    monkeypatch.setattr(trainer, "_run_trainer", lambda job, local: (blocks.append(job), run_trainer(job, local)))
    facts = fit(config_for(shards, more, tmp_path / "run"), shards, ray_cluster)
    teacher, student = blocks
    assert (facts["unlabeled"]["num_files"], facts["unlabeled"]["num_read"]) == (132, 131)
    assert "warning: 1 files of" in capsys.readouterr().err
    number = facts["unlabeled"]["num_learned_from"]
    assert 90 < number <= 120
    labeled, every = (ray.get(job.blocks["train"]) for job in (teacher, student))
    rows = pa.concat_tables(every)
    assert len(rows) == len(pa.concat_tables(labeled)) + number
    known = set(pa.concat_tables(shards.read().iter_batches(batch_format="pyarrow"))["sha256"].to_pylist())
    added = [row for row in rows.select(["uri", "text", "sha256"]).to_pylist() if "/more/" in row["uri"]]
    assert len(added) == number
    assert not known & {row["sha256"] for row in added}, "what is in the shards, a test image above all, stays there"
    assert len({row["sha256"] for row in added}) == number, "a picture that is there twice counts once"
    right = [row["text"] == Path(row["uri"]).name.partition("-")[0] for row in added]
    assert sum(right) / len(right) > 0.95
    assert student.config.batch_size == 16
    assert not filesystem.exists(str(tmp_path / "run/teacher/teacher"))
    assert RunDirectory(str(tmp_path / "run")).read_json("config.json")["unlabeled"] == str(more)


def test_only_sure_predictions_are_learned_from(
    few: tuple[Shards, Path], ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    _, more = few
    uris = labels.list_images(str(more))
    run = factories.save_network(tmp_path / "run", factories.GLYPHS)
    predictions = pseudo_labels.RecognizeFiles(str(run))(pa.table({"uri": uris, "text": [""] * len(uris)}))
    assert predictions["uri"].to_pylist() == [uri for uri in uris if "broken" not in uri]
    known = predictions.select(["sha256"]).slice(0, 0)
    assert len(pseudo_labels.choose(predictions, known)) == 0, "an untrained network is sure of nothing"
    index = predictions.schema.get_field_index("confidence")
    sure = predictions.set_column(index, "confidence", pa.array([0.9] * len(predictions)))
    assert len(pseudo_labels.choose(sure, known)) == 130, "one is there twice"
    assert len(pseudo_labels.choose(sure, sure.select(["sha256"]))) == 0


def test_a_training_cut_off_between_its_networks_does_not_train_the_first_again(
    few: tuple[Shards, Path], ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, more = few
    config = config_for(shards, more, tmp_path / "run", epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "calibrate", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            fit(config, shards, ray_cluster)
    first = tmp_path / "run/teacher/checkpoint/model.safetensors"
    trained = first.stat().st_mtime_ns
    assert not (tmp_path / "run/checkpoint").exists()
    facts = fit(dataclasses.replace(config, resume=True), shards, ray_cluster)
    assert facts["num_epochs"] == 2
    assert first.stat().st_mtime_ns == trained
    assert (tmp_path / "run/teacher/_SUCCESS").exists()


def test_a_training_that_is_continued_learns_from_what_was_read_at_first(
    few: tuple[Shards, Path],
    ray_cluster: ray_session.Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shards, more = few
    folder = tmp_path / "more"
    shutil.copytree(more, folder)
    config = config_for(shards, folder, tmp_path / "run", epochs=4)
    monkeypatch.setattr(pseudo_labels, "MIN_CONFIDENCE", 0.0)
    first = fit(config, shards, ray_cluster)["unlabeled"]
    predictions = pq.read_table(tmp_path / "run/teacher/predictions.parquet")
    factories.draw_glyphs(folder / "later", factories.glyph_texts(30, 2, seed=2), seed=2)
    known = {str(folder / name) for name in ("broken.png", "twice.png")}
    uris = [uri for uri in predictions["uri"].to_pylist() if uri not in known and "again" not in uri]
    Path(uris[0]).unlink()
    Path(uris[1]).write_bytes(Path(uris[2]).read_bytes())
    factories.draw_glyphs(tmp_path / "other", ["ab"], seed=9)
    Path(uris[3]).write_bytes(next((tmp_path / "other").iterdir()).read_bytes())
    again = fit(dataclasses.replace(config, resume=True), shards, ray_cluster)["unlabeled"]
    assert pq.read_table(tmp_path / "run/teacher/predictions.parquet").equals(predictions)
    assert again["num_learned_from"] == first["num_learned_from"] - 3, "what was added since does not count"
    assert "3 files of" in capsys.readouterr().err


def test_where_nothing_is_sure_the_shards_alone_are_learned_from(
    few: tuple[Shards, Path],
    ray_cluster: ray_session.Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without validation images."""
    shards, more = few
    images = shards.manifest.num_images | {"val": 0}
    shards = Shards(shards.uri, dataclasses.replace(shards.manifest, num_images=images))
    monkeypatch.setattr(pseudo_labels, "MIN_CONFIDENCE", 1.1)
    config = config_for(shards, more, tmp_path / "run", epochs=1)
    more_images = pseudo_labels.prepare(config, shards, None, ray_cluster)
    facts = trainer.fit(config, shards, ray_cluster, more_images)
    assert facts["unlabeled"]["num_learned_from"] == 0
    assert facts["num_epochs"] == 1


def test_a_folder_of_which_nothing_can_be_read_is_refused(
    few: tuple[Shards, Path], ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    shards, _ = few
    (tmp_path / "more").mkdir()
    (tmp_path / "more/broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of the 1 files of .*more can be read as an image"):
        fit(config_for(shards, tmp_path / "more", tmp_path / "run", epochs=1), shards, ray_cluster)


def test_the_job_says_what_it_has_learned_from(few: tuple[Shards, Path], tmp_path: Path) -> None:
    shards, more = few
    flags = ("--recipe", "text", "--shards", shards.uri, "--unlabeled", more, "--run", "run", "--epochs", "8")
    status, out, err = run_job("train", *map(str, flags), cwd=tmp_path)
    assert status == 0, err
    results = RunDirectory(str(tmp_path / "run")).read_json("results.json")
    number = results["unlabeled"]["num_learned_from"]
    assert f"{number:,} pictures that are not in the shards are predicted with a confidence of at least 90%" in out
    assert "1 files of" in err
    assert f"epochs of {shards.manifest.num_images['train'] + number:,} images" in out


def test_a_folder_without_images_is_refused_before_a_run_is_begun(
    few: tuple[Shards, Path], ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    shards, _ = few
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no images"):
        fit(config_for(shards, tmp_path / "empty", tmp_path / "run"), shards, ray_cluster)
    assert not (tmp_path / "run").exists()
