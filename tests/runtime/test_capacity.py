"""What fits a cluster, what it waits for where nodes may come, and what it refuses."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.core.generated import autoscaler_pb2

from captcha_ray.errors import InputError
from captcha_ray.runtime import capacity, ray_session
from tests.support.ray_nodes import Nodes


def test_a_state_of_the_second_version_tells_what_starts_and_what_never_will() -> None:
    state: Any = autoscaler_pb2.AutoscalingState()  # type: ignore[attr-defined]
    requested = [{"CPU": 2.0, "GPU": 1.0}] * 3
    assert capacity.of_version_2(state, requested) is None
    state.autoscaler_state_version = 3
    state.pending_instances.add()
    state.pending_instance_requests.add(count=2)
    assert capacity.of_version_2(state, requested) == capacity.Autoscaler(3, refuses=False)
    for count in (100, 3):  # of another job's workers, then of ours
        request = state.infeasible_cluster_resource_constraints.add().resource_requests.add(count=count)
        request.request.resources_bundle.update({"CPU": 2.0, "GPU": 1.0})
        assert capacity.of_version_2(state, requested) == capacity.Autoscaler(3, refuses=count == 3)


def test_a_status_of_the_first_version_is_no_autoscaler_where_every_node_is_a_type_of_its_own() -> None:
    report: dict[str, Any] = {"node_type_mapping": {"ab": "node_ab"}, "pending_nodes": [], "pending_launches": {}}
    assert capacity.of_version_1(None) is None
    assert capacity.of_version_1(b"{}") is None
    assert capacity.of_version_1(json.dumps({"autoscaler_report": report}).encode()) is None
    report |= {"node_type_mapping": {"ab": "head"}, "pending_nodes": [["x", "worker", "up"]]}
    report["pending_launches"] = {"worker": 2}
    assert capacity.of_version_1(json.dumps({"autoscaler_report": report}).encode()) == capacity.Autoscaler(
        3, refuses=False
    )


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (None, r"^8 workers of 64 CPUs each do not fit: the cluster has \d+ CPUs and 0 GPUs on 1 node"),
        (capacity.Autoscaler(1, refuses=True), "do not fit, the autoscaler has no such nodes: the cluster has"),
        (capacity.Autoscaler(0, refuses=False), "the autoscaler has started no node for 0 s: the cluster has"),
    ],
    ids=["none", "refuses", "idle"],
)
def test_what_can_never_be_had_is_one_sentence(
    state: capacity.Autoscaler | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "autoscaler", lambda bundles: state)
    monkeypatch.setattr(capacity, "IDLE_S", 0.1)
    with pytest.raises(InputError, match=sentence):
        capacity.wait_for_capacity(8, 64, 0)


@pytest.mark.usefixtures("ray_cluster")
def test_nodes_are_asked_for_until_they_are_there_and_only_those_that_see_the_paths_will_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitting = iter([0, 0, 0, 1, 2])
    requested: list[list[dict[str, float]]] = []

    def request(bundles: list[dict[str, float]]) -> None:
        requested.append(bundles)

    def look(**paths: str) -> None:
        assert next(fitting, None) is None, "nodes are looked at once all have come"
        raise InputError(f"a node does not see {paths['run']}")

    monkeypatch.setattr(capacity, "POLL_S", 0)
    monkeypatch.setattr(capacity, "num_fitting", lambda cpus, gpus: next(fitting))
    monkeypatch.setattr(capacity, "describe", lambda cpus, gpus: "one CPU")
    monkeypatch.setattr(capacity, "autoscaler", lambda bundles: capacity.Autoscaler(1, refuses=False))
    monkeypatch.setattr(capacity, "request_resources", request)
    monkeypatch.setattr(ray_session, "check_shared", look)
    with pytest.raises(InputError, match="a node does not see /here"):
        capacity.wait_for_capacity(2, 1, 0, run="/here")
    # Ray Data and Ray Train overwrite the one request that a cluster has; the last one gives nodes back.
    assert requested == [[{"CPU": 1.0}] * 2] * 3 + [[]]


@pytest.mark.usefixtures("ray_cluster")
def test_this_machine_alone_has_no_autoscaler() -> None:
    assert capacity.autoscaler([{"CPU": 1.0}]) is None
    capacity.wait_for_capacity(1, 1, 0)


def autoscaling(nodes: Nodes) -> dict[str, Any]:
    """A cluster of Ray's own imitation of a cloud: up to two nodes of one CPU, started when they are asked for."""
    lists = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
    lists += ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    # By its module: for the type of that name Ray looks for a file that it does not bring along.
    module = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"
    provider = {"type": "external", "module": module, "launch_multiple": True}
    provider |= {"use_node_id_as_ip": True, "gcs_address": nodes.address}
    worker = {"CPU": 1, "object_store_memory": 200 << 20}
    return {
        "cluster_name": "imitation",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": provider | {"head_node_id": FAKE_HEAD_NODE_ID},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        "file_mounts_sync_continuously": False,
        **{name: {} for name in ("head_node", "worker_nodes", "file_mounts", "auth")},
        **{name: [] for name in lists},
    }


