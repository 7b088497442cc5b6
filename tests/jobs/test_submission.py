"""Runs `ray job` commands of the README, with the package installed and with the folder sent along."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from captcha_ray.datasets.shards import Shards
from tests import factories
from tests.support.processes import JOBS, TRAIN
from tests.support.ray_nodes import Nodes, living
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def submit(nodes: Nodes, *arguments: str | Path) -> str:
    """Return the output of `ray job submit`."""
    command = [str(Path(sys.executable).with_name("ray")), "job", *map(str, arguments)]
    done = subprocess.run(command, env=nodes.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_the_readme_says_of_submitting(nodes: Nodes, glyph_shards: Shards, tmp_path: Path) -> None:
    """Run the README's commands; only names that are examples are replaced."""
    (nodes.folder / "jobs").symlink_to(JOBS)
    readme = (JOBS.parent / "cluster/README.md").read_text().replace("\\\n", "")
    lines = [line for line in readme.splitlines() if line.startswith("ray job ")]
    submitted, listed, logged, stopped, night = lines
    assert [line.split()[2] for line in lines[:4]] == ["submit", "list", "logs", "stop"]
    names = {
        '{"driver":1}': "{}",  # no node of this cluster is for drivers
        "s3://captcha-data/shards/captchas": glyph_shards.uri,
        "s3://captcha-data/runs/captchas": f"{tmp_path}/run",
        "1:8": "1:2",
    }

    def said(command: str) -> str:
        for name, ours in names.items():
            command = command.replace(name, ours)
        done = subprocess.run(
            ["sh", "-c", command], cwd=JOBS.parent, env=nodes.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    (job_id,) = set(re.findall(r"raysubmit_\w+", said(submitted)))
    names["raysubmit_1234567890abcdef"] = job_id
    wait_until((tmp_path / "run/metrics.jsonl").exists, None, explain=lambda: submit(nodes, "logs", job_id))
    assert job_id in said(listed)
    assert "was stopped" in said(stopped) + submit(nodes, "status", job_id)
    assert "error: interrupted" in said(logged)
    names |= {
        "s3://captcha-inbox/scans": str(factories.draw_glyphs(tmp_path / "images", factories.glyph_texts(20, 2))),
        "s3://captcha-data/runs/captchas": str(factories.save_network(tmp_path / "network", factories.GLYPHS)),
        "s3://captcha-data/tables/captchas": f"{tmp_path}/out",
    }
    assert "20 of 20 objects done" in said(night)


def test_a_driver_that_asks_for_resources_runs_on_the_node_that_has_them(nodes: Nodes) -> None:
    asked = ("--entrypoint-resources", '{"driver":1}', "--entrypoint-memory", "1000000000")
    name = f"driver-{os.getpid()}"
    with nodes.add(0, "", (), "--resources", '{"driver": 8}') as node:
        nodes.await_alive(len(nodes.started))
        submit(nodes, "submit", "--submission-id", name, *asked, "--", "echo", "here")
        log = Path(node.temporary, "session_latest/logs", f"job-driver-{name}.log")
        wait_until(lambda: log.exists() and "here" in log.read_text(), None)


def test_a_job_that_ray_stops_leaves_a_run_to_resume_and_nothing_on_the_cluster(
    nodes: Nodes, glyph_shards: Shards, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train = ("python", JOBS / "train.py", *TRAIN, "--shards", glyph_shards.uri, "--run", run, "--num-workers", "2")
    train = (*train, "--epochs", "2000", "--resume")
    name = f"stopped-{os.getpid()}"
    submit(nodes, "submit", "--submission-id", name, "--no-wait", "--", *train)
    wait_until((run / "metrics.jsonl").exists, None, explain=lambda: submit(nodes, "logs", name))
    submit(nodes, "stop", name)
    assert "was stopped" in submit(nodes, "status", name)
    assert "error: interrupted; what was finished is kept" in submit(nodes, "logs", name)
    wait_until(lambda: not living(nodes), None, explain=lambda: str(living(nodes)))
    assert not (run / "_lease.json").exists()
    kept = len((run / "metrics.jsonl").read_text().splitlines())
    again = f"again-{os.getpid()}"
    submit(nodes, "submit", "--submission-id", again, "--no-wait", "--", *train)
    goes_on = f"goes on after epoch {kept}"
    wait_until(lambda: goes_on in submit(nodes, "logs", again), None, explain=lambda: submit(nodes, "logs", again))
    submit(nodes, "stop", again)


ENDS_SLOWLY = """
import signal, time
def end(*_):
    time.sleep(5)  # longer than Ray gives by default
    raise SystemExit(print("ended in peace"))
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
signal.pause()
"""


def test_a_job_with_the_runtime_environment_has_time_to_end(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(ENDS_SLOWLY)
    given = ("--runtime-env", JOBS.parent / "cluster/runtime-env.yaml")
    name = f"slow-{os.getpid()}"
    submit(nodes, "submit", "--submission-id", name, *given, "--no-wait", "--", "python", tmp_path / "slow.py")
    wait_until(lambda: "ready" in submit(nodes, "logs", name), None)
    submit(nodes, "stop", name)
    assert "ended in peace" in submit(nodes, "logs", name)


def test_a_working_directory_stands_for_the_package_where_it_is_not_installed(
    nodes: Nodes, glyph_shards: Shards, tmp_path: Path
) -> None:
    for name in ("captcha_ray", "jobs"):
        shutil.copytree(JOBS.parent / name, tmp_path / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    trained = tmp_path / "clone/captcha_ray/training/loop.py"
    trained.write_text(trained.read_text() + f'\n\nopen("{tmp_path}/imported", "a").write(f"{{__file__}}\\n")\n')
    train = ("python", "jobs/train.py", *TRAIN, "--shards", glyph_shards.uri, "--run", tmp_path / "run")
    submit(nodes, "submit", "--working-dir", tmp_path / "clone", "--", *train, "--num-workers", "2", "--epochs", "1")
    assert (tmp_path / "run/_SUCCESS").exists()
    imported = (tmp_path / "imported").read_text().split()
    assert len(imported) >= 3, "by the driver and both workers"
    assert all("working_dir_files" in path for path in imported)
