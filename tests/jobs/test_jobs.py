"""Runs the jobs as a user does: real processes, exit statuses, kills, an S3 server, and a submitted job."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from captcha_ray import Recognizer
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.evaluation.config import EvaluateConfig
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.synthesis.config import SynthesizeConfig
from captcha_ray.tuning import search_space
from captcha_ray.tuning.config import TuneConfig
from tests.factories import draw_glyphs, glyph_texts
from tests.support.processes import JOBS, PREPROCESS, TRAIN, environment, run_job
from tests.support.ray_nodes import start_head
from tests.support.s3_server import serve_s3
from tests.support.waiting import wait_until

CONFIGS = {
    "synthesize": SynthesizeConfig,
    "preprocess": PreprocessConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "tune": TuneConfig,
}


@pytest.fixture(scope="module")
def corpus_and_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with `corpus/`, and its `shards/` by jobs/preprocess.py."""
    folder = tmp_path_factory.mktemp("jobs")
    draw_glyphs(folder / "corpus", glyph_texts(160, 2))
    (folder / "corpus/ab-broken.png").write_bytes(b"broken")
    (folder / "corpus/.DS_Store").write_bytes(b"hidden")
    status, out, err = run_job("preprocess", "--corpus", "corpus", *PREPROCESS, "--out", "shards", cwd=folder)
    assert (status, err) == (0, "")
    assert "quarantined: 1 not_an_image" in out
    assert "passed over: 1 hidden or system files" in out
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_help_states_every_field_with_its_default(name: str, tmp_path: Path) -> None:
    status, out, _ = run_job(name, "--help", cwd=tmp_path)
    assert status == 0
    for field in dataclasses.fields(CONFIGS[name]):
        assert f"--{field.name.replace('_', '-')}" in out
    assert out.count("(default:") == len(dataclasses.fields(CONFIGS[name]))


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("preprocess", ("--corpus", "absent"), "absent does not exist"),
        ("preprocess", ("--splits", "0.8", "0.8", "0.1"), "must add up to 1"),
        ("preprocess", ("--labels", "table"), "--table goes with --labels table"),
        ("synthesize", ("--num-images", "0"), "num_images is 0"),
        ("synthesize", ("--out", "full"), "is not empty"),
        ("train", ("--epochs", "-1"), "epochs is -1; it must be finite and not negative"),
        ("train", ("--recipe", "isfahn"), "unknown recipe 'isfahn'; did you mean 'isfahan'?"),
        ("train", ("--shards", "empty"), "holds no finished shards"),
        ("evaluate", ("--run", "empty"), "holds no checkpoint"),
        ("evaluate", ("--run", "empty", "--folds", "5"), "holds no run, whose recipe could be trained anew"),
        ("evaluate", ("--folds", "1"), "folds is 1; it must be 2 to 100"),
        ("tune", ("--num-trials", "0"), "num_trials is 0; it must be at least 1"),
        ("tune", ("--vary", "dropuot"), "did you mean 'dropout'?"),
        ("tune", ("--vary", *(f"{name}=off" for name in search_space.DEFAULT)), "the space is empty"),
        ("tune", ("--recipe", "absent.json"), "absent.json does not exist"),
        ("train", ("--recipe", "full/precious.json"), "cannot be read as JSON"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    name: str, arguments: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious").write_text("mine")
    (tmp_path / "full/precious.json").write_text("mine")
    status, _, err = run_job(name, *arguments, cwd=tmp_path)
    lines = [line for line in err.splitlines() if not line.startswith("warning:")]
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert sentence in lines[0]
    assert (tmp_path / "full/precious").read_text() == "mine"


def test_an_unknown_flag_names_the_nearest(tmp_path: Path) -> None:
    status, _, err = run_job("train", "--learning-rat", "1", cwd=tmp_path)
    assert status == 2
    assert "--learning-rate" in err


def test_an_address_where_no_cluster_is_gives_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    status, _, err = run_job("synthesize", cwd=tmp_path, env=environment(RAY_ADDRESS=address))
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: no Ray cluster answers at {address}")


def test_a_killed_synthesis_continues_to_the_same_files(tmp_path: Path) -> None:
    arguments = ("--scheme", "text5", "--num-images", "300", "--seed", "3")
    command = [sys.executable, str(JOBS / "synthesize.py"), *arguments, "--out", "cut"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), text=True, start_new_session=True)
    wait_until(lambda: len(list(tmp_path.glob("cut/*.png"))) > 20, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    half = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("*.png")}
    assert len(half) < 300
    for out in ("cut", "whole"):
        assert run_job("synthesize", *arguments, "--out", out, cwd=tmp_path)[0] == 0
    files = {name: {p.name: p.read_bytes() for p in (tmp_path / name).glob("*.png")} for name in ("cut", "whole")}
    assert files["cut"] == files["whole"]
    assert len(files["whole"]) == 300
    kept = [name for name, time_ns in half.items() if (tmp_path / "cut" / name).stat().st_mtime_ns == time_ns]
    assert len(kept) == len(half)
    status, out, _ = run_job("synthesize", *arguments, "--out", "cut", cwd=tmp_path)
    assert (status, "finished already" in out) == (0, True)
    status, _, err = run_job("synthesize", *arguments[:-1], "4", "--out", "cut", cwd=tmp_path)
    assert (status, "drawn with other settings" in err) == (2, True)


