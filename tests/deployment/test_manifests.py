"""Checks KubeRay's manifests without a cluster: fields, versions, rights, resources, entrypoints."""

import functools
import json
import re
import shlex
import subprocess
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from captcha_ray.inference.config import InferConfig
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.tuning.config import TuneConfig
from tests.support.commands import job_lines, parsed
from tests.support.manifests import CLUSTER, KUBERAY, PINS, cluster_of, dockerfile, job_of, pods_of, replaced

FIELDS = json.loads(Path(__file__).with_name("kuberay_fields.json").read_text())
"""Holds what KubeRay knows, as a JSON schema with one definition a kind."""


def cores(quantity: str) -> float:
    """Return the CPUs of a quantity such as `500m`."""
    return int(quantity[:-1]) / 1000 if quantity.endswith("m") else int(quantity)


@functools.cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """Return the validator of whole manifests of this kind."""
    schema = {**FIELDS, "$ref": f"#/$defs/{kind}"}
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def check_fields(document: Any) -> None:
    validator(document["kind"]).validate(document)


def check_versions(document: Any) -> None:
    assert cluster_of(document)["rayVersion"] == PINS["ray"]


def check_replicas(document: Any) -> None:
    spec = cluster_of(document)
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] <= 16
        if not spec.get("enableInTreeAutoscaling"):  # nobody would ever change them
            assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] > 0
    assert ("autoscalerOptions" in spec) == bool(spec.get("enableInTreeAutoscaling"))


