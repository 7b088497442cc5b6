"""A Ray that starts slowly or not at all says so, and what it wrote is shown then and not otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from captcha_ray.runtime import ray_session
from tests.support.processes import environment
from tests.support.waiting import wait_until


def fail(written: bytes) -> None:
    os.write(2, written)
    raise ValueError("no start")


def test_what_is_written_at_a_start_is_shown_if_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with ray_session._kept_stderr():
        os.write(2, b"noise of native code\n")
    with pytest.raises(ValueError, match="no start"), ray_session._kept_stderr():
        fail(b"the reason, by native code\n")
    with pytest.raises(ValueError, match="no start"), ray_session._kept_stderr(shown_on_failure=False):
        fail(b"the same, every second\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "the reason, by native code\nafterwards\n"


def test_a_slow_start_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    monkeypatch.setattr(ray_session.console, "say", said.append)
    monkeypatch.setattr(ray_session, "SLOW_START_S", 0.01)
    with ray_session._slow_start_said():
        wait_until(lambda: bool(said))
    assert said == ["Ray is still starting; the machine may be busy"]
    monkeypatch.setattr(ray_session, "SLOW_START_S", 3600.0)
    with ray_session._slow_start_said():
        pass
    assert len(said) == 1


@pytest.mark.parametrize("debug", ["", "1"])
def test_rays_own_words_are_shown_to_those_who_ask(debug: str) -> None:
    program = "from captcha_ray.runtime import ray_session\nwith ray_session.connect(): pass"
    env = environment(CAPTCHA_RAY_DEBUG=debug)
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert ("local Ray instance" in done.stderr) == bool(debug)


def test_a_folder_for_temporary_files_with_too_long_a_path_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 84)
    folder.mkdir()
    program = "from captcha_ray.runtime import ray_session\nwith ray_session.connect(): pass"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(TMPDIR=str(folder)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"InputError: the folder for temporary files, {folder}, has a path of" in done.stderr
