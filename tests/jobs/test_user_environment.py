"""Checks that jobs work in unusual environments, and that tests ignore a user's settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from captcha_ray.runs.environment import commit
from captcha_ray.runtime import ray_session
from tests.support.isolation import is_foreign

ROOT = Path(__file__).parents[2]
NOWHERE = "/proc/1/nowhere"
"""A home folder that nobody can make, not even root."""


@pytest.mark.parametrize(
    "name",
    ["AWS_PROFILE", "RAY_ADDRESS", "PIP_CONFIG_FILE", "GIT_DIR", "https_proxy", "ALL_PROXY", "PYTHONPATH",
     "XDG_CONFIG_HOME", "MPLBACKEND", "RCLONE_CONFIG", "FORCE_COLOR", "CAPTCHA_RAY_LOG", "AWS_REGION"],
)  # fmt: skip
def test_settings_of_other_tools_are_foreign(name: str) -> None:
    assert is_foreign(name)


@pytest.mark.parametrize("name", ["PATH", "TZ", "LC_ALL", "LANG", "TMPDIR", "CAPTCHA_RAY_DATA", "PYTEST_XDIST_WORKER"])
def test_what_jobs_must_work_with_is_left_alone(name: str) -> None:
    assert not is_foreign(name)


def test_tests_pass_with_a_constraint_in_pips_configuration_and_other_tests_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "constraint.txt").write_text("torch<2\n")
    (tmp_path / "pip.conf").write_text(f"[global]\nconstraint = {tmp_path}/constraint.txt\n")
    (tmp_path / "tests.py").write_text("raise SystemExit('these are not the tests')\n")
    settings = {"PIP_CONFIG_FILE": f"{tmp_path}/pip.conf", "PYTHONPATH": str(tmp_path), "PIP_CONSTRAINT": "c.txt"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/deployment/test_image.py"]
    command += ["-k", "shell_that_pip_understands"]
    env = os.environ | settings
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_commit_is_this_packages_whatever_repository_git_was_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    found = commit.__wrapped__()
    monkeypatch.setenv("GIT_DIR", "/nonexistent/.git")
    assert commit.__wrapped__() == found is not None


def test_a_job_runs_where_the_home_folder_cannot_be_written(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs/synthesize.py"), "--num-images", "3", "--out", "digits"]
    env = os.environ | {"HOME": NOWHERE}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "digits").rglob("*.png"))) == 3


def test_ray_is_given_a_token_only_where_it_can_keep_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "so that what is set below is taken back")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    ray_session._ensure_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("HOME", NOWHERE)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "mine"))
    ray_session._ensure_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    ray_session._ensure_token()
    first = os.environ["RAY_AUTH_TOKEN"]
    ray_session._ensure_token()
    assert os.environ["RAY_AUTH_TOKEN"] == first
    assert len(first) == 32
