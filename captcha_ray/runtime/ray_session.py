"""Connect to Ray, explain in one sentence why that fails, and tell what its nodes are and see."""

import contextlib
import dataclasses
import importlib
import logging
import os
import re
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import ray
import ray.data
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import find_node_ids
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from captcha_ray import console
from captcha_ray.errors import RESUME_HINT, InputError, JobError, check
from captcha_ray.storage import filesystem

QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # Ray Train sees the end of training this late at most
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray's own use of restartable actors prints an error at each start
    "RAY_task_oom_retries": "5",  # without a word, Ray would try for ever what no node has the memory for
}
"""Settings of this process that keep Ray from printing what comes as an exception anyway. The environment's own
values win.
"""

QUIET_ALONE = {
    # What a dashboard would show, and there is none: each of Ray's processes spends about a percent of a core on it.
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine
}
"""Further settings for a Ray that this process starts."""

DEBUG = os.environ.get("CAPTCHA_RAY_DEBUG") == "1"
"""Show Ray's own logs and progress bars, for those who look into its behavior."""

SLOW_START_S = 20.0
"""Seconds after which a start of Ray is said to be slow; it takes three on an idle machine."""

WORKERS = {
    # glibc gives threads arenas that cannot hold more than 64 MiB at a stretch; larger buffers go back to the kernel
    # after every batch. Ray runs what actors do in threads: there inference was 2.5 times slower without this.
    "MALLOC_ARENA_MAX": "1",
    # Hides GPUs from processes that asked for none: Ray Train opens the first one it sees, for workers on CPUs too.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}
"""Environment of the processes that do the work."""

CONNECT_TIMEOUT_S = 10
"""Seconds that a cluster's address may take to accept a connection, and again to answer."""

_NO_NODE = (
    "this machine is no node of the cluster at {}, and a driver runs on one; submit the job to run there, "
    "ray job submit -- python jobs/..."
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Resources that work may request. embedded: whether this process started Ray, on this machine alone."""

    num_cpus: int
    num_gpus: int
    embedded: bool

    def warn_without_gpu(self, use_gpu: bool) -> None:
        """Warn that the CPU computes, if no GPU was requested and this machine, which computes, has none."""
        if self.embedded and not (use_gpu or self.num_gpus):
            console.warn("no GPU here; the CPU does the arithmetic")


@contextlib.contextmanager
def connect(meanwhile: str = "") -> Iterator[Cluster]:
    """Connect to the cluster that `RAY_ADDRESS` names, or start a Ray that ends with the block.

    A process that is connected already keeps its connection. The handling of SIGTERM stays as it was.

    Args:
        meanwhile: Name of a module to import while Ray starts. On two cores, torch and Ray take four seconds each,
            or four together.

    Raises:
        InputError: The address does not answer, refuses this process, or runs another Ray or Python.
        JobError: Memory, or the object store and its disk, are used up.
    """
    address = os.environ.get("RAY_ADDRESS")
    quiet = {name: value for name, value in QUIET.items() if not (DEBUG and name == "RAY_BACKEND_LOG_LEVEL")}
    for name, value in (quiet if address else quiet | QUIET_ALONE | WORKERS).items():
        os.environ.setdefault(name, value)
    ours = not ray.is_initialized()
    importing = threading.Thread(target=importlib.import_module, args=(meanwhile,)) if meanwhile else None
    if importing:
        importing.start()
    if ours:
        with console.terminable():
            _start(address)
    if importing:
        importing.join()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = DEBUG
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True  # else only the text of what our code raised comes back
    if not DEBUG:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors come as exceptions, and are told once
    try:
        console.bind(ray_job=ray.get_runtime_context().get_job_id())
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield Cluster(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)), embedded=not address)
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
        raise JobError(
            "Ray's object store is full, and so is the disk that it spills to; more nodes, larger ones or a larger "
            f"object_store_memory hold more, and {RESUME_HINT}"
        ) from error
    except ray.exceptions.OutOfMemoryError as error:
        raise JobError(
            f"Ray ended workers because a node's memory was used up; fewer workers per node or larger nodes help, and "
            f"{RESUME_HINT}"
        ) from error
    finally:
        if ours:
            with console.terminable():
                ray.shutdown()


def _start(address: str | None) -> None:
    try:
        if address:
            _check_answers(address)
            _check_is_a_node(address)
            with _kept_stderr(shown_on_failure=False):  # native code repeats every second what the error says
                ray.init(address=address, logging_level=logging.WARNING, runtime_env={"env_vars": WORKERS})
        else:
            _ensure_token()
            # Token authentication is Ray's default here and stays on; this spares its announcement at every start.
            logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
            # "local", because without an address Ray joins whatever cluster was last started on this machine, or
            # waits for it in vain where it is gone.
            level = logging.INFO if DEBUG else logging.ERROR
            with _kept_stderr(), _slow_start_said():  # native code says that it was told its log level
                ray.init("local", include_dashboard=False, log_to_driver=DEBUG, logging_level=level)
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise InputError(_why_not(address, error)) from error
    except InputError:
        raise
    except Exception as error:  # what Ray raises where its processes are too slow to start
        variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
        folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()
        if "AF_UNIX path length" in str(error):
            raise InputError(
                f"the folder for temporary files, {folder}, has a path of {len(os.fsencode(folder))} bytes, which is "
                f"too long for the sockets that Ray makes in it; name a shorter one by {variable}"
            ) from error
        if isinstance(error, NotADirectoryError):
            raise InputError(f"{folder} is no folder; name one for temporary files by {variable}") from error
        raise JobError(f"Ray does not start, the machine may be busy: {_first_line(error)}") from error


def _ensure_token() -> None:
    """Make a token for this process' Ray if the home folder, where Ray keeps one, cannot be written."""
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        return
    try:
        token = Path.home() / ".ray" / "auth_token"
        if token.exists():
            return
        token.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=token.parent).close()
    except (OSError, RuntimeError):  # a folder that cannot be written; no home folder at all
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextlib.contextmanager
def _kept_stderr(*, shown_on_failure: bool = True) -> Iterator[None]:
    """Keep what this process and its native code write to standard error in a file; show it only if the block fails."""
    if DEBUG:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        try:
            os.dup2(file.fileno(), 2)
            yield
        except Exception:
            os.dup2(kept, 2)
            file.seek(0)
            if shown_on_failure:
                sys.stderr.write(file.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def _slow_start_said() -> Iterator[None]:
    """Print a line if the block takes longer than `SLOW_START_S`."""
    timer = threading.Timer(SLOW_START_S, console.say, ["Ray is still starting; the machine may be busy"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _is_host_and_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and "/" not in host and port.isdigit()


def _check_answers(address: str) -> None:
    """Raise InputError unless gRPC answers at `[ray://]host:port`; Ray itself would try for minutes."""
    check(
        not address.startswith(("http://", "https://")),
        f"RAY_ADDRESS is {address}, an address for `ray job submit`; a job started here takes host:port of the "
        f"cluster's head, or nothing",
    )
    target = address.removeprefix("ray://")
    if not _is_host_and_port(target):
        return  # "auto", "local" and the like are Ray's to resolve
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address}: {error.strerror or error}") from error
    channel = init_grpc_channel(target)
    try:
        grpc.channel_ready_future(channel).result(CONNECT_TIMEOUT_S)
    except grpc.FutureTimeoutError as error:
        raise InputError(f"no Ray cluster answers at {address}: what listens there is something else") from error
    finally:
        channel.close()


def _check_is_a_node(address: str) -> None:
    """Raise InputError if Ray does not run on this machine, as a driver of `host:port` needs."""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while _is_host_and_port(address) and not find_node_ids():  # type: ignore[no-untyped-call]
        check(time.monotonic() < deadline, _NO_NODE.format(address))
        time.sleep(1)


def _why_not(address: str | None, error: Exception) -> str:
    """Return a sentence for the error of a failed connection."""
    if not address:
        return f"Ray does not start on this machine: {_first_line(error)}"
    if versions := re.findall(r"(?:Ray|Python): (\S+)", str(error)):
        theirs, ours = versions[:2], versions[2:]
        return (
            f"the cluster at {address} runs Ray {theirs[0]} and Python {theirs[1]}, this is Ray {ours[0]} and Python "
            f"{ours[1]}; install the same here, or submit the job to run there"
        )
    if "No node info found" in str(error):
        return _NO_NODE.format(address)
    return (
        f"Ray cannot connect to the cluster at {address}: {_first_line(error)}; where it asks for a token, set "
        f"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's own"
    )


def check_shared(**paths: str) -> None:
    """Raise InputError if work may run on other nodes and one of them does not see a local path.

    Args:
        paths: Paths and URIs by the name of their flag. URIs of stores are seen everywhere.
    """
    home = ray.get_runtime_context().get_node_id()
    others = [n for n in nodes() if n["NodeID"] != home and {"CPU", "GPU"} & n["Resources"].keys()]
    local = {name: filesystem.absolute(path) for name, path in paths.items() if path and not filesystem.is_remote(path)}
    for name, path in local.items() if others else ():
        with filesystem.probe(path) as probe:
            seen = {
                node["NodeID"]: _exists.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
                ).remote(probe)
                for node in others
            }
            for node in others:
                check(
                    ray.get(seen[node["NodeID"]]),
                    f"{path} is a folder of this machine that node {node['NodeManagerAddress']} of the cluster does "
                    f"not see; --{name} must be a bucket (s3://...) or a folder that all nodes mount",
                )


@ray.remote(num_cpus=0)
def _exists(path: str) -> bool:
    return Path(path).exists()


def here() -> NodeAffinitySchedulingStrategy:
    """Return the scheduling of actors that the driver depends on.

    They run on its own node, which is lost only with the driver.
    """
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive, as `ray.nodes` describes them."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in found if node["Alive"]]
