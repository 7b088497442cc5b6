"""Checks the Dockerfile without building it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from pip._internal.commands import create_command

from tests.support.manifests import CLUSTER, PINS, PROJECT, ROOT, dockerfile


def test_the_images_python_is_the_one_the_pins_are_for() -> None:
    assert "ARG PYTHON=3.11" in dockerfile()
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert dockerfile()[1] == "FROM python:${PYTHON}-slim-bookworm"


def test_everything_the_image_copies_exists_and_is_sent() -> None:
    sent = [line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for line in dockerfile() if line.startswith("COPY") for source in line.split()[1:-1]]
    assert sorted(copied) == sorted(sent)
    assert all((ROOT / source).exists() for source in copied)
    assert "*" in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()


def test_the_image_does_not_run_as_root() -> None:
    assert [line for line in dockerfile() if line.startswith("USER")] == ["USER 1000:1000"]
    (made,) = [line for line in dockerfile() if "useradd" in line]
    assert "--uid 1000 --create-home" in made
    (home,) = [line for line in dockerfile() if line.startswith("ENV HOME=")]
    assert home.startswith(f"ENV HOME=/home/{made.split()[-1]} ")


def test_every_build_argument_is_used() -> None:
    for line in dockerfile():
        if line.startswith("ARG"):
            name = line.split()[1].partition("=")[0]
            assert sum(f"${name}" in other or f"${{{name}}}" in other for other in dockerfile()) >= 1, name
    readme = (CLUSTER / "README.md").read_text()
    assert set(re.findall(r"--build-arg (\w+)=", readme)) == {"COMMIT", "DEVICE", "TORCH_INDEX"}
    assert "ENV CAPTCHA_RAY_COMMIT=$COMMIT" in dockerfile(), "where environment.commit looks"


def test_the_images_commands_are_shell_that_pip_understands(tmp_path: Path) -> None:
    lines = [line.removeprefix("RUN ") for line in dockerfile() if line.startswith("RUN ")]
    for line in lines:
        subprocess.run(["sh", "-n", "-c", line], check=True)
    # Each line is run where there are no other programs than these, most of which only note their arguments.
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("pip", "apt-get", "useradd", "rm"):
        (programs / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >> "$NOTES"\n')
        (programs / name).chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    (programs / "grep").symlink_to(shutil.which("grep") or "/bin/grep")
    commands = {}
    for device in ("cpu", "cuda", "gpu"):
        notes = tmp_path / device
        notes.touch()
        environment = {"PATH": str(programs), "NOTES": str(notes), "DEVICE": device, "TORCH_INDEX": "https://a.test"}
        statuses = [
            subprocess.run(
                ["/bin/sh", "-c", line.replace("/tmp/requirements.txt", str(tmp_path / "requirements.txt"))],
                cwd=ROOT, env=environment, check=False, stderr=subprocess.DEVNULL,
            ).returncode
            for line in lines
            if "jobs/" not in line
        ]  # fmt: skip
        assert (max(statuses) > 0) == (device == "gpu")
        commands[device] = [line.split()[1:] for line in notes.read_text().splitlines() if line.startswith("pip ")]
    assert (tmp_path / "requirements.txt").read_text().split() == PROJECT["project"]["dependencies"]
    torch = [f"torch=={PINS['torch']}", f"torchvision=={PINS['torchvision']}"]
    assert commands["cpu"][0][-2:] == torch
    assert commands["cpu"][1:] == commands["cuda"]
    for arguments in commands["cpu"]:
        assert arguments[0] == "install"
        options, names = create_command("install").parser.parse_args(arguments[1:])
        assert all(name.partition("==")[0] in PINS for name in names)
        assert options.constraints == ["constraints.txt"] or options.ignore_dependencies, "unpinned"
    assert {"boto3", "setuptools"} <= set(commands["cpu"][1])
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in PINS}
    for requirement in PROJECT["project"]["dependencies"]:
        assert re.sub(r"[-_.]+", "-", re.split(r"[\[<>=]", requirement)[0]).lower() in pinned
