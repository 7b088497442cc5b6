"""Checks jobs on a cluster of several nodes: access, messages, metrics, and the remains of an ended job."""

import contextlib
import dataclasses
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import ray

from captcha_ray.datasets.shards import Shards
from tests import factories
from tests.support.fault_proxy import Fault, fault_proxy
from tests.support.processes import JOBS, PREPROCESS, TRAIN, Job, run_job
from tests.support.ray_nodes import Nodes, living
from tests.support.s3_server import serve_s3
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("requested", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_is_asked_to_end_leaves_a_run_to_resume_and_nothing_on_the_cluster(
    requested: signal.Signals, nodes: Nodes, glyph_shards: Shards, tmp_path: Path
) -> None:
    metrics = tmp_path / "run/metrics.jsonl"
    train = (*TRAIN, "--shards", glyph_shards.uri, "--run", "run", "--num-workers", "2")
    with Job("train", *train, "--epochs", "2000", cwd=tmp_path, env=nodes.env, address=nodes.address) as first:
        wait_until(metrics.exists, first.process, explain=lambda: first.said)
        assert any("TrainController" in name for name in living(nodes)), "there is something to leave behind"
        os.kill(first.process.pid, requested)
        assert first.wait() == 128 + requested, first.said
        assert first.said.splitlines()[-1].startswith("error: interrupted; what was finished is kept")
        assert "Traceback" not in first.said
    wait_until(lambda: not living(nodes), None, explain=lambda: str(living(nodes)))
    kept = len(metrics.read_text().splitlines())
    config = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps(config | {"epochs": kept + 1}))
    (tmp_path / "run/resolved_config.json").unlink()
    env = {**nodes.env, "RAY_ADDRESS": nodes.address}
    status, _, err = run_job("train", *train, "--epochs", str(kept + 1), "--resume", cwd=tmp_path, env=env)
    assert status == 0, err
    assert len(metrics.read_text().splitlines()) == kept + 1


@pytest.mark.parametrize("token", ["f" * 32, ""], ids=["wrong", "missing"])
def test_a_wrong_token_is_told_in_a_sentence(token: str, nodes: Nodes, tmp_path: Path) -> None:
    env = {**nodes.env, "RAY_ADDRESS": nodes.address, "HOME": str(tmp_path)}
    env.pop("RAY_AUTH_TOKEN_PATH")
    env |= {"RAY_AUTH_TOKEN": token} if token else {}
    status, _, err = run_job("synthesize", "--out", "out", cwd=tmp_path, env=env)
    assert (status, len(err.splitlines())) == (2, 1)
    assert err.startswith(f"error: Ray cannot connect to the cluster at {nodes.address}: ")
    assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH" in err


METADATA = """
import json, os, sys
from ray._raylet import GcsClient
client, key = GcsClient(address=os.environ["RAY_ADDRESS"]), (b"CLUSTER_METADATA", b"cluster")
metadata = json.loads(client.internal_kv_get(*key))
client.internal_kv_put(key[0], json.dumps(metadata | {"%s": "%s"}).encode(), True, key[1])
"""
"""A program that changes a version in the metadata that the cluster gives to drivers."""


@pytest.mark.parametrize(("software", "version"), [("ray_version", "1.2.3"), ("python_version", "3.9.1")])
def test_a_cluster_of_another_version_is_told_in_a_sentence(
    software: str, version: str, nodes: Nodes, tmp_path: Path
) -> None:
    ours = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    nodes.run(METADATA % (software, version))
    try:
        env = {**nodes.env, "RAY_ADDRESS": nodes.address}
        status, _, err = run_job("synthesize", "--out", "out", cwd=tmp_path, env=env)
    finally:
        nodes.run(METADATA % (software, ours[software]))
    assert (status, len(err.splitlines())) == (2, 1)
    there, here = (
        f"Ray {versions['ray_version']} and Python {versions['python_version']}"
        for versions in (ours | {software: version}, ours)
    )
    assert f"runs {there}, this is {here}; install the same here" in err


def test_the_address_for_submitting_is_told_from_that_for_a_driver(nodes: Nodes, tmp_path: Path) -> None:
    env = {**nodes.env, "RAY_ADDRESS": nodes.env["RAY_API_SERVER_ADDRESS"]}
    status, _, err = run_job("synthesize", "--out", "out", cwd=tmp_path, env=env)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "an address for `ray job submit`; a job started here takes host:port" in err


ELSEWHERE = ("unshare", "--pid", "--fork", "--mount-proc")
"""A prefix that hides this machine's processes from a command, as on another machine. Takes root."""


