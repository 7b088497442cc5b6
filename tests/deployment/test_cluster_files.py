"""Checks what all files in `cluster/` share, the crontab and the runtime environment: commands, versions, secrets."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.runtime_env import RuntimeEnv
from ray.runtime_env.runtime_env import _merge_runtime_env

from captcha_ray.runtime import ray_session
from tests.support.commands import check_ray_command, parsed, shell_lines
from tests.support.manifests import CLUSTER, FILES, KUBERAY, PINS, PROJECT, ROOT, cluster_of, job_lines_of, pods_of


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_job_is_called_as_it_wants_to_be(path: Path) -> None:
    for job, arguments in job_lines_of(path):
        parsed(job, arguments)


def test_job_lines_are_found_where_they_are() -> None:
    found = {path.name: len(job_lines_of(path)) for path in FILES}
    assert {name: count for name, count in found.items() if count} == {
        "README.md": 2,
        "crontab": 1,
        "kuberay-cronjob-infer-gpu.yaml": 1,
        "kuberay-cronjob-infer.yaml": 1,
        "kuberay-job-infer.yaml": 1,
        "kuberay-job-train-gpu.yaml": 1,
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


def test_the_crontab_is_one_nightly_command() -> None:
    lines = [line for line in (CLUSTER / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    settings, commands = lines[:-1], lines[-1:]
    assert all(re.fullmatch(r"(MAILTO|CRON_TZ)=\S+", line) for line in settings)
    ((fields, command),) = [re.fullmatch(r"((?:\S+\s+){5})(.*)", line).groups() for line in commands]  # type: ignore[union-attr]
    assert re.fullmatch(r"\d+ \d+ \* \* \*\s+", fields)
    assert not re.search(r"(?<!\\)%", command), "cron ends the command there"
    subprocess.run(["sh", "-n", "-c", command], check=True)


def test_the_crontab_and_the_cronjob_do_the_same() -> None:
    night = job_lines_of(CLUSTER / "crontab")
    assert night == job_lines_of(CLUSTER / "kuberay-cronjob-infer.yaml")
    assert night == job_lines_of(CLUSTER / "kuberay-job-infer.yaml")
    ((name, arguments),) = job_lines_of(CLUSTER / "kuberay-cronjob-infer-gpu.yaml")
    assert (name, arguments) == (night[0][0], [*night[0][1], "--use-gpu"])


def test_the_runtime_environment_goes_with_that_of_the_jobs() -> None:
    given = yaml.safe_load((CLUSTER / "runtime-env.yaml").read_text())
    assert set(given) == {"env_vars"}, "versions are the image's"
    assert _merge_runtime_env(RuntimeEnv(**given), RuntimeEnv(env_vars=ray_session.WORKERS))
    clash = given["env_vars"] | dict.fromkeys(ray_session.WORKERS, "2")
    assert _merge_runtime_env(RuntimeEnv(env_vars=clash), RuntimeEnv(env_vars=ray_session.WORKERS)) is None
