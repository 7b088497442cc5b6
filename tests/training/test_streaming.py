"""Trainings whose images are read from the shards in every epoch."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from captcha_ray.datasets import decoding, preprocess, schema
from captcha_ray.datasets.shards import Shards, open_shards
from captcha_ray.errors import InputError
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runtime import capacity, ray_session
from captcha_ray.storage import retries
from captcha_ray.training import batches, trainer
from captcha_ray.training import worker as training_worker
from captcha_ray.training.state import save_state
from captcha_ray.training.worker import WorkerJob
from tests import factories
from tests.support.fault_proxy import Fault, fault_proxy
from tests.support.s3_server import client_of, serve_s3
from tests.support.trainings import config_for, fit


class CutError(Exception):
    """Stands for a kill."""


def interrupt(*arguments: Any) -> None:
    save_state(*arguments)
    raise CutError


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
            preprocess.write_part(str(part), rows, shards.manifest.image_spec)
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

    config = streamed(shards, tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(training_worker, "save_state", interrupt)
        with pytest.raises(CutError):
            fit(config, shards, ray_cluster)
    assert fit(dataclasses.replace(config, resume=True), shards, ray_cluster) == undisturbed


@pytest.mark.parametrize(
    ("shares", "num_workers", "is_streamed"),
    [
        ([2.0], 1, False),
        ([1.9], 1, True),
        ([1.0, 1.0], 2, False),
        ([0.9, 1.0], 2, True),
        ([1.0, 1.0], 1, True),
        ([1.0, 1.0], "1:2", True),
        ([2.0, 2.0], "1:2", False),
    ],
)
def test_images_are_streamed_where_they_would_fill_rays_store(
    shares: list[float],
    num_workers: int | str,
    is_streamed: bool,
    shards: Shards,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = shards.manifest.num_images
    num_bytes = (images["train"] + images["val"]) * math.prod(shards.manifest.image_spec.shape)
    monkeypatch.setattr(capacity, "object_store_bytes", lambda: [share * num_bytes for share in shares])
    capsys.readouterr()
    config = config_for(shards, Path("unused"), num_workers=num_workers)
    assert trainer.is_streamed(config, shards.manifest) == is_streamed
    assert ("images are read from the shards in every epoch" in capsys.readouterr().out) == is_streamed
    for change in ({"stream": "never"}, {"unlabeled": "folder"}):
        assert not trainer.is_streamed(dataclasses.replace(config, **change), shards.manifest)


def test_the_nodes_tell_how_much_their_stores_hold(ray_cluster: ray_session.Cluster) -> None:
    (store,) = capacity.object_store_bytes()
    assert store > 10e6


def test_a_run_that_is_continued_streams_if_it_has_streamed(
    shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[WorkerJob] = []
    original = trainer._run_trainer

    def note(job: WorkerJob, local: bool) -> None:
        jobs.append(job)
        original(job, local)

    monkeypatch.setattr(trainer, "_run_trainer", note)
    config = config_for(shards, tmp_path / "run", epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(capacity, "object_store_bytes", lambda: [1.0])
        patch.setattr(training_worker, "save_state", interrupt)
        with pytest.raises(CutError):
            fit(config, shards, ray_cluster)
    fit(dataclasses.replace(config, resume=True), shards, ray_cluster)
    assert [bool(job.streamed) for job in jobs] == [True, True]
    fit(dataclasses.replace(config, resume=True, stream="never"), shards, ray_cluster)
    assert not jobs[-1].streamed


def test_a_streamed_epoch_waits_for_a_store_that_is_out_of_reach(
    shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "BACKOFF_S", 0.001)
    undisturbed = fit(streamed(shards, tmp_path / "undisturbed"), shards, ray_cluster)
    folder = Path(shards.uri)
    num_refused = 0

    def plan(method: str, path: str, attempt: int) -> Fault | None:
        nonlocal num_refused
        is_out = method == "GET" and ".parquet" in path and 8 <= attempt < 8 + 2 * retries.ATTEMPTS
        num_refused += is_out
        return Fault.INTERNAL if is_out else None

    with serve_s3(folder.parent.parent) as s3, fault_proxy(s3["AWS_ENDPOINT_URL"], plan) as proxy:
        with client_of(s3 | {"AWS_ENDPOINT_URL": proxy.url}):
            far = open_shards(f"s3://{folder.parent.name}/{folder.name}")
            groups = {split: shards.row_groups(split) for split in ("train", "val")}  # tasks know no store of a test
            monkeypatch.setattr(
                Shards,
                "row_groups",
                lambda self, split: [
                    group._replace(uri=group.uri.replace(shards.uri, far.uri)) for group in groups[split]
                ],
            )
            assert fit(streamed(far, tmp_path / "far"), far, ray_cluster) == undisturbed
    assert num_refused >= 2 * retries.ATTEMPTS


def test_a_part_that_is_gone_is_named(shards: Shards, ray_cluster: ray_session.Cluster, tmp_path: Path) -> None:
    groups = shards.row_groups("train")
    Path(groups[0].uri).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shards, "row_groups", lambda self, split: groups)
        with pytest.raises(InputError, match="is gone, but its rows are still to be read"):
            fit(streamed(shards, tmp_path / "run"), shards, ray_cluster)


def test_unlabeled_images_cannot_be_streamed() -> None:
    with pytest.raises(InputError, match="--stream always cannot be had with them"):
        TrainConfig(stream="always", unlabeled="folder")


@pytest.mark.parametrize("has_duplicate", [False, True])
def test_parts_have_small_row_groups_even_after_duplicates_are_removed(
    has_duplicate: bool, ray_cluster: ray_session.Cluster, tmp_path: Path
) -> None:
    folder = factories.draw_glyphs(tmp_path / "corpus", factories.glyph_texts(80, 2))
    first = min(folder.iterdir())
    if has_duplicate:
        (folder / f"{first.stem}-again.png").write_bytes(first.read_bytes())
    config = factories.config_for(tmp_path, height=256, width=256, splits=(1.0, 0.0, 0.0))
    manifest = preprocess.preprocess(config)
    assert manifest.num_quarantined == ({"duplicate": 1} if has_duplicate else {})
    most = schema.ROW_GROUP_BYTES // 256**2
    (part,) = manifest.parts["train"]
    found = pq.ParquetFile(Path(config.out) / part).metadata
    assert [found.row_group(k).num_rows for k in range(found.num_row_groups)] == [most, most, 80 - 2 * most]
    rows = open_shards(config.out).read("train").take_all()
    assert len({np.frombuffer(row["image"], np.uint8).tobytes() for row in rows}) == 80


def test_parts_hold_labels_of_all_over_a_sorted_corpus(
    ray_cluster: ray_session.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.draw_glyphs(tmp_path / "corpus", factories.glyph_texts(200, 2))
    monkeypatch.setattr(decoding, "block_rows", lambda num_files, image: 50)
    config = factories.config_for(tmp_path, splits=(1.0, 0.0, 0.0))
    manifest = preprocess.preprocess(config)
    assert len(manifest.parts["train"]) == 4
    for part in manifest.parts["train"]:
        texts = pq.read_table(Path(config.out) / part, columns=["text"], partitioning=None)["text"].to_pylist()
        assert len(texts) == 50
        assert {text[0] for text in texts} == set("abcd")
