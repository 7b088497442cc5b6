"""Trainings whose images are read from the shards in every epoch."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from captcha_ray.datasets import preprocess, schema
from captcha_ray.datasets.shards import Shards, open_shards
from captcha_ray.errors import InputError
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runtime import capacity, ray_session
from captcha_ray.training import batches, trainer
from captcha_ray.training import worker as training_worker
from captcha_ray.training.state import save_state
from tests import factories
from tests.support.trainings import config_for, fit


@pytest.fixture
def shards(ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shards:
    """300 images of 24x16 pixels with two characters each, in row groups of 10; a window has 50."""
    bytes_of_image = 24 * 16
    monkeypatch.setattr(schema, "ROW_GROUP_BYTES", 10 * bytes_of_image)
    monkeypatch.setattr(batches, "WINDOW_BYTES", 50 * bytes_of_image)
    factories.draw_glyphs(tmp_path / "corpus", factories.glyph_texts(300, 2))
    config = factories.config_for(tmp_path, splits=(0.6, 0.2, 0.2))
    preprocess.preprocess(config)
    shards = open_shards(config.out)
    for split in ("train", "val", "test"):  # as tasks know of no patch
        for part in (Path(shards.uri) / f"split={split}").iterdir():
            rows = pq.read_table(part, partitioning=None)
            pq.write_table(rows, part, row_group_size=schema.row_group_rows(shards.manifest.image_spec))
    return shards


def streamed(shards: Shards, run: Path, **changes: Any) -> TrainConfig:
    return config_for(shards, run, stream="always", **changes)


def test_a_split_has_its_row_groups(shards: Shards) -> None:
    groups = shards.row_groups("train")
    assert groups == shards.row_groups("train") == sorted(groups)
    assert sum(group.num_rows for group in groups) == shards.manifest.num_images["train"]
    assert {group.num_rows for group in groups[:-1]} == {10}
    none = dataclasses.replace(shards.manifest, parts=shards.manifest.parts | {"val": []})
    with pytest.raises(InputError, match=r"the val split of .* is empty"):
        Shards(shards.uri, none).row_groups("val")


def test_what_workers_stream_is_learned_as_well_as_what_one_holds_in_memory(
    shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    held = fit(config_for(shards, tmp_path / "held", epochs=10), shards, ray_cluster)
    read = fit(streamed(shards, tmp_path / "read", epochs=10, batch_size=8, num_workers=2), shards, ray_cluster)
    assert min(max(epoch["val_exact_match"] for epoch in epochs) for epochs in (held, read)) > 0.9
    assert [epoch["num_workers"] for epoch in read] == [2] * 10


def test_a_streamed_training_holds_no_images_in_rays_store(
    shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []
    monkeypatch.setattr(trainer, "_run_trainer", lambda job, local: jobs.append(job))
    with pytest.raises(InputError, match="holds no metrics"):
        fit(streamed(shards, tmp_path / "run"), shards, ray_cluster)
    assert jobs[0].blocks == {"train": [], "val": []}
    assert {split: sum(g.num_rows for g in groups) for split, groups in jobs[0].streamed.items()} == {
        split: shards.manifest.num_images[split] for split in ("train", "val")
    }


def test_a_streamed_run_that_is_cut_off_continues_to_the_same_result(
    shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = fit(streamed(shards, tmp_path / "undisturbed"), shards, ray_cluster)

    class CutError(Exception):
        """Stands for a kill."""

    def cut(*arguments: Any) -> None:
        save_state(*arguments)
        raise CutError

    config = streamed(shards, tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(training_worker, "save_state", cut)
        with pytest.raises(CutError):
            fit(config, shards, ray_cluster)
    assert fit(dataclasses.replace(config, resume=True), shards, ray_cluster) == undisturbed


def test_images_are_streamed_where_they_would_fill_rays_store(
    shards: Shards,
    ray_cluster: ray_session.Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = shards.manifest.num_images
    num_bytes = (images["train"] + images["val"]) * math.prod(shards.manifest.image_spec.shape)
    config = config_for(shards, Path("unused"))
    assert capacity.object_store_bytes() > 2 * num_bytes
    assert not trainer.is_streamed(config, shards.manifest)
    monkeypatch.setattr(capacity, "object_store_bytes", lambda: 2.0 * num_bytes)
    assert not trainer.is_streamed(config, shards.manifest)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(capacity, "object_store_bytes", lambda: 2.0 * num_bytes - 1)
    assert trainer.is_streamed(config, shards.manifest)
    assert "images are read from the shards in every epoch" in capsys.readouterr().out
    assert not trainer.is_streamed(dataclasses.replace(config, stream="never"), shards.manifest)
    assert not trainer.is_streamed(dataclasses.replace(config, unlabeled="folder"), shards.manifest)


def test_unlabeled_images_cannot_be_streamed() -> None:
    with pytest.raises(InputError, match="--stream always cannot be had with them"):
        TrainConfig(stream="always", unlabeled="folder")


def test_shards_have_small_row_groups_after_duplicates_are_removed_too(
    ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    folder = factories.draw_glyphs(tmp_path / "corpus", factories.glyph_texts(80, 2))
    first = min(folder.iterdir())
    (folder / f"{first.stem}-again.png").write_bytes(first.read_bytes())
    config = factories.config_for(tmp_path, height=256, width=256, splits=(1.0, 0.0, 0.0))
    manifest = preprocess.preprocess(config)
    assert manifest.num_quarantined == {"duplicate": 1}
    most = schema.ROW_GROUP_BYTES // 256**2
    (part,) = manifest.parts["train"]
    found = pq.ParquetFile(Path(config.out) / part).metadata
    assert [found.row_group(k).num_rows for k in range(found.num_row_groups)] == [most, most, 80 - 2 * most]
    rows = open_shards(config.out).read("train").take_all()
    assert len({np.frombuffer(row["image"], np.uint8).tobytes() for row in rows}) == 80
