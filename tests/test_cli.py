"""The console script and the Python functions do what the jobs do, from a built wheel as well."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import captcha_ray
from captcha_ray import cli
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.datasets.shards import Shards
from captcha_ray.errors import InputError
from captcha_ray.evaluation import exporting
from captcha_ray.evaluation.config import EvaluateConfig, ExportConfig
from captcha_ray.inference.config import InferConfig
from captcha_ray.models import exports
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.recognizer import Recognizer
from captcha_ray.runtime import ray_session
from captcha_ray.synthesis.config import SynthesizeConfig
from captcha_ray.tuning.config import TuneConfig
from tests.factories import config_for, draw_glyphs, glyph_texts, network_of_size
from tests.support.processes import environment

ROOT = Path(__file__).parents[1]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "captcha_ray.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


def test_every_job_is_a_verb_and_a_function() -> None:
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(cli.VERBS)
    assert set(cli.VERBS) < set(captcha_ray.__all__)
    assert all(callable(getattr(captcha_ray, verb)) for verb in cli.VERBS)


def test_without_a_verb_the_usage_is_an_error_and_with_help_it_is_not(tmp_path: Path) -> None:
    nothing, unknown, help_ = run(cwd=tmp_path), run("trian", cwd=tmp_path), run("--help", cwd=tmp_path)
    assert (nothing.returncode, unknown.returncode, help_.returncode) == (2, 2, 0)
    assert "no verb 'trian'" in unknown.stderr
    assert all(f"  {verb} " in help_.stdout for verb in cli.VERBS)
    assert help_.stdout.strip() == nothing.stderr.strip()


def test_a_verb_has_the_flags_and_statuses_of_its_job(tmp_path: Path) -> None:
    shown = run("preprocess", "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "usage: captcha-ray preprocess" in shown.stdout
    assert "--label-pattern" in shown.stdout
    refused = run("preprocess", "--corpus", "absent", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == f"error: {tmp_path}/absent does not exist"


def test_functions_give_back_what_they_have_made(ray_cluster: ray_session.Cluster, tmp_path: Path) -> None:
    assert captcha_ray.synthesize(SynthesizeConfig(num_images=3, out=str(tmp_path / "drawn"))).endswith("drawn")
    draw_glyphs(tmp_path / "corpus", glyph_texts(120, 2))
    made = config_for(tmp_path, splits=(0.6, 0.2, 0.2))
    manifest = captcha_ray.preprocess(made)
    assert sum(manifest.num_images.values()) == 120
    config = TrainConfig(shards=made.out, run=str(tmp_path / "run"), epochs=1, batch_size=16, precision="fp32")
    trained = captcha_ray.train(config)
    assert Path(trained.report).read_text().startswith("<!DOCTYPE html>")
    assert trained.results["test"]["num_images"] == manifest.num_images["test"]
    assert len(Recognizer.load(trained.checkpoint).predict(str(next((tmp_path / "corpus").iterdir()))).text) <= 2
    measured = captcha_ray.evaluate(EvaluateConfig(run=trained.run, split="val", out=str(tmp_path / "val.json")))
    assert measured.evaluation is not None
    assert measured.evaluation.counts.num_images == manifest.num_images["val"]
    night = captcha_ray.infer(InferConfig(images=made.corpus, run=trained.run, out=str(tmp_path / "table")))
    assert night.committed.counts.total == 120


def test_varied_text_comes_with_a_table_of_its_labels(ray_cluster: ray_session.Cluster, tmp_path: Path) -> None:
    out = str(tmp_path / "varied")
    config = SynthesizeConfig(scheme="varied", num_images=300, out=out)
    captcha_ray.synthesize(config)
    captcha_ray.synthesize(config)  # finds all of it
    files = {path.relative_to(out).as_posix() for path in Path(out).rglob("*.png")}
    table = pq.read_table(f"{out}/labels.parquet").to_pydict()
    assert files == set(table["path"])
    made = PreprocessConfig(
        corpus=out, labels="table", table=f"{out}/labels.parquet", height=48, width=192, out=str(tmp_path / "shards")
    )
    manifest = captcha_ray.preprocess(made)
    assert sum(manifest.num_images.values()) == 300
    assert (manifest.min_length, manifest.max_length) == (1, 10)


def test_a_network_is_exported_anew_and_measured_as_it_runs_at_night(
    ray_cluster: ray_session.Cluster, glyph_shards: Shards, tmp_path: Path
) -> None:
    run = captcha_ray.train(TrainConfig(shards=glyph_shards.uri, run=str(tmp_path / "run"), epochs=1, batch_size=16))
    model = Path(run.checkpoint, "model.onnx")
    before = model.read_bytes()
    model.unlink()
    measured = captcha_ray.export(ExportConfig(run=run.run))
    assert model.read_bytes() == before
    assert measured["num_images"] == glyph_shards.manifest.num_images["val"]
    assert exporting.describe(measured)[0].startswith(f"of {measured['num_images']:,} validation texts, torch in fp32")
    results = Path(run.run, "results.json").read_bytes()
    night = captcha_ray.evaluate(EvaluateConfig(run=run.run, engine="openvino", precision="fp32"))
    assert night.results["test"]["char_accuracy"] == pytest.approx(run.results["test"]["char_accuracy"], abs=0.05)
    assert Path(run.run, "results.json").read_bytes() == results  # measured in another way, so not the run's
    shutil.move(glyph_shards.uri, f"{glyph_shards.uri}-moved")
    try:
        with pytest.raises(InputError, match=r"the shards of this run, .*, are gone; --shards names others"):
            captcha_ray.export(ExportConfig(run=run.run))
        elsewhere = captcha_ray.export(ExportConfig(run=run.run, shards=f"{glyph_shards.uri}-moved"))
        assert elsewhere == measured
    finally:
        shutil.move(f"{glyph_shards.uri}-moved", glyph_shards.uri)
    with pytest.raises(InputError, match="precision is int8, in which engine torch cannot compute"):
        captcha_ray.evaluate(EvaluateConfig(run=run.run, precision="int8"))


def test_a_bare_checkpoint_is_exported_without_a_measurement(
    ray_cluster: ray_session.Cluster, glyph_shards: Shards, tmp_path: Path
) -> None:
    run = str(network_of_size(tmp_path, 16, 40))
    assert captcha_ray.export(ExportConfig(run=run)) == {}
    assert "nothing was measured" in exporting.describe({})[0]
    assert exports.has(run, "fp32")
    with pytest.raises(InputError, match="the network takes"):
        captcha_ray.export(ExportConfig(run=run, shards=glyph_shards.uri))


def test_a_recipe_is_a_config_with_fields_of_ones_own() -> None:
    config = captcha_ray.load_recipe("auto", shards="a", run="b")
    assert (config.shards, config.run, config.optimizer, config.filters) == ("a", "b", "adamw", 16)
    with pytest.raises(InputError, match="epochs"):
        captcha_ray.load_recipe("auto", epochs=-1)


def test_a_finished_run_is_given_back_if_it_is_to_be_resumed(
    ray_cluster: ray_session.Cluster, glyph_shards: Shards, tmp_path: Path
) -> None:
    config = TrainConfig(shards=glyph_shards.uri, run=str(tmp_path / "run"), epochs=1, batch_size=16)
    first = captcha_ray.train(config)
    again = captcha_ray.train(TrainConfig.from_dict({**config.to_dict(), "resume": True}))
    assert again.results == first.results
    with pytest.raises(InputError, match="resume"):
        captcha_ray.train(config)
    with pytest.raises(InputError, match="was started with epochs 1, not 2; resume with the same flags"):
        captcha_ray.train(TrainConfig.from_dict({**config.to_dict(), "resume": True, "epochs": 2, "max_epochs": 0}))


def test_a_search_is_given_back(ray_cluster: ray_session.Cluster, glyph_shards: Shards, tmp_path: Path) -> None:
    config = TuneConfig(
        recipe="isfahan", shards=glyph_shards.uri, run=str(tmp_path / "search"), num_trials=1, epochs=1, final_seeds=0
    )
    result = captcha_ray.tune(config)
    assert [trial.status for trial in result.search.trials] == ["finished"]
    assert Path(result.best).exists()
    assert Path(result.report).exists()


def test_a_wheel_holds_all_of_the_package_and_its_console_script_runs(tmp_path: Path) -> None:
    copy = tmp_path / "copy"  # setuptools builds beside the sources, and takes whatever an earlier build has left there
    shutil.copytree(ROOT / "captcha_ray", copy / "captcha_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    build = [sys.executable, "-m", "pip", "wheel", str(copy), "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path)], check=True, cwd=tmp_path, env=environment())
    (wheel,) = tmp_path.glob("captcha_ray-*.whl")
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    source = ROOT / "captcha_ray"
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in source.rglob("*")
        if path.suffix in (".py", ".typed", ".jinja") or path.parent.name == "builtin"
    }
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.glob("captcha_ray/**/*") if path.is_file()}
    assert held == expected
    (info,) = unpacked.glob("*.dist-info")
    assert "captcha-ray = captcha_ray.cli:main" in (info / "entry_points.txt").read_text()
    assert "Apache License" in (info / "licenses/LICENSE").read_text()
    script = "import sys; sys.argv[0] = 'captcha-ray'; from captcha_ray.cli import main; main()"
    env = environment(PYTHONPATH=str(unpacked))
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import captcha_ray; print(captcha_ray.__file__); {script}", "--help"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(unpacked))
    assert "usage: captcha-ray VERB" in done.stdout
