"""What stands in `cluster/`: fields, versions, rights, command lines; checked without a cluster and a network."""

import copy
import dataclasses
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import jsonschema
import pytest
import ray.autoscaler
import yaml
from pip._internal.commands import create_command
from ray.autoscaler._private.util import hash_runtime_conf, prepare_config, validate_config
from ray.runtime_env import RuntimeEnv
from ray.runtime_env.runtime_env import _merge_runtime_env

from benchmarks import sizing
from captcha_ray.inference.config import InferConfig
from captcha_ray.runtime import ray_session, telemetry
from captcha_ray.training.config import TrainConfig
from captcha_ray.tuning.config import TuneConfig
from tests.support.commands import check_ray_command, job_lines, parsed, shell_lines

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(CLUSTER.iterdir())
KUBERAY = sorted(CLUSTER.glob("kuberay-*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))

FIELDS = json.loads(Path(__file__).with_name("kuberay_fields.json").read_text())
"""What KubeRay knows, as a JSON schema with one definition a kind."""


def job_of(document: Any) -> Any:
    """The RayJobSpec of a manifest; None where it has none."""
    spec = document["spec"]
    return {"RayCronJob": spec.get("jobTemplate"), "RayJob": spec}.get(document["kind"])


def cluster_of(document: Any) -> Any:
    """The RayClusterSpec of a manifest."""
    job = job_of(document)
    return job["rayClusterSpec"] if job else document["spec"]


def groups_of(document: Any) -> list[Any]:
    """Head and worker groups."""
    spec = cluster_of(document)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods_of(document: Any) -> list[Any]:
    """The pod specs of all groups and of the submitter."""
    job = job_of(document)
    return [one["template"]["spec"] for one in groups_of(document)] + (
        [job["submitterPodTemplate"]["spec"]] if job else []
    )


# Command lines.


def job_lines_of(path: Path) -> list[tuple[str, list[str]]]:
    """Those of a file; of a manifest, those of its entrypoint."""
    if path in KUBERAY:
        job = job_of(yaml.safe_load(path.read_text()))
        return job_lines(job["entrypoint"]) if job else []
    return job_lines(path.read_text())


# Checks of one manifest, which must fail where it is broken.


def cores(quantity: str) -> float:
    """A quantity of CPUs."""
    return int(quantity[:-1]) / 1000 if quantity.endswith("m") else int(quantity)


@functools.cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """Of a whole manifest of this kind."""
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
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])


def check_gpus(document: Any) -> None:
    for pod in pods_of(document):
        gpu = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
        assert gpu == pod["containers"][0]["image"].endswith("-cuda")
        assert gpu == any(toleration["key"] == "nvidia.com/gpu" for toleration in pod.get("tolerations", []))
    for group in cluster_of(document)["workerGroupSpecs"]:
        if "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]:
            assert group["minReplicas"] == 0


def check_workers(document: Any) -> None:
    for pod in (group["template"]["spec"] for group in cluster_of(document)["workerGroupSpecs"]):
        assert {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority", "spot"} <= {
            toleration["key"] for toleration in pod["tolerations"]
        }
        assert 16 < pod["terminationGracePeriodSeconds"] < 30  # from what `ray stop` takes to a spot node's notice


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


@functools.cache
def dockerfile() -> tuple[str, ...]:
    """The Dockerfile's instructions, a line each."""
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    return tuple(line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line)


# KubeRay.


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_manifest_of_kuberay(path: Path, check: Callable[[Any], None]) -> None:
    (document,) = yaml.safe_load_all(path.read_text())
    check(document)


