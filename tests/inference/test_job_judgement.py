"""Judge a night: which images are of its network's kind, and how many errors end it."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captcha_ray.datasets import preprocess
from captcha_ray.datasets.shards import open_shards
from captcha_ray.errors import JobError
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.job import transcribe
from captcha_ray.models import fingerprint
from captcha_ray.recipes.catalog import get
from captcha_ray.runs.directory import STATE
from captcha_ray.runtime import ray_session
from captcha_ray.training.trainer import model_spec
from tests.factories import GLYPHS, config_for, save_network

pytestmark = pytest.mark.usefixtures("ray_cluster")


def noise(width: int, height: int, seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def night(images: Path, run: Path, **changes: object) -> list[dict[str, object]]:
    out = images.parent / "out"
    config = InferConfig(images=str(images), run=str(run), out=str(out), num_workers=1)
    transcribe(dataclasses.replace(config, **changes), started=0.0)  # type: ignore[arg-type]
    rows: list[dict[str, object]] = pq.read_table(out).sort_by("uri").to_pylist()
    return rows


def test_a_file_that_is_no_image_alone_in_its_night_is_a_row_and_keeps_no_night_red(
    images: Path, tmp_path: Path
) -> None:
    run = save_network(tmp_path / "run", GLYPHS)
    (images / "a.txt").write_bytes(b"no image")
    assert [row["error"] for row in night(images, run)] == [
        "NotAnImage: these bytes begin no PNG, JPEG, GIF, BMP, WebP, TIFF or PNM file"
    ]
    (images / "b.png").write_bytes(noise(24, 16, 0))
    assert [row["status"] for row in night(images, run)] == ["error", "ok"]


@pytest.mark.parametrize(("number", "at_least"), [(20, 20), (3, 3)])
def test_from_so_many_objects_on_errors_are_judged(images: Path, tmp_path: Path, number: int, at_least: int) -> None:
    run = save_network(tmp_path / "run", GLYPHS)
    for k in range(number):
        (images / f"{k}.txt").write_bytes(b"no image")
    with pytest.raises(JobError, match=f"{number} of {number} objects cannot be recognized"):
        night(images, run, min_objects_to_judge=at_least)
    assert len(night(images, run, min_objects_to_judge=number + 1)) == number


def test_a_store_that_refuses_is_judged_however_few_the_objects(images: Path, tmp_path: Path) -> None:
    run = save_network(tmp_path / "run", GLYPHS)
    (tmp_path / "list.csv").write_text(f"uri\n{images}/a.png/inside\n")
    (images / "a.png").write_bytes(noise(24, 16, 0))
    with pytest.raises(JobError, match=r"1 of 1 objects cannot be recognized \(1 StoreError\)"):
        night(tmp_path / "list.csv", run)


@pytest.mark.parametrize(("kept", "is_told"), [([STATE], True), ([STATE, "_SUCCESS"], False), ([], False)])
def test_a_network_whose_training_has_not_ended_is_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: list[str], is_told: bool
) -> None:
    run = save_network(tmp_path / "run", GLYPHS)
    for name in kept:
        (run / name).touch()
    (images / "a.png").write_bytes(noise(24, 16, 0))
    night(images, run)
    assert (f"the training of {run} has not ended: its best network so far" in capsys.readouterr().err) == is_told


def test_images_of_all_shapes_that_a_network_was_trained_on_are_taken(
    images: Path, tmp_path: Path, ray_cluster: ray_session.Cluster
) -> None:
    """Digits in images as wide as their text: those of one digit are far narrower than the median."""
    (tmp_path / "corpus").mkdir()
    for k in range(120):
        length = 1 + k % 12
        data = noise(8 * length, 16, k)
        (tmp_path / f"corpus/{'1234'[k % 4] * length}-{k}.png").write_bytes(data)
    config = config_for(tmp_path, height=0, width=0)
    manifest = preprocess.preprocess(config)
    assert manifest.aspect_ratios == (0.5, 6.0)
    assert open_shards(config.out).manifest == manifest
    spec = model_spec(dataclasses.replace(get("auto"), network="column_cnn", variable_length=True, epochs=1), manifest)
    assert spec.aspect_ratios == manifest.aspect_ratios
    run = save_network(tmp_path / "run", spec)
    assert fingerprint.load_spec(str(run)).aspect_ratios == (0.5, 6.0)
    for width, height in ((8, 16), (96, 16), (4, 32), (384, 16), (3, 48), (500, 16)):
        (images / f"{width:03}x{height}.png").write_bytes(noise(width, height, width))
    found = {str(row["uri"])[-10:-4]: row["error"] for row in night(images, run, num_workers=1)}
    assert {name for name, error in found.items() if error} == {"003x48", "500x16"}
    assert str(found["500x16"]).startswith("WrongAspect: 500x16 pixels do not fit ")


def test_the_shapes_that_are_taken_are_no_part_of_a_networks_identity(tmp_path: Path) -> None:
    weights = b"weights"
    other = dataclasses.replace(GLYPHS, aspect_ratios=(0.1, 9.0))
    assert fingerprint.fingerprint(GLYPHS, weights) == fingerprint.fingerprint(other, weights)
