"""Long checks, for `make check-all`: jobs without arguments, the recipes on real images and on many synthetic schemes.

The real images are not part of this project. CAPTCHA_RAY_DATA names a folder that holds `wilhelmy/` (captchas of
200x50, the label is the file's stem) and `digits/` (single digits, the label is the folder); without it those checks
are skipped.
"""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from captcha_ray.synthesis import schemes
from tests.support.processes import run_job

pytestmark = pytest.mark.slow


def test_jobs_without_arguments_make_what_they_need_and_run(tmp_path: Path) -> None:
    status, out, _ = run_job("evaluate", cwd=tmp_path)
    assert status == 0
    assert "draw digits: 4,000 images" in out
    assert (tmp_path / "demo/runs/digits/_SUCCESS").exists()
    assert json.loads((tmp_path / "demo/runs/digits/results.json").read_text())["test"]["char_accuracy"] > 0.95
    for name in ("synthesize", "preprocess"):
        status, out, _ = run_job(name, cwd=tmp_path)
        assert (status, "finished already" in out) == (0, True)
    assert run_job("train", cwd=tmp_path)[0] == 2, "the run is there already"


def real(folder: str) -> Path:
    """Return a folder of real images."""
    data = os.environ.get("CAPTCHA_RAY_DATA")
    if not data:
        pytest.skip("CAPTCHA_RAY_DATA names no folder of real images")
    return Path(data).resolve() / folder


def recognized_by_default(corpus: Path, rule: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Train with no flag but the label rule; return the measures of a fifth that was kept for testing."""
    splits = ("--splits", "0.8", "0", "0.2")
    assert run_job("preprocess", "--corpus", corpus, *rule, *splits, "--out", "shards", cwd=folder)[0] == 0
    assert run_job("train", "--shards", "shards", "--run", "run", cwd=folder)[0] == 0
    test: dict[str, Any] = json.loads((folder / "run/results.json").read_text())["test"]
    print(json.dumps({name: test[name] for name in ("num_images", "char_accuracy", "exact_match", "exact_match_ci95")}))
    return test


BY_NAME = ("--labels", "filename", "--label-pattern", schemes.LABEL_PATTERN)


@pytest.mark.parametrize("scheme", ["lines4", "lines4-small", "bits5", "color-digits"])
def test_other_schemes_are_recognized_with_no_flag_but_the_label_rule(scheme: str, tmp_path: Path) -> None:
    draw = ("--scheme", scheme, "--num-images", "1000", "--out", "corpus")
    assert run_job("synthesize", *draw, cwd=tmp_path)[0] == 0
    rule = ("--labels", "folder") if scheme == "color-digits" else BY_NAME
    assert recognized_by_default(tmp_path / "corpus", rule, tmp_path)["exact_match"] >= 0.99


def test_a_corpus_of_many_modes_sizes_and_polarities_is_recognized(tmp_path: Path) -> None:
    """Mix 1-bit, palette, gray and transparent images; half are light on dark, a third have half the size."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index, (path, text) in enumerate(schemes.plan("text5", 0, 1500)):
        image = Image.open(io.BytesIO(schemes.render("text5", 0, index, text))).convert("L")
        if index % 2:
            image = ImageOps.invert(image)
        if index % 3 == 0:
            image = image.resize((100, 25), Image.Resampling.BILINEAR)
        match index % 4:
            case 0:
                image = image.point(lambda level: 255 * (level > 128)).convert("1")
            case 1:
                image = image.convert("P")
            case 2:
                image.putalpha(255)
        image.save(folder / path)
    assert recognized_by_default(folder, BY_NAME, tmp_path)["exact_match"] >= 0.98


def test_texts_of_several_lengths_are_recognized(tmp_path: Path) -> None:
    """Cut 1 to 5 characters out of images of five."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index, (_, text) in enumerate(schemes.plan("lines4", 0, 1500)):
        image = Image.open(io.BytesIO(schemes.render("lines4", 0, index, text)))
        length = 1 + index % 4
        paper = Image.new("RGB", image.size, image.getpixel((0, 0)))
        paper.paste(image.crop((0, 0, image.width * length // 4, image.height)), (0, 0))
        paper.save(folder / f"{text[:length]}-{index}.png")
    assert recognized_by_default(folder, BY_NAME, tmp_path)["exact_match"] >= 0.98


def test_the_default_recipe_recognizes_real_captchas(tmp_path: Path) -> None:
    assert recognized_by_default(real("wilhelmy"), ("--labels", "filename"), tmp_path)["exact_match"] >= 0.97


def test_the_default_recipe_recognizes_real_digits(tmp_path: Path) -> None:
    assert recognized_by_default(real("digits"), ("--labels", "folder"), tmp_path)["exact_match"] >= 0.994


@pytest.mark.parametrize(
    ("folder", "arguments", "recipe", "num_files", "least"),
    [
        ("wilhelmy", ("--labels", "filename", "--height", "50", "--width", "200"), "isfahan", 856, (0.86, 0.5)),
        ("digits", ("--labels", "folder", "--height", "60", "--width", "18"), "wmail", 6802, (0.99, 0.99)),
    ],
)
def test_a_seed_recipe_recognizes_real_images_as_well_as_the_seed_did(
    folder: str, arguments: tuple[str, ...], recipe: str, num_files: int, least: tuple[float, float], tmp_path: Path
) -> None:
    assert run_job("preprocess", "--corpus", real(folder), *arguments, "--out", "shards", cwd=tmp_path)[0] == 0
    manifest = json.loads((tmp_path / "shards/manifest.json").read_text())
    assert sum(manifest["num_images"].values()) + sum(manifest["num_quarantined"].values()) == num_files
    assert run_job("train", "--recipe", recipe, "--shards", "shards", "--run", "run", cwd=tmp_path)[0] == 0
    test = json.loads((tmp_path / "run/results.json").read_text())["test"]
    print(json.dumps({name: test[name] for name in ("num_images", "char_accuracy", "exact_match", "exact_match_ci95")}))
    assert test["char_accuracy"] >= least[0]
    assert test["exact_match"] >= least[1]