VERSION_2 = {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}
"""Environment of a head whose autoscaler is the second, that of KubeRay and `ray up`; as Ray's own tests have it."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "refusal"), [({}, "has started no node for 5 s"), (VERSION_2, "has no such nodes")], ids=["v1", "v2"]
)
def test_a_job_waits_for_nodes_that_an_autoscaler_starts(version: dict[str, str], refusal: str, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    config = tmp_path / "autoscaler.json"
    config.write_text(json.dumps(autoscaling(nodes)))
    imitation = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", **version}
    env = {**nodes.env, "RAY_ADDRESS": nodes.address}
    with nodes.head(0, "--autoscaling-config", str(config), **imitation):
        program = (
            "from captcha_ray.runtime import capacity, ray_session\n"
            "with ray_session.connect():\n    capacity.wait_for_capacity({}, 1, 0)"
        )
        waits = subprocess.run(
            [sys.executable, "-c", program.format(2)], env=env, capture_output=True, text=True, check=False
        )
        assert waits.returncode == 0, waits.stderr
        assert "waiting for nodes: 2 workers of 1 CPU each are asked for; the cluster has 0 CPUs" in waits.stdout
        impatient = "from captcha_ray.runtime import capacity\ncapacity.IDLE_S = 5"
        never = subprocess.run(
            [sys.executable, "-c", f"{impatient}\n{program.format(3)}"],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"3 workers of 1 CPU each do not fit, the autoscaler {refusal}" in never.stderr
        assert "the cluster has 2 CPUs and 0 GPUs on 3 node(s), room for 2" in never.stderr


@pytest.mark.parametrize(
    ("there_is", "use_gpu", "warned"),
    [
        (ray_session.Cluster(2, 0, embedded=True), False, True),
        (ray_session.Cluster(2, 0, embedded=True), True, False),
        (ray_session.Cluster(2, 1, embedded=True), False, False),
        (ray_session.Cluster(2, 0, embedded=False), False, False),
    ],
    ids=["none here", "refused elsewhere", "one here", "the work runs elsewhere"],
)
def test_that_there_is_no_gpu_is_said_where_that_is_news(
    there_is: ray_session.Cluster, use_gpu: bool, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    there_is.warn_without_gpu(use_gpu)
    assert capsys.readouterr().err == ("warning: no GPU here; the CPU does the arithmetic\n" if warned else "")


@pytest.mark.parametrize(("address", "told"), [("192.0.2.1:6379", True), ("ray://192.0.2.1:10001", False)])
def test_a_driver_needs_a_node_here_and_rays_client_does_not(
    address: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "find_node_ids", set)
    monkeypatch.setattr(ray_session, "CONNECT_TIMEOUT_S", 0)
    refused = pytest.raises(InputError, match=f"no node of the cluster at {address}") if told else nullcontext()
    with refused:
        ray_session._check_is_a_node(address)
