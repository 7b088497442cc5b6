"""Room for workers on a cluster's nodes: what there is, what an autoscaler may add, and what can never be had.

Looks at what nodes have, not at what is free: work waits for what other work gives back.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.sdk import request_resources
from ray.core.generated import autoscaler_pb2

from captcha_ray import console
from captcha_ray.errors import InputError
from captcha_ray.runtime import ray_session

SPARE_CPU = 0.001
"""Of a CPU: what workers leave of each of theirs, and all that reading images for them takes. Images that are lost with
a node are read again while the workers that wait for them hold every CPU there is."""

POLL_S = 1.0
"""Seconds between two looks at the nodes."""

IDLE_S = 60.0
"""An autoscaler that has started no node for so long starts none for this request: it says nowhere what it could."""

SAY_S = 30.0
"""Seconds between two lines on what is waited for."""


def num_fitting(cpus_per_worker: int, gpus_per_worker: float) -> int:
    """How many workers of so many CPUs and GPUs each the nodes there are can hold; GPUs may be a fraction."""
    nodes = [node["Resources"] for node in ray_session.nodes()]
    by_cpu = [int(n.get("CPU", 0)) // cpus_per_worker for n in nodes]
    by_gpu = by_cpu
    if 0 < gpus_per_worker < 1:  # a fraction is of one GPU, not spread over two
        by_gpu = [int(n.get("GPU", 0)) * int(1 / gpus_per_worker) for n in nodes]
    elif gpus_per_worker:
        by_gpu = [int(n.get("GPU", 0) / gpus_per_worker) for n in nodes]
    return sum(map(min, by_cpu, by_gpu))


def cpu_request(cpus: int) -> float:
    """CPUs to ask Ray for, for a process that uses so many."""
    return cpus - SPARE_CPU


def device_of(use_gpu: bool) -> str:
    """Return the device, as torch names it, of a worker whose job was given a GPU or not.

    Ray shows every GPU of a node to workers that asked for none, so that what is visible says nothing.
    """
    return "cuda" if use_gpu else "cpu"


@contextlib.contextmanager
def gpus_hidden() -> Iterator[None]:
    """Hide GPUs from this process, which computes on the CPU: torch's optimizers open any that they see."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def num_cpus() -> int:
    """CPUs of the nodes there are; at least 1."""
    return max(int(sum(node["Resources"].get("CPU", 0) for node in ray_session.nodes())), 1)


def describe(cpus_per_worker: int, gpus_per_worker: float) -> str:
    """What the nodes there are have, and for how many workers that is, for a person."""
    nodes = [node["Resources"] for node in ray_session.nodes()]
    have = f"{sum(n.get('CPU', 0) for n in nodes):.0f} CPUs and {sum(n.get('GPU', 0) for n in nodes):.0f} GPUs"
    fitting = num_fitting(cpus_per_worker, gpus_per_worker)
    return f"the cluster has {have} on {len(nodes)} node(s), room for {fitting}"


def _requested(num_workers: int, cpus_per_worker: int, gpus_per_worker: float) -> tuple[str, list[dict[str, float]]]:
    """A request for a person, and for an autoscaler."""
    gpus = f" and {gpus_per_worker:g} GPU" if gpus_per_worker else ""
    cpus = f"{cpus_per_worker} CPU{'s' * (cpus_per_worker > 1)}"
    bundle = {"CPU": float(cpus_per_worker), **({"GPU": float(gpus_per_worker)} if gpus_per_worker else {})}
    return f"{num_workers} worker{'s' * (num_workers > 1)} of {cpus}{gpus} each", [bundle] * num_workers


def has_capacity(num_workers: int, cpus_per_worker: int, gpus_per_worker: float) -> bool:
    """Whether the nodes can hold the workers. Raises InputError where they cannot and there is no autoscaler."""
    if num_fitting(cpus_per_worker, gpus_per_worker) >= num_workers:
        return True
    requested, bundles = _requested(num_workers, cpus_per_worker, gpus_per_worker)
    if autoscaler(bundles) is None:
        raise InputError(f"{requested} do not fit: {describe(cpus_per_worker, gpus_per_worker)}")
    return False