def replaced(document: Any, *keys: Any, by: Any) -> Any:
    """A copy with another value at this place; by: ... removes it."""
    changed = json.loads(json.dumps(document))  # YAML's aliases become things of their own
    place = functools.reduce(lambda found, key: found[key], keys[:-1], changed)
    if by is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = by
    return changed


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
    (check_gpus, (*WORKER, *IN_CONTAINER, "resources", "limits", "nvidia.com/gpu"), "1"),
    (check_workers, (*WORKER, *IN_POD, "terminationGracePeriodSeconds"), 120),
    (check_workers, (*WORKER, *IN_POD, "tolerations"), []),
]
"""Places below a RayClusterSpec, and what must not stand there."""

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
]
"""Places below a RayJobSpec, and what must not stand there."""

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


# Command lines, versions, secrets.


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_job_is_called_as_it_wants_to_be(path: Path) -> None:
    for job, arguments in job_lines_of(path):
        parsed(job, arguments)


def test_job_lines_are_found_where_they_are() -> None:
    found = {path.name: len(job_lines_of(path)) for path in FILES}
    assert {name: count for name, count in found.items() if count} == {
        "README.md": 2,
        "crontab": 1,
        "kuberay-cronjob-infer.yaml": 1,
        "kuberay-job-train.yaml": 1,
        "kuberay-job-tune.yaml": 1,
    }


@pytest.mark.parametrize("arguments", ["--sharts s3://a", "--epochs four", "--shards"])
def test_a_wrong_flag_ends_with_2(arguments: str) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("train", arguments.split())
    assert caught.value.code == 2


def test_images_bear_the_versions_of_the_package_and_of_ray() -> None:
    tags = {(path.name, tag) for path in FILES for tag in re.findall(r"captcha-ray:([\w.-]+)", path.read_text())}
    good = {f"{PROJECT['project']['version']}-ray{PINS['ray']}-{device}" for device in ("cpu", "cuda")}
    assert {tag for _, tag in tags} == good, tags
    versions = {(path.name, one) for path in FILES for one in re.findall(r"ray\W{0,3}(2\.\d+\.\d+)", path.read_text())}
    assert {version for _, version in versions} == {PINS["ray"]}, versions


def test_no_file_holds_a_secret() -> None:
    telling = re.compile(
        r"AKIA[0-9A-Z]{16}|PRIVATE KEY|kind: Secret|\b[0-9a-f]{32,}\b|://[^/\s]*:[^/\s]*@"
        r"|(secret_access_key|password|auth_token)[\"']?\s*[:=]\s*[\"']?[\w/+]{8}",
        re.IGNORECASE,
    )
    for path in FILES:
        assert not telling.search(path.read_text()), path.name
    assert telling.search("AWS_SECRET_ACCESS_KEY: abcdefgh12345678")
    assert telling.search("https://user:password@example.com")


def test_everything_that_must_exist_is_in_the_readme() -> None:
    readme = (CLUSTER / "README.md").read_text()
    table = re.findall(r"^\| (`.*?) \|", readme, re.MULTILINE)
    assert sorted(re.findall(r"`([^`]+)`", " ".join(table))) == [one.name for one in FILES if one.name != "README.md"]
    needed = set()
    for path in KUBERAY:
        document = yaml.safe_load(path.read_text())
        needed.add(f"secret generic {cluster_of(document)['authOptions']['secretName']}")
        for pod in pods_of(document):
            needed.add(f"serviceaccount {pod['serviceAccountName']}")
            for container in pod["containers"]:
                needed |= {f"secret generic {one['secretRef']['name']}" for one in container.get("envFrom", [])}
                assert all(one["secretRef"]["optional"] for one in container.get("envFrom", []))
    types = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text())["available_node_types"]
    needed |= {one["node_config"]["IamInstanceProfile"]["Name"] for one in types.values()}
    assert {one for one in needed if one not in readme} == set()


def test_the_readmes_commands_exist() -> None:
    lines = shell_lines((CLUSTER / "README.md").read_text())
    for line in lines:
        subprocess.run(["bash", "-n", "-c", line], check=True)
        for path in re.findall(r"\bcluster/[\w.-]+", line):
            assert (ROOT / path).is_file(), line
        if line.startswith("ray "):
            check_ray_command(line.removesuffix(" &").partition(" > ")[0])
    assert sum(line.startswith("ray ") for line in lines) >= 10
    for broken in ("ray jobs submit", "ray job submit --runtime-envs x -- python", "ray up --yess x"):
        with pytest.raises(AssertionError):
            check_ray_command(broken)