@pytest.mark.skipif(subprocess.run([*ELSEWHERE, "true"], check=False).returncode != 0, reason="takes root and unshare")
def test_a_machine_that_is_no_node_is_told_to_submit(nodes: Nodes, tmp_path: Path) -> None:
    env = {**nodes.env, "RAY_ADDRESS": nodes.address}
    command = [*ELSEWHERE, sys.executable, str(JOBS / "synthesize.py"), "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"no node of the cluster at {nodes.address}, and a driver runs on one; submit the job" in done.stderr


def test_an_address_that_accepts_and_never_answers_is_given_up(nodes: Nodes, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        env = {**nodes.env, "RAY_ADDRESS": f"127.0.0.1:{mute.getsockname()[1]}"}
        status, _, err = run_job("synthesize", "--out", "out", cwd=tmp_path, env=env)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "error: no Ray cluster answers at 127.0.0.1:" in err


@pytest.mark.parametrize("name", ["evaluate", "infer", "train"])
def test_a_gpu_that_no_node_has_is_asked_for_in_vain(
    name: str, nodes: Nodes, glyph_shards: Shards, tmp_path: Path
) -> None:
    run = factories.save_network(tmp_path / "network", factories.GLYPHS)
    flags = {
        "evaluate": ("--run", run, "--shards", glyph_shards.uri, "--num-workers", "1"),
        "infer": ("--images", tmp_path / "absent", "--run", run, "--out", "out"),  # not even listed
        "train": (*TRAIN, "--shards", glyph_shards.uri, "--run", "run"),
    }
    env = {**nodes.env, "RAY_ADDRESS": nodes.address}
    status, _, err = run_job(name, *flags[name], "--use-gpu", cwd=tmp_path, env=env)
    assert status == 2, err
    assert re.search(r"1 worker of 1 CPU and 1 GPU each do not fit: the cluster has 2 CPUs and 0 GPUs", err), err


def test_a_folder_that_another_node_does_not_see_is_refused(nodes: Nodes, glyph_shards: Shards, tmp_path: Path) -> None:
    """Use /proc/self/cwd: it differs by process, as a local path differs by machine."""
    env = {**nodes.env, "RAY_ADDRESS": nodes.address}
    train = (*TRAIN, "--shards", glyph_shards.uri)
    status, _, err = run_job("train", *train, "--run", "/proc/self/cwd/run", cwd=tmp_path, env=env)
    assert status == 2, err
    assert "/proc/self/cwd/run is a folder of this machine that node" in err.splitlines()[-1]
    assert "--run must be a bucket (s3://...) or a folder that all nodes mount" in err
    assert not list(tmp_path.glob("*run*"))


def test_every_job_works_where_all_stands_in_a_bucket(tmp_path: Path) -> None:
    """Run all jobs on three nodes with the bucket's keys in their environment, as pods have them."""
    factories.draw_glyphs(tmp_path / "bucket/images", factories.glyph_texts(160, 2))
    here = tmp_path / "here"
    here.mkdir()
    nodes = Nodes(tmp_path)
    shards, run = ("--shards", "s3://bucket/shards"), ("--run", "s3://bucket/run")
    search = ("--run", "s3://bucket/search", "--num-trials", "2", "--epochs", "2", "--final-seeds", "1")
    with serve_s3(tmp_path) as s3, nodes.head(0, **s3), nodes.add(1, **s3), nodes.add(1, **s3):
        nodes.await_alive(3)
        env = {**nodes.env, **s3, "RAY_ADDRESS": nodes.address}
        for name, *flags in (
            ("preprocess", "--corpus", "s3://bucket/images", *PREPROCESS, "--out", "s3://bucket/shards"),
            ("train", *TRAIN, *shards, *run, "--num-workers", "2", "--epochs", "3"),
            ("evaluate", *run, "--split", "val"),
            ("evaluate", *run, "--folds", "2"),
            ("tune", "--recipe", "s3://bucket/run/config.json", *shards, *search),
            ("infer", "--images", "s3://bucket/images", *run, "--out", "s3://bucket/out", "--num-workers", "2"),
        ):
            status, _, err = run_job(name, *flags, cwd=here, env=env)
            assert status == 0, f"{name}: {err}"
    bucket = tmp_path / "bucket"
    assert not list(here.iterdir())
    epochs = [json.loads(line) for line in (bucket / "run/metrics.jsonl").read_text().splitlines()]
    assert [epoch["num_workers"] for epoch in epochs] == [2, 2, 2]
    assert {"test", "val", "cross_validation"} <= json.loads((bucket / "run/results.json").read_text()).keys()
    assert len(pq.read_table(bucket / "run/folds.parquet")) == 160
    assert json.loads((bucket / "search/best.json").read_text())["epochs"] == 2
    table = pyarrow.dataset.dataset(str(bucket / "out"), partitioning="hive").to_table(["uri", "status"])
    wanted = sorted(f"s3://bucket/images/{path.name}" for path in (bucket / "images").iterdir())
    assert sorted(table["uri"].to_pylist()) == wanted
    assert set(table["status"].to_pylist()) <= {"ok", "uncertain"}


@pytest.mark.parametrize("refusal", [Fault.DENIED, Fault.SKEWED])
@pytest.mark.parametrize("name", ["preprocess", "synthesize", "train", "tune", "evaluate", "infer"])
def test_a_bucket_that_may_not_be_written_is_found_before_the_work(
    name: str, refusal: Fault, nodes: Nodes, glyph_shards: Shards, tmp_path: Path
) -> None:
    """Try a bucket without rights to write, and one that refuses a clock an hour off."""
    bucket = tmp_path / "bucket"
    factories.draw_glyphs(bucket / "images", factories.glyph_texts(20, 2))
    shutil.copytree(glyph_shards.uri, bucket / "shards")
    factories.save_network(bucket / "run", factories.GLYPHS)
    flags = {
        "preprocess": ("--corpus", "s3://bucket/images", *PREPROCESS, "--out", "s3://bucket/new"),
        "synthesize": ("--out", "s3://bucket/new"),
        "train": (*TRAIN, "--shards", "s3://bucket/shards", "--run", "s3://bucket/new"),
        "tune": ("--recipe", "isfahan", "--shards", "s3://bucket/shards", "--run", "s3://bucket/new"),
        "evaluate": ("--run", "s3://bucket/run", "--shards", "s3://bucket/shards", "--out", "s3://bucket/new/out.json"),
        "infer": ("--images", "s3://bucket/images", "--run", "s3://bucket/run", "--out", "s3://bucket/new"),
    }

    def plan(method: str, path: str, attempt: int) -> Fault | None:
        return refusal if refusal is Fault.SKEWED or method in ("PUT", "POST", "DELETE") else None

    before = sorted(bucket.rglob("*"))
    with serve_s3(tmp_path) as s3, fault_proxy(s3["AWS_ENDPOINT_URL"], plan) as proxy:
        env = {**nodes.env, **s3, "AWS_ENDPOINT_URL": proxy.url, "RAY_ADDRESS": nodes.address}
        status, _, err = run_job(name, *flags[name], cwd=tmp_path, env=env)
        read = [path for method, path in proxy.requests if method == "GET" and path.endswith(".png")]
    assert status == 2, err
    assert len(err.splitlines()) == 1
    code = "AccessDenied" if refusal is Fault.DENIED else "RequestTimeTooSkewed"
    assert re.search(f"^error: .*s3://bucket/.*{code}", err.splitlines()[-1]), err
    assert not read
    assert sorted(bucket.rglob("*")) == before


def test_a_list_of_images_is_read_by_the_driver_alone(nodes: Nodes, tmp_path: Path) -> None:
    """Put the list where no other node sees it; the images stand where all nodes see them."""
    images = factories.draw_glyphs(tmp_path / "images", factories.glyph_texts(30, 2))
    pq.write_table(pa.table({"uri": [str(path) for path in images.iterdir()]}), tmp_path / "list.parquet")
    run = factories.save_network(tmp_path / "run", factories.GLYPHS)
    night = ("--images", "/proc/self/cwd/list.parquet", "--run", run, "--out", tmp_path / "out")
    env = {**nodes.env, "RAY_ADDRESS": nodes.address}
    status, out, err = run_job("infer", *night, cwd=tmp_path, env=env)
    assert status == 0, err
    assert "30 of 30 objects done" in out


def measured(nodes: Nodes, name: str) -> dict[str, float]:
    """Return the values of a metric on all nodes by their labels, as Prometheus finds them."""
    found: dict[str, float] = {}
    for node in nodes.started:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{node.metrics}/metrics") as page:
            lines = page.read().decode().splitlines()
            found |= {
                line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)
            }
    return found


def test_prometheus_finds_how_a_training_goes(nodes: Nodes, glyph_shards: Shards, tmp_path: Path) -> None:
    train = (*TRAIN, "--shards", glyph_shards.uri, "--run", "run", "--epochs", "4000")
    with Job("train", *train, cwd=tmp_path, env=nodes.env, address=nodes.address) as training:
        names = ("progress", "images_per_second", "data_wait_fraction", "train_loss", "val_exact_match", "workers")
        found: dict[str, dict[str, float]] = {}

        def all_there() -> bool:
            found.update({name: measured(nodes, f"ray_captcha_{name}{{") for name in names})
            return all(found.values()) and min(found["val_exact_match"].values()) > 0

        wait_until(all_there, training.process, explain=lambda: training.said)
        for name in names:
            (labels, value), *more = found[name].items()
            assert not more
            assert 'job="train"' in labels
            assert f'run="{tmp_path}/run"' in labels
            assert value > 0 or name == "data_wait_fraction"


def test_prometheus_finds_how_a_night_goes(nodes: Nodes, tmp_path: Path) -> None:
    """Look while the night runs: counters end with the job."""
    images = factories.draw_glyphs(tmp_path / "images", factories.glyph_texts(400, 2))
    (images / "broken.png").write_bytes(b"no image")
    image = dataclasses.replace(factories.GLYPHS.image, height=256, width=768)
    run = factories.save_network(tmp_path / "run", dataclasses.replace(factories.GLYPHS, image=image))
    night = ("--images", images, "--run", run, "--out", "out", "--num-workers", "1")
    with Job("infer", *night, cwd=tmp_path, env=nodes.env, address=nodes.address) as job:
        names = ("objects_total{", "stage_seconds_total{", "progress{", "images_per_second{")
        wait_until(
            lambda: all(measured(nodes, f"ray_captcha_{name}") for name in names), job.process, explain=lambda: job.said
        )
        stages = measured(nodes, "ray_captcha_stage_seconds_total{")
        assert any('stage="recognize"' in labels for labels in stages)
        assert job.wait() == 0, job.said