def check_head(document: Any) -> None:
    head = cluster_of(document)["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "tolerations" not in head["template"]["spec"], "the head must not be on a spot node"
    assert {port["name"]: port["containerPort"] for port in head["template"]["spec"]["containers"][0]["ports"]} == {
        "gcs-server": 6379,
        "dashboard": 8265,
    }


def check_rights(document: Any) -> None:
    spec = cluster_of(document)
    assert spec["authOptions"] == {"mode": "token", "secretName": "captcha-ray-token"}
    for pod in pods_of(document):
        who = pod["securityContext"]
        assert who["runAsNonRoot"] is True
        assert f"USER {who['runAsUser']}:{who['runAsGroup']}" in dockerfile(), "not the image's user"
        assert who["seccompProfile"] == {"type": "RuntimeDefault"}
    restricted = [one["securityContext"] for pod in pods_of(document) for one in pod["containers"]]
    restricted += [spec["autoscalerOptions"]["securityContext"]] if "autoscalerOptions" in spec else []
    for context in restricted:
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    autoscaled = bool(spec.get("enableInTreeAutoscaling"))
    tokens = [pod.get("automountServiceAccountToken", True) for pod in pods_of(document)]
    assert tokens == [autoscaled] + [False] * (len(tokens) - 1), "only an autoscaler talks to Kubernetes"


def check_resources(document: Any) -> None:
    for pod in pods_of(document):
        for container in pod["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["limits"])


def check_gpus(document: Any) -> None:
    for pod in pods_of(document):
        gpu = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
        assert pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", "1") == "1", "a worker a GPU"
        assert gpu == pod["containers"][0]["image"].endswith("-cuda")
        assert gpu == any(toleration["key"] == "nvidia.com/gpu" for toleration in pod.get("tolerations", []))
    for group in cluster_of(document)["workerGroupSpecs"]:
        if "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]:
            assert job_of(document) or group["minReplicas"] == 0, "GPUs of a cluster that stays would idle"
    job = job_of(document)
    if job:
        wants = "--use-gpu" in job["entrypoint"]
        has = ["nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"] for pod in pods_of(document)]
        assert any(has) == wants, "GPUs and --use-gpu come together"


def check_workers(document: Any) -> None:
    for group in cluster_of(document)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        assert 16 < pod["terminationGracePeriodSeconds"] < 30  # from what `ray stop` takes to a spot node's notice
        if "resources" in group["rayStartParams"]:
            assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {"driver": 8}
            assert group["rayStartParams"]["num-cpus"] == "0", "drivers alone"
            assert "tolerations" not in pod, "drivers must not be on a spot node"
            continue
        assert {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority", "spot"} <= {
            toleration["key"] for toleration in pod["tolerations"]
        }


def check_life(document: Any) -> None:
    job = job_of(document)
    if not job:
        return
    assert job["shutdownAfterJobFinishes"] is True
    assert job["ttlSecondsAfterFinished"] > 0
    assert job["backoffLimit"] > 0
    assert job["preRunningDeadlineSeconds"] < job["activeDeadlineSeconds"]
    if document["kind"] == "RayCronJob":
        assert job["activeDeadlineSeconds"] * (1 + job["backoffLimit"]) < 24 * 3600, "two nights could meet"
        assert re.fullmatch(r"\d{1,2} \d{1,2} \* \* \*", document["spec"]["schedule"]), "not once a night"
        assert document["spec"]["timeZone"] in zoneinfo.available_timezones() or not zoneinfo.available_timezones()


def check_entrypoint(document: Any) -> None:
    job = job_of(document)
    if not job:
        return
    lines = job_lines(job["entrypoint"])
    assert "$" not in job["entrypoint"]
    assert "\n" not in job["entrypoint"]
    as_ray_runs_it = subprocess.list2cmdline(shlex.split(job["entrypoint"]))
    assert job_lines(as_ray_runs_it) == lines
    for line in (job["entrypoint"], as_ray_runs_it):
        subprocess.run(["bash", "-n", "-c", line], check=True)
    configs = [parsed(*line) for line in lines]
    (name,) = {name for name, _ in lines}
    (group,) = cluster_of(document)["workerGroupSpecs"]
    cpus = cores(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    fitting = group["replicas"] * int(cpus // configs[0].cpus_per_worker)
    if name == "infer":
        assert [type(config) for config in configs] == [InferConfig]  # the same command takes over by itself
        assert configs[0].num_workers <= fitting
        return
    assert [config.resume for config in configs] == [True], "a retry runs the same line"
    if isinstance(configs[0], TrainConfig):
        assert configs[0].workers == (1, fitting), "it goes on without lost pods, and all are used"
    else:
        assert isinstance(configs[0], TuneConfig)
        assert configs[0].workers_per_trial <= fitting


CHECKS = [
    check_fields, check_versions, check_replicas, check_head, check_rights, check_resources, check_gpus, check_workers,
    check_life, check_entrypoint,
]  # fmt: skip


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_manifest_of_kuberay(path: Path, check: Callable[[Any], None]) -> None:
    (document,) = yaml.safe_load_all(path.read_text())
    check(document)


HEAD, WORKER = ("headGroupSpec",), ("workerGroupSpecs", 0)
IN_POD = ("template", "spec")
IN_CONTAINER = (*IN_POD, "containers", 0)
BROKEN = [
    (check_fields, ("rayVersion",), 2.6),
    (check_fields, ("authOption",), {}),
    (check_fields, ("authOptions", "secret"), "x"),
    (check_fields, (*HEAD, "rayStartParams", "num-cpus"), 0),
    (check_fields, (*HEAD, "replicas"), 1),
    (check_fields, (*WORKER, "maxReplica"), 4),
    (check_fields, (*WORKER, "minReplicas"), ...),
    (check_fields, (*WORKER, *IN_POD, "terminationGracePeriod"), 25),
    (check_fields, (*WORKER, *IN_CONTAINER, "resources", "limits", "memory"), "16GB"),
    (check_fields, (*WORKER, *IN_CONTAINER, "env", 0, "valve"), "x"),
    (check_versions, ("rayVersion",), "2.59.0"),
    (check_replicas, (*WORKER, "replicas"), 17),
    (check_replicas, (*WORKER, "minReplicas"), 9),
    (check_head, (*HEAD, "rayStartParams", "num-cpus"), "2"),
    (check_head, (*HEAD, *IN_POD, "tolerations"), [{"key": "spot", "operator": "Exists"}]),
    (check_rights, ("authOptions", "mode"), "disabled"),
    (check_rights, (*HEAD, *IN_POD, "securityContext", "runAsUser"), 0),
    (check_rights, (*WORKER, *IN_POD, "securityContext", "runAsNonRoot"), False),
    (check_rights, (*WORKER, *IN_POD, "automountServiceAccountToken"), ...),
    (check_rights, (*WORKER, *IN_CONTAINER, "securityContext", "allowPrivilegeEscalation"), True),
    (check_resources, (*WORKER, *IN_CONTAINER, "resources", "requests", "memory"), "1Gi"),
    (check_gpus, (*WORKER, *IN_CONTAINER, "resources", "limits", "nvidia.com/gpu"), "2"),
    (check_gpus, (*HEAD, *IN_CONTAINER, "resources", "limits", "nvidia.com/gpu"), "1"),
    (check_resources, (*WORKER, *IN_CONTAINER, "resources", "limits", "ephemeral-storage"), ...),
    (check_workers, (*WORKER, *IN_POD, "terminationGracePeriodSeconds"), 120),
    (check_workers, (*WORKER, *IN_POD, "tolerations"), []),
]
"""Places below a RayClusterSpec, with values that are wrong there."""

ONLY = "python jobs/train.py --shards s3://a --run s3://b --num-workers 1:4 --cpus-per-worker 4"
BROKEN_JOBS = [
    (check_fields, ("entryPoint",), "python jobs/train.py"),
    (check_fields, ("activeDeadlineSeconds",), 0),
    (check_fields, ("schedule",), "0 3 * * *"),
    (check_life, ("shutdownAfterJobFinishes",), False),
    (check_life, ("ttlSecondsAfterFinished",), 0),
    (check_life, ("backoffLimit",), 0),
    (check_rights, ("submitterPodTemplate", "spec", "securityContext", "runAsGroup"), 0),
    (check_entrypoint, ("entrypoint",), ONLY),
    (check_entrypoint, ("entrypoint",), f"sh -c '{ONLY} --resume || {ONLY}'"),
    (check_entrypoint, ("entrypoint",), f"sh -c '{ONLY} --resume"),
    (check_entrypoint, ("entrypoint",), f"{ONLY} --num-workers 4 --resume"),
    (check_entrypoint, ("rayClusterSpec", *WORKER, "replicas"), 3),
    (check_gpus, ("entrypoint",), f"{ONLY} --resume --use-gpu"),
]
"""Places below a RayJobSpec, with values that are wrong there."""

FAILURES = (AssertionError, jsonschema.ValidationError, KeyError, ValueError, subprocess.SubprocessError)


SPEC_OF = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
}


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
@pytest.mark.parametrize(("check", "keys", "value"), BROKEN)
def test_a_broken_cluster_is_found(path: Path, check: Callable[[Any], None], keys: tuple[Any, ...], value: Any) -> None:
    document = yaml.safe_load(path.read_text())
    broken = replaced(document, *SPEC_OF[document["kind"]], *keys, by=value)
    with pytest.raises(FAILURES):
        check(broken)


@pytest.mark.parametrize(("check", "keys", "value"), BROKEN_JOBS)
def test_a_broken_job_is_found(check: Callable[[Any], None], keys: tuple[Any, ...], value: Any) -> None:
    broken = replaced(yaml.safe_load((CLUSTER / "kuberay-job-train.yaml").read_text()), "spec", *keys, by=value)
    with pytest.raises(FAILURES):
        check(broken)


@pytest.mark.parametrize(
    ("check", "keys", "value"),
    [
        (check_fields, ("spec", "concurrencyPolicy"), "Forbid"),
        (check_fields, ("spec", "startingDeadlineSeconds"), 3600),
        (check_fields, ("spec", "jobTemplate", "spec"), {}),
        (check_fields, ("metadata", "name"), "a" * 41),
        (check_life, ("spec", "schedule"), "0 * * * *"),
        (check_life, ("spec", "timeZone"), "Europe/Berlino"),
        (check_life, ("spec", "jobTemplate", "activeDeadlineSeconds"), 86400),
    ],
)
def test_a_broken_schedule_is_found(check: Callable[[Any], None], keys: tuple[str, ...], value: Any) -> None:
    document = yaml.safe_load((CLUSTER / "kuberay-cronjob-infer.yaml").read_text())
    with pytest.raises(FAILURES):
        check(replaced(document, *keys, by=value))
