"""Checks the Kubernetes job that creates a RayJob every night: its rights, and its script, with a kubectl of ours."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.manifests import CLUSTER

ACCOUNT, ROLE, BINDING, CRON = list(yaml.safe_load_all((CLUSTER / "cronjob-infer.yaml").read_text()))
POD: Any = CRON["spec"]["jobTemplate"]["spec"]["template"]["spec"]
(CREATOR,) = POD["containers"]
NIGHT: Any = yaml.safe_load((CLUSTER / "kuberay-job-infer.yaml").read_text())

KUBECTL = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$1" in
  create) echo rayjob.ray.io/captcha-infer-x7k2p ;;
  get) line=$(head -n 1 "$ANSWERS"); sed -i 1d "$ANSWERS"; test "$line" != unreachable && printf '%s' "$line" ;;
esac
"""


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        (["Initializing ", "Running RUNNING", "unreachable", "Complete SUCCEEDED"], 0),
        (["Running RUNNING", "Retrying FAILED", "Failed FAILED"], 1),
        (["Complete STOPPED"], 1),
        (["ValidationFailed "], 1),
    ],
)
def test_it_ends_as_the_night_does(tmp_path: Path, answers: list[str], status: int) -> None:
    for name, text in (("kubectl", KUBECTL), ("sleep", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "answers").write_text("".join(f"{line}\n" for line in answers))
    calls = tmp_path / "calls"
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(calls), "ANSWERS": str(tmp_path / "answers")}
    done = subprocess.run(CREATOR["command"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert done.stdout == "created rayjob.ray.io/captcha-infer-x7k2p\n"
    created, *asked = calls.read_text().splitlines()
    assert created == "create -f /manifest/kuberay-job-infer.yaml -o name"
    assert len(asked) == len(answers)
    assert (answers[-1] in done.stderr) == bool(status)


def test_without_the_right_to_create_it_fails_at_once(tmp_path: Path) -> None:
    (tmp_path / "kubectl").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "kubectl").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert subprocess.run(CREATOR["command"], env=env, timeout=60, check=False).returncode == 1


def test_it_may_do_what_its_script_does_and_no_more() -> None:
    script = CREATOR["command"][-1]
    assert ROLE["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
    assert set(re.findall(r"kubectl (\w+)", script)) == {"create", "get"}
    assert BINDING["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "Role",
        "name": ROLE["metadata"]["name"],
    }
    (subject,) = BINDING["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": ACCOUNT["metadata"]["name"]}
    assert POD["serviceAccountName"] == subject["name"]
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert CREATOR["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert CREATOR["resources"]["requests"] == CREATOR["resources"]["limits"]


def test_its_manifest_comes_from_the_config_map_that_the_readme_makes() -> None:
    (volume,) = POD["volumes"]
    readme = (CLUSTER / "README.md").read_text()
    made = f"kubectl create configmap {volume['configMap']['name']} --from-file=cluster/kuberay-job-infer.yaml"
    assert made in readme
    assert made in (CLUSTER / "cronjob-infer.yaml").read_text()


def test_a_night_and_its_second_try_end_before_the_next_one() -> None:
    spec = CRON["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert re.fullmatch(r"\d{1,2} \d{1,2} \* \* \*", spec["schedule"])
    job = spec["jobTemplate"]["spec"]
    assert job["backoffLimit"] == 0, "a second pod would create a second RayJob"
    tries = NIGHT["spec"]["activeDeadlineSeconds"] * (1 + NIGHT["spec"]["backoffLimit"])
    assert tries < job["activeDeadlineSeconds"] < 24 * 3600
    assert "generateName" in NIGHT["metadata"], "each night needs a name of its own"
    assert "kueue.x-k8s.io/queue-name" in NIGHT["metadata"]["labels"]
