"""Finds what stands in `cluster/`: files, manifests, their parts, pinned versions."""

import functools
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from tests.support.commands import job_lines

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(CLUSTER.iterdir())
KUBERAY = sorted(CLUSTER.glob("kuberay-*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def job_of(document: Any) -> Any:
    """Return the RayJobSpec of a manifest; None where it has none."""
    spec = document["spec"]
    return {"RayCronJob": spec.get("jobTemplate"), "RayJob": spec}.get(document["kind"])


def cluster_of(document: Any) -> Any:
    """Return the RayClusterSpec of a manifest."""
    job = job_of(document)
    return job["rayClusterSpec"] if job else document["spec"]


def groups_of(document: Any) -> list[Any]:
    """Return the head group and the worker groups."""
    spec = cluster_of(document)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods_of(document: Any) -> list[Any]:
    """Return the pod specs of all groups and of the submitter."""
    job = job_of(document)
    return [one["template"]["spec"] for one in groups_of(document)] + (
        [job["submitterPodTemplate"]["spec"]] if job else []
    )


def replaced(document: Any, *keys: Any, by: Any) -> Any:
    """Return a copy with another value at this place; `...` removes it."""
    changed = json.loads(json.dumps(document))  # YAML's aliases become things of their own
    place = functools.reduce(lambda found, key: found[key], keys[:-1], changed)
    if by is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = by
    return changed


def job_lines_of(path: Path) -> list[tuple[str, list[str]]]:
    """Return the job lines of a file; of a manifest, those of its entrypoint."""
    if path in KUBERAY:
        job = job_of(yaml.safe_load(path.read_text()))
        return job_lines(job["entrypoint"]) if job else []
    return job_lines(path.read_text())


@functools.cache
def dockerfile() -> tuple[str, ...]:
    """Return the Dockerfile's instructions, a line each."""
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    return tuple(line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line)