def test_a_run_killed_and_resumed_ends_as_an_undisturbed_one_and_explains_itself(corpus_and_shards: Path) -> None:
    folder = corpus_and_shards
    train = (*TRAIN, "--shards", "shards", "--epochs", "40")
    status, out, _ = run_job("train", *train, "--run", "whole", cwd=folder)
    assert status == 0
    process = subprocess.Popen(
        [sys.executable, str(JOBS / "train.py"), *train, "--run", "cut"],
        cwd=folder, env=environment(), text=True, start_new_session=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = folder / "cut/metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(metrics.read_text().splitlines()) < 40
    assert run_job("train", *train, "--run", "cut", cwd=folder)[0] == 2
    assert run_job("train", *train, "--run", "cut", "--resume", cwd=folder)[0] == 0

    def epochs(run: str) -> list[dict[str, float]]:
        drop = ("seconds", "images_per_second", "data_wait_fraction")
        lines = map(json.loads, (folder / run / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k not in drop} for line in lines]

    assert epochs("cut") == epochs("whole")
    results = json.loads((folder / "cut/results.json").read_text())
    assert results["test"] == json.loads((folder / "whole/results.json").read_text())["test"]
    present = {str(p.relative_to(folder / "cut")) for p in (folder / "cut").rglob("*") if p.is_file()}
    promised = {"config.json", "environment.json", "metrics.jsonl", "results.json", "report.html", "_SUCCESS",
                "checkpoint/model.safetensors", "checkpoint/model.json", "figures/loss.png", "figures/accuracy.png",
                "figures/positions.png", "figures/confusion_test.png"}  # fmt: skip
    assert promised <= present
    fields = {"epoch", "train_loss", "val_loss", "train_char_accuracy", "val_char_accuracy", "val_exact_match",
              "images_per_second", "data_wait_fraction", "seconds"}  # fmt: skip
    assert fields <= json.loads(metrics.read_text().splitlines()[-1]).keys()
    assert {"num_images", "loss", "char_accuracy", "exact_match", "exact_match_ci95"} <= results["test"].keys()
    assert results["test"]["char_accuracy"] > 0.9
    events = EventAccumulator(str(folder / "whole/tensorboard")).Reload()
    assert [e.step for e in events.Scalars("val_exact_match")] == list(range(1, 41))
    assert len(re.findall(r"^epoch ", out, re.MULTILINE)) == 40
    before = {p: p.stat().st_mtime_ns for p in (folder / "whole").rglob("*")}
    status, out, _ = run_job("train", *train, "--run", "whole", "--resume", cwd=folder)
    assert (status, "finished already" in out) == (0, True)
    assert {p: p.stat().st_mtime_ns for p in (folder / "whole").rglob("*")} == before


def test_a_network_that_recognizes_nothing_is_called_that_in_the_last_lines_and_the_report(
    corpus_and_shards: Path,
) -> None:
    folder = corpus_and_shards
    useless = ("--learning-rate", "1e-9", "--epochs", "1")
    status, _, err = run_job("train", *TRAIN, *useless, "--shards", "shards", "--run", "useless", cwd=folder)
    assert status == 0
    *_, first, pixels, images, labels, loss, following = err.splitlines()
    assert first.startswith("warning: this network is of no use: ")
    starts = ("warning: pixels: ", "warning: images: ", "warning: labels: ", "warning: loss: ")
    for line, start in zip((pixels, images, labels, loss), starts, strict=True):
        assert line.startswith(start)
    assert following == f"warning: next: python jobs/train.py --shards {folder}/shards --run {folder}/useless-auto"
    results = json.loads((folder / "useless/results.json").read_text())
    assert len(results["warnings"]) == 6
    page = (folder / "useless/report.html").read_text()
    assert page.index("of no use") < page.index("Split test") < page.index("Loss, nats per image")
    status, _, err = run_job("evaluate", "--run", "useless", "--split", "val", cwd=folder)
    assert (status, err.count("of no use"), err.count("strings of val")) == (0, 1, 1)


def test_evaluate_measures_a_split_and_a_labeled_folder(corpus_and_shards: Path) -> None:
    folder = corpus_and_shards
    status, *_ = run_job("train", *TRAIN, "--shards", "shards", "--run", "small", "--epochs", "8", cwd=folder)
    assert status == 0
    rule = ("--labels", "filename", "--label-pattern", "^([^-]+)")
    arguments = ("--run", "small", "--corpus", "corpus", *rule, "--out", "figures.json")
    status, out, err = run_job("evaluate", *arguments, cwd=folder)
    assert status == 0
    assert err == "warning: 1 files do not count: 1 not_an_image\n"
    summary = json.loads((folder / "figures.json").read_text())["corpus"]
    assert (summary["num_images"], summary["unreadable"]) == (160, {"not_an_image": 1})
    predictions = Recognizer.load(str(folder / "small")).predict(sorted(map(str, (folder / "corpus").glob("*.png"))))
    paths = sorted((folder / "corpus").glob("*.png"))
    right = sum(r.text == p.name.partition("-")[0] for r, p in zip(predictions, paths, strict=True))
    assert summary["num_exact_match"] == right
    assert f"of {summary['num_images']} strings" in out
    assert [r.error is None for r in predictions].count(False) == 1
    status, _, err = run_job("evaluate", "--run", "small", "--shards", "shards", "--split", "val", cwd=folder)
    assert (status, err) == (0, "")
    results = json.loads((folder / "small/results.json").read_text())
    assert {"val", "test"} <= results.keys()
    assert results["val"]["source"] == str(folder / "shards")
    bare = shutil.copytree(folder / "small/checkpoint", folder / "bare")
    status, out, _ = run_job("evaluate", "--run", "bare", "--shards", "shards", cwd=folder)
    assert (status, "shards: " in out) == (0, True)
    assert sorted(p.name for p in bare.iterdir()) == ["model.json", "model.onnx", "model.safetensors"]


def test_the_same_commands_work_on_an_object_store(tmp_path: Path) -> None:
    draw_glyphs(tmp_path / "bucket/images", glyph_texts(90, 2))
    (tmp_path / "bucket/images/ab-broken.png").write_bytes(b"broken")
    with serve_s3(tmp_path) as s3:
        env = environment(**s3)
        where = ("--corpus", "s3://bucket/images", "--out", "s3://bucket/shards")
        status, _, err = run_job("preprocess", *where, *PREPROCESS, cwd=tmp_path, env=env)
        assert (status, err) == (0, "")
        train = (*TRAIN, "--shards", "s3://bucket/shards", "--run", "s3://bucket/run", "--epochs", "2")
        status, _, err = run_job("train", *train, cwd=tmp_path, env=env)
        assert (status, [line for line in err.splitlines() if not line.startswith("warning:")]) == (0, [])
        assert run_job("train", *train, cwd=tmp_path, env=env)[0] == 2
        status, out, err = run_job("evaluate", "--run", "s3://bucket/run", "--folds", "2", cwd=tmp_path, env=env)
        assert (status, err) == (0, "")
        assert re.search(r"all 2 folds: .* of 90 strings", out)
        tune = (
            "--recipe",
            "s3://bucket/run/config.json",
            "--shards",
            "s3://bucket/shards",
            "--run",
            "s3://bucket/search",
        )
        options = ("--num-trials", "4", "--epochs", "6", "--final-seeds", "1")
        status, out, _ = run_job("tune", *tune, *options, cwd=tmp_path, env=env)
        assert (status, "4 trials: 3 stopped, 1 finished; " in out) == (0, True)
    assert json.loads((tmp_path / "bucket/search/best.json").read_text())["epochs"] == 6
    assert (tmp_path / "bucket/search/report.html").exists()
    run = tmp_path / "bucket/run"
    assert (run / "_SUCCESS").exists()
    assert pq.read_table(run / "folds.parquet").num_rows == 90
    assert "Cross-validation in 2 folds" in (run / "report.html").read_text()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert list((run / "tensorboard").iterdir())
    assert json.loads((run / "environment.json").read_text())["versions"]["ray"]
    assert s3["AWS_SECRET_ACCESS_KEY"] not in (run / "config.json").read_text() + (run / "environment.json").read_text()


@pytest.fixture
def token_cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Start a Ray head node with token authentication; yield the environment of its client."""
    with start_head(tmp_path) as env:
        yield env


def test_a_submitted_job_trains_on_a_cluster_with_token_authentication(
    corpus_and_shards: Path, token_cluster: dict[str, str], tmp_path: Path
) -> None:
    ray = str(Path(sys.executable).with_name("ray"))
    train = [*TRAIN, "--shards", str(corpus_and_shards / "shards"), "--run", str(tmp_path / "run"), "--epochs", "2"]
    submit = [ray, "job", "submit", "--", "python", str(JOBS / "train.py"), *train, "--num-workers", "2"]
    stranger = {k: v for k, v in token_cluster.items() if not k.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    refused = subprocess.run(submit, env=stranger, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert not (tmp_path / "run").exists()
    done = subprocess.run(submit, env=token_cluster, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = set(re.findall(r"raysubmit_\w+", done.stdout))
    # What `submit` shows may lack the last lines on a busy machine: Ray closes the connection as the job ends.
    logs = subprocess.run([ray, "job", "logs", job], env=token_cluster, capture_output=True, text=True, check=True)
    assert "epoch   2/2" in logs.stdout, logs.stdout
    alone = run_job("synthesize", "--num-images", "10", "--out", "alone", cwd=tmp_path)
    assert alone[0] == 0, "without RAY_ADDRESS a job starts a Ray of its own, whatever else runs on the machine"
    assert (tmp_path / "run/_SUCCESS").exists()
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["test"]["num_images"] > 0