# Crontab, runtime environment.


def test_the_crontab_is_one_nightly_command() -> None:
    lines = [line for line in (CLUSTER / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    settings, commands = lines[:-1], lines[-1:]
    assert all(re.fullmatch(r"(MAILTO|CRON_TZ)=\S+", line) for line in settings)
    ((fields, command),) = [re.fullmatch(r"((?:\S+\s+){5})(.*)", line).groups() for line in commands]  # type: ignore[union-attr]
    assert re.fullmatch(r"\d+ \d+ \* \* \*\s+", fields)
    assert not re.search(r"(?<!\\)%", command), "cron ends the command there"
    subprocess.run(["sh", "-n", "-c", command], check=True)


def test_the_crontab_and_the_cronjob_do_the_same() -> None:
    assert job_lines_of(CLUSTER / "crontab") == job_lines_of(CLUSTER / "kuberay-cronjob-infer.yaml")


def test_the_runtime_environment_goes_with_that_of_the_jobs() -> None:
    given = yaml.safe_load((CLUSTER / "runtime-env.yaml").read_text())
    assert set(given) == {"env_vars"}, "versions are the image's"
    assert _merge_runtime_env(RuntimeEnv(**given), RuntimeEnv(env_vars=ray_session.WORKERS))
    clash = given["env_vars"] | dict.fromkeys(ray_session.WORKERS, "2")
    assert _merge_runtime_env(RuntimeEnv(env_vars=clash), RuntimeEnv(env_vars=ray_session.WORKERS)) is None


# Ray up.


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """ray-up.yaml as read; the home is an empty one with a token, and credentials lead nowhere."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token of tests")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of tests")
    for name in [name for name in os.environ if name.startswith("AWS_ENDPOINT_URL") or name == "AWS_PROFILE"]:
        monkeypatch.delenv(name)
    return yaml.safe_load((CLUSTER / "ray-up.yaml").read_text())


def test_ray_accepts_ray_up(up: Any) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(up, schema)
    prepared = prepare_config(copy.deepcopy(up))
    validate_config(prepared)
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == [], "Ray would install another Ray"
    hash_runtime_conf(prepared["file_mounts"], prepared["cluster_synced_files"], prepared, True)  # reads all mounts
    for keys, value in [
        (("idle_timeout_minute",), 10),
        (("available_node_types", "cpu", "min_worker"), 1),
        (("available_node_types", "cpu", "docker"), {"image": "x"}),
        (("docker", "run_option"), []),
        (("head_node_type",), "heat"),
        (("max_workers",), 0),
    ]:
        with pytest.raises((jsonschema.ValidationError, ValueError)):
            validate_config(replaced(prepared, *keys, by=value))


def test_the_machines_of_ray_up(up: Any) -> None:
    types = up["available_node_types"]
    head = types[up["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["gpu"]["docker"]["worker_image"].endswith("-cuda")
    assert up["docker"]["image"].endswith("-cpu")
    assert "-e RAY_AUTH_MODE=token" in up["docker"]["run_options"]
    assert up["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "aws_credentials" not in up["provider"]
    assert all(one["min_workers"] <= one["max_workers"] for name, one in types.items() if name != up["head_node_type"])
    assert sum(one["max_workers"] for one in types.values()) <= up["max_workers"]


def test_the_commands_of_ray_up(up: Any) -> None:
    for name, commands in up.items():
        if name.endswith("_commands"):
            for line in commands:
                subprocess.run(["bash", "-n", "-c", line], check=True)
                if line.startswith("ray "):
                    check_ray_command(line)
    assert "--dashboard-host=127.0.0.1" in up["head_start_ray_commands"][-1]


def test_ec2_knows_the_fields_of_the_machines(up: Any) -> None:
    shape = botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape

    def complaints(node_config: Any) -> str:
        report = botocore.validate.ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node_config}, shape)
        return str(report.generate_report())

    for one in up["available_node_types"].values():
        assert not complaints(one["node_config"])
        assert complaints({**one["node_config"], "InstanceMarketOption": {}})


def test_ray_starts_machines_of_a_simulated_ec2(up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3  # noqa: PLC0415 -- they take a second, and belong to this test alone
    from moto import mock_aws  # noqa: PLC0415
    from ray.autoscaler._private.aws import node_provider  # noqa: PLC0415

    types = up["available_node_types"]
    region = up["provider"]["region"]
    with mock_aws():
        ec2, iam = boto3.client("ec2", region), boto3.client("iam", region)
        for name in {one["node_config"]["IamInstanceProfile"]["Name"] for one in types.values()}:
            iam.create_instance_profile(InstanceProfileName=name)
        wanted = [one["node_config"]["InstanceType"] for one in types.values()]
        sizes = ec2.describe_instance_types(InstanceTypes=wanted)["InstanceTypes"]
        monkeypatch.setattr(node_provider, "list_ec2_instances", lambda *_: sizes)  # the list of all takes 10 s
        provider = node_provider.AWSNodeProvider
        config = provider.bootstrap_config(provider.fillout_available_node_types_resources(prepare_config(up)))
        found = {name: one["resources"] for name, one in config["available_node_types"].items()}
        assert (found["head"]["CPU"], found["cpu"]["CPU"], found["gpu"]["GPU"]) == (0, 8, 1)
        for name, one in config["available_node_types"].items():
            started = provider(config["provider"], config["cluster_name"])
            started.create_node(one["node_config"], {"ray-user-node-type": name}, 1)
        machines = [one for r in ec2.describe_instances()["Reservations"] for one in r["Instances"]]
        assert sorted(one["InstanceType"] for one in machines) == sorted(wanted)
        assert sum(one.get("InstanceLifecycle") == "spot" for one in machines) == 1


# Image.


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


def test_the_dashboard_shows_what_jobs_tell_and_nothing_else() -> None:
    dashboard = json.loads((CLUSTER / "grafana-dashboard.json").read_text())
    panels = dashboard["panels"]
    shown = {name for panel in panels for one in panel["targets"] for name in re.findall(r"ray_\w+", one["expr"])}
    told = {f"ray_{name}" for name in telemetry.GAUGES} | {f"ray_{name}_total" for name in telemetry.COUNTERS}
    assert shown == told
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) <= variables
    labels = {label for panel in panels for one in panel["targets"] for label in re.findall(r"{{(\w+)}}", str(one))}
    assert labels <= set(telemetry.TAGS)
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)


def test_the_page_on_sizes_has_the_table_that_its_figures_give() -> None:
    page = (CLUSTER / "SIZING.md").read_text()
    assert "\n".join(sizing.table(sizing.Costs())) in page
    costs = sizing.Costs(images_per_core_second=200, efficiency=0.5, night_hours=1)
    costs = dataclasses.replace(costs, recognizing=0.75, images_per_gpu_second=100)
    other = sizing.NightNeeds.of(10**6, costs)
    assert (other.cores, other.gpus, other.cores_beside_gpus) == (3, 3, 1)
    assert (round(other.gets_per_second), other.prefixes) == (280, 1)
    assert other.reading_hours == pytest.approx(1 - 1000 * 0.15 / 8 / 3600 - 10**6 / 79_362 / 3600)
    assert sizing.NightNeeds.of(10**9, sizing.Costs()).reading_hours == pytest.approx(
        8 - 10**9 / 79_362 / 3600
    )  # no listing
    with pytest.raises(ValueError, match="a night of 1 hours is too short to list 1,000,000,000 images"):
        sizing.NightNeeds.of(10**9, costs)
    assert other.price == pytest.approx(10**4 / 3600 * 0.04 + 0.40 + 0.005)
