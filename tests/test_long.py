"""Long checks, for `make check-all`: jobs without arguments, and the seed recipes on real images.

The real images are not part of this project. CAPTCHA_RAY_DATA names a folder that holds `wilhelmy/` (captchas of
200x50, the label is the file's stem) and `digits/` (single digits, the label is the folder); without it those checks
are skipped.
"""

import json
import os
from pathlib import Path

import pytest

from tests.test_jobs import job

pytestmark = pytest.mark.slow


def test_jobs_without_arguments_make_what_they_need_and_run(tmp_path: Path) -> None:
    status, out, _ = job("evaluate", cwd=tmp_path)
    assert status == 0
    assert "draw digits: 4,000 images" in out
    assert (tmp_path / "demo/runs/digits/_SUCCESS").exists()
    assert json.loads((tmp_path / "demo/runs/digits/results.json").read_text())["test"]["char_accuracy"] > 0.95
    for name in ("synthesize", "preprocess"):
        status, out, _ = job(name, cwd=tmp_path)
        assert (status, "finished already" in out) == (0, True)
    assert job("train", cwd=tmp_path)[0] == 2, "the run is there already"


@pytest.mark.parametrize(
    ("folder", "arguments", "recipe", "num_files", "least"),
    [
        ("wilhelmy", ("--labels", "filename", "--height", "50", "--width", "200"), "isfahan", 856, (0.86, 0.5)),
        ("digits", ("--labels", "folder", "--height", "60", "--width", "18"), "wmail", 6802, (0.99, 0.99)),
    ],
)
def test_a_seed_recipe_reads_real_images_as_well_as_the_seed_did(
    folder: str, arguments: tuple[str, ...], recipe: str, num_files: int, least: tuple[float, float], tmp_path: Path
) -> None:
    data = os.environ.get("CAPTCHA_RAY_DATA")
    if not data:
        pytest.skip("CAPTCHA_RAY_DATA names no folder of real images")
    corpus = Path(data).resolve() / folder
    assert job("preprocess", "--corpus", corpus, *arguments, "--out", "shards", cwd=tmp_path)[0] == 0
    manifest = json.loads((tmp_path / "shards/manifest.json").read_text())
    assert sum(manifest["num_images"].values()) + sum(manifest["num_quarantined"].values()) == num_files
    assert job("train", "--recipe", recipe, "--shards", "shards", "--run", "run", cwd=tmp_path)[0] == 0
    test = json.loads((tmp_path / "run/results.json").read_text())["test"]
    print(json.dumps({name: test[name] for name in ("num_images", "char_accuracy", "exact_match", "exact_match_ci95")}))
    assert test["char_accuracy"] >= least[0]
    assert test["exact_match"] >= least[1]
