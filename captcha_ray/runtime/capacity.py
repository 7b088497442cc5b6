"""Tell how many workers a cluster's nodes can hold, what an autoscaler may add, and what can never be had.

Counts what nodes have, not what is free: work waits until other work ends.
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
"""Share of a CPU that each worker leaves free, and that reading images for it takes. If a node is lost, its images
are read again while the waiting workers hold every CPU.
"""

POLL_S = 1.0
"""Seconds between two looks at the nodes."""

IDLE_S = 60.0
"""Seconds after which an autoscaler that has started no node will start none: it does not say what it could start."""

SAY_S = 30.0
"""Seconds between two lines about waiting."""


def num_fitting(cpus_per_worker: int, gpus_per_worker: float) -> int:
    """Return how many workers of so many CPUs and GPUs each the nodes can hold. GPUs may be a fraction."""
    nodes = [node["Resources"] for node in ray_session.nodes()]
    by_cpu = [int(n.get("CPU", 0)) // cpus_per_worker for n in nodes]
    by_gpu = by_cpu
    if 0 < gpus_per_worker < 1:  # a fraction is of one GPU, not spread over two
        by_gpu = [int(n.get("GPU", 0)) * int(1 / gpus_per_worker) for n in nodes]
    elif gpus_per_worker:
        by_gpu = [int(n.get("GPU", 0) / gpus_per_worker) for n in nodes]
    return sum(map(min, by_cpu, by_gpu))


def cpu_request(cpus: int) -> float:
    """Return the CPUs to request from Ray for a process that uses so many."""
    return cpus - SPARE_CPU


def device_of(use_gpu: bool) -> str:
    """Return the device, in torch's words, of a worker whose job was given a GPU or not.

    Ray shows every GPU of a node to workers that requested none, so what is visible tells nothing.
    """
    return "cuda" if use_gpu else "cpu"


@contextlib.contextmanager
def gpus_hidden() -> Iterator[None]:
    """Hide GPUs from this process while it computes on the CPU: torch's optimizers open any that they see."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def num_cpus() -> int:
    """Return the CPUs of all nodes, at least 1."""
    return max(int(sum(node["Resources"].get("CPU", 0) for node in ray_session.nodes())), 1)


def object_store_bytes() -> list[float]:
    """Return the bytes that the object store of each node holds in memory."""
    return [float(node["Resources"].get("object_store_memory", 0)) for node in ray_session.nodes()]


def describe(cpus_per_worker: int, gpus_per_worker: float) -> str:
    """Describe for a person what the nodes have, and how many workers they hold."""
    nodes = [node["Resources"] for node in ray_session.nodes()]
    have = f"{sum(n.get('CPU', 0) for n in nodes):.0f} CPUs and {sum(n.get('GPU', 0) for n in nodes):.0f} GPUs"
    fitting = num_fitting(cpus_per_worker, gpus_per_worker)
    return f"the cluster has {have} on {len(nodes)} node(s), room for {fitting}"


def _requested(num_workers: int, cpus_per_worker: int, gpus_per_worker: float) -> tuple[str, list[dict[str, float]]]:
    """Return a request as words for a person and as bundles for an autoscaler."""
    gpus = f" and {gpus_per_worker:g} GPU" if gpus_per_worker else ""
    cpus = f"{cpus_per_worker} CPU{'s' * (cpus_per_worker > 1)}"
    bundle = {"CPU": float(cpus_per_worker), **({"GPU": float(gpus_per_worker)} if gpus_per_worker else {})}
    return f"{num_workers} worker{'s' * (num_workers > 1)} of {cpus}{gpus} each", [bundle] * num_workers


def has_capacity(num_workers: int, cpus_per_worker: int, gpus_per_worker: float) -> bool:
    """Return whether the nodes can hold the workers. Raises InputError if not and there is no autoscaler."""
    if num_fitting(cpus_per_worker, gpus_per_worker) >= num_workers:
        return True
    requested, bundles = _requested(num_workers, cpus_per_worker, gpus_per_worker)
    if autoscaler(bundles) is None:
        raise InputError(f"{requested} do not fit: {describe(cpus_per_worker, gpus_per_worker)}")
    return False


def wait_for_capacity(num_workers: int, cpus_per_worker: int, gpus_per_worker: float, **paths: str) -> None:
    """Return once the nodes can hold the workers; until then ask the autoscaler for nodes and say so.

    Args:
        num_workers: Processes that must run at once.
        cpus_per_worker: CPUs of each.
        gpus_per_worker: GPUs of each; may be a fraction.
        paths: As for `ray_session.check_shared`, checked from the nodes that have come.

    Raises:
        InputError: There is no autoscaler, it can never start such nodes, it has started none for `IDLE_S`, or a
            new node does not see a path.
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
    """State of an autoscaler.

    num_starting: requested nodes that have not joined. refuses: whether it can never serve the request.
    """

    num_starting: int
    refuses: bool


def autoscaler(bundles: list[dict[str, float]]) -> Autoscaler | None:
    """Return the state of the cluster's autoscaler for a request; None if there is no autoscaler."""
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reply = autoscaler_pb2.GetClusterStatusReply()  # type: ignore[attr-defined]
    reply.ParseFromString(client.get_cluster_status(timeout_s=ray_session.CONNECT_TIMEOUT_S))
    status = client.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None, timeout=ray_session.CONNECT_TIMEOUT_S)
    return of_version_2(reply.autoscaling_state, bundles) or of_version_1(status)


def of_version_2(state: Any, bundles: list[dict[str, float]]) -> Autoscaler | None:
    """Return the state that version 2 of Ray's autoscaler reports, an `AutoscalingState`; None if it does not run.

    What it reports about other requests does not count.
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
    """Return the state that version 1 of Ray's autoscaler reports; None if it does not run.

    It also runs on clusters that cannot grow, and then calls every node a type of its own.
    """
    report = (json.loads(status) if status else {}).get("autoscaler_report") or {}
    types = report.get("node_type_mapping") or {}
    if all(kind == f"node_{node}" for node, kind in types.items()):
        return None
    return Autoscaler(len(report["pending_nodes"]) + sum(report["pending_launches"].values()), False)
