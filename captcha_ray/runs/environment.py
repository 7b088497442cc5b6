"""Describe what a result depends on beside its config: versions, commit, command, machine."""

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "captcha_ray", "ray", "torch", "openvino", "onnxruntime", "numpy", "pillow", "imagecodecs", "pyarrow", "duckdb",
    "obstore", "safetensors", "optuna",
)  # fmt: skip
"""Packages whose versions a result depends on."""


def versions() -> dict[str, str]:
    """Return the versions of this package and of those its results depend on; absent packages are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str | None:
    """Return the commit of this package, with `-dirty` if files differ.

    Outside a checkout, as in an image, return CAPTCHA_RAY_COMMIT of the environment, or None.
    """
    if not (Path(__file__).parents[2] / ".git").exists():
        return os.environ.get("CAPTCHA_RAY_COMMIT") or None
    # GIT_DIR and the like, which git sets for hooks, lead to another repository than this package's.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=ours)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def environment() -> dict[str, Any]:
    """Return versions, commit, command and hardware of this machine."""
    return {
        "versions": versions(),
        "commit": commit(),
        "command": sys.argv,
        "platform": platform.platform(),
        "processor": _processor(),
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    """Return the models of the NVIDIA GPUs whose driver is loaded."""
    lines = [
        line
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in path.read_text().splitlines()
    ]
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]


def provenance(**sizes: int) -> list[str]:
    """Return lines to print above any measured figure: command, commit, machine, versions, sizes."""
    where = environment()
    return [
        f"command: {' '.join(where['command'])}   commit: {where['commit']}",
        f"machine: {where['processor']}, {where['num_cpus']} CPUs, {where['platform']}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in where["versions"].items()),
        "sizes: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()),
    ]


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
