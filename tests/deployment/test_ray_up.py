"""Checks `ray-up.yaml` with Ray's own schema, EC2's fields and a simulated EC2."""

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import hash_runtime_conf, prepare_config, validate_config

from tests.support.commands import check_ray_command
from tests.support.manifests import (
    CLUSTER,
    replaced,
)


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load ray-up.yaml, with a home folder that holds only a token, and credentials that lead nowhere."""
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