def wait_for_capacity(num_workers: int, cpus_per_worker: int, gpus_per_worker: float, **paths: str) -> None:
    """Returns once the nodes can hold the workers; asks the autoscaler for more nodes, if there is one, and says so.

    paths: as for `ray_session.check_shared`; looked at from the nodes that have come. Raises InputError where there is
    no autoscaler, where it says that it can never start such nodes, once it has started none for `IDLE_S`, and where a
    node that has come does not see a path.
    """
    if has_capacity(num_workers, cpus_per_worker, gpus_per_worker):
        return
    requested, bundles = _requested(num_workers, cpus_per_worker, gpus_per_worker)
    try:
        last_said, last_started = -SAY_S, time.monotonic()
        fitting = 0
        while (now_fitting := num_fitting(cpus_per_worker, gpus_per_worker)) < num_workers:
            # Again and again: a cluster has room for one such request, and Ray Data and Ray Train write theirs too.
            request_resources(bundles=bundles)
            state = autoscaler(bundles) or Autoscaler(0, False)
            if state.num_starting or now_fitting != fitting:
                fitting, last_started = now_fitting, time.monotonic()
            have = describe(cpus_per_worker, gpus_per_worker)
            if state.refuses:
                raise InputError(f"{requested} do not fit, the autoscaler has no such nodes: {have}")
            if time.monotonic() - last_started > IDLE_S:
                raise InputError(
                    f"{requested} do not fit, the autoscaler has started no node for {IDLE_S:.0f} s: {have}"
                )
            if time.monotonic() - last_said >= SAY_S:
                last_said = time.monotonic()
                console.say(
                    f"waiting for nodes: {requested} are asked for; {have}; {state.num_starting} nodes are starting"
                )
            time.sleep(POLL_S)
    finally:
        request_resources(bundles=[])  # from here on workers hold the nodes; a request left behind would for ever
    ray_session.check_shared(**paths)


@dataclasses.dataclass(frozen=True)
class Autoscaler:
    """num_starting: nodes it has asked for that have not joined. refuses: whether it says that what is asked can never
    be had."""

    num_starting: int
    refuses: bool


def autoscaler(bundles: list[dict[str, float]]) -> Autoscaler | None:
    """What the cluster's autoscaler is at, and what it says of a request for these; None where there is none."""
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reply = autoscaler_pb2.GetClusterStatusReply()  # type: ignore[attr-defined]
    reply.ParseFromString(client.get_cluster_status(timeout_s=ray_session.CONNECT_TIMEOUT_S))
    status = client.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None, timeout=ray_session.CONNECT_TIMEOUT_S)
    return of_version_2(reply.autoscaling_state, bundles) or of_version_1(status)


def of_version_2(state: Any, bundles: list[dict[str, float]]) -> Autoscaler | None:
    """As the second version of Ray's autoscaler reports itself, an `AutoscalingState`; None where it does not run.

    What it says of other requests, somebody else's or an earlier one, does not count.
    """
    if not state.autoscaler_state_version:
        return None
    starting = len(state.pending_instances) + sum(one.count for one in state.pending_instance_requests)
    refused = [
        [dict(one.request.resources_bundle) for one in constraint.resource_requests for _ in range(one.count)]
        for constraint in state.infeasible_cluster_resource_constraints
    ]
    return Autoscaler(starting, bundles in refused)


def of_version_1(status: bytes | None) -> Autoscaler | None:
    """As the first version reports itself; None where it does not run.

    It also runs where there is nothing to scale, and then calls every node a type of its own.
    """
    report = (json.loads(status) if status else {}).get("autoscaler_report") or {}
    types = report.get("node_type_mapping") or {}
    if all(kind == f"node_{node}" for node, kind in types.items()):
        return None
    return Autoscaler(len(report["pending_nodes"]) + sum(report["pending_launches"].values()), False)
