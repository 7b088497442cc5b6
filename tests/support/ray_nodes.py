"""Real Ray nodes for tests, as processes of their own on this machine, started and stopped by their ids."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import Marked
from tests.support.waiting import wait_until

TOKEN = "0123456789abcdef0123456789abcdef"

STOP_S = 5
"""Seconds that a node may take to stop when it is asked to; then it is killed."""


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in sockets]


class Node(Marked):
    """A node with what runs on it. within: a command that runs Ray's, such as that of a network namespace.

    metrics: the port of what Prometheus would read.
    """

    def __init__(self, *options: str, folder: Path, env: dict[str, str], within: tuple[str, ...] = ()) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        # Every port that has a default is given: with a Ray already on this machine the default is taken, and a node
        # whose agent cannot listen runs on without accepting jobs. A folder of its own, as on a machine of its own, or
        # nodes would take each other's sockets and show each other's logs; its name is short, for sockets' sake.
        agent, self.metrics = free_ports(2)
        self.temporary = tempfile.mkdtemp(prefix="ray-")
        command = [*within, ray, "start", "--block", "--dashboard-agent-listen-port", str(agent)]
        command += ["--metrics-export-port", str(self.metrics)]
        super().__init__([*command, "--temp-dir", self.temporary, *options], "node", cwd=folder, env=env)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.pids(), None, STOP_S)
        self.kill()
        shutil.rmtree(self.temporary, ignore_errors=True)


class Nodes:
    """A head node and others that come and go. env: of a client; `RAY_API_SERVER_ADDRESS` is set for `ray job submit`,
    `RAY_ADDRESS` is not. address: what to set it to. folder: where nodes run, and the jobs that are submitted."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        token = folder / "token"
        token.write_text(TOKEN)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.folder, self._host = folder, host
        self._gcs, self._dashboard, self._client = free_ports(3, host)
        self.started: list[Node] = []
        self.address = f"{host}:{self._gcs}"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": path}
        self.env |= {"RAY_API_SERVER_ADDRESS": f"http://{host}:{self._dashboard}"}

    def head(self, num_cpus: int, *more: str, **env: str) -> Node:
        """Starts the head node; it accepts jobs. Another one may take its place, at the same address. more: options.
        env: of all that runs on it."""
        options = ["--head", "--node-ip-address", self._host, "--port", str(self._gcs), "--num-cpus", str(num_cpus)]
        options += ["--dashboard-host", self._host, "--dashboard-port", str(self._dashboard)]
        options += ["--ray-client-server-port", str(self._client), *more]
        node = Node(*options, folder=self.folder, env=self.env | env)
        try:
            wait_until(self._accepts_jobs, node.process, 120, lambda: node.said)
        except BaseException:
            node.kill()
            raise
        self.started.append(node)
        return node

    def add(self, num_cpus: int = 1, host: str = "", within: tuple[str, ...] = (), *more: str, **env: str) -> Node:
        """Starts another node; it joins some seconds later. host: its own address. more: options. env: of all that runs
        on it."""
        options = [
            "--address",
            self.address,
            "--num-cpus",
            str(num_cpus),
            "--node-ip-address",
            host or self._host,
            *more,
        ]
        self.started.append(Node(*options, folder=self.folder, env=self.env | env, within=within))
        return self.started[-1]

    def run(self, program: str) -> str:
        """Return what a program prints, as a driver of the cluster, which may take a minute."""
        env = {**self.env, "RAY_ADDRESS": self.address}
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60).stdout

    def await_alive(self, number: int) -> None:
        """Returns once the cluster has so many nodes, the head among them."""
        newest = self.started[-1]

        def alive() -> bool:
            try:
                return len(self._alive()) == number
            except subprocess.TimeoutExpired:  # a driver that meets a head that is just starting may wait for ever
                return False

        wait_until(alive, newest.process, explain=lambda: newest.said)

    def ids_of(self, node: Node) -> list[str]:
        """Ray's names of a node; none where it is dead."""
        return [identifier for identifier, socket in self._alive() if socket.startswith(node.temporary)]

    def _alive(self) -> list[tuple[str, str]]:
        program = "import json, ray; ray.init(logging_level='ERROR')\n"
        program += "print(json.dumps([(n['NodeID'], n['RayletSocketName']) for n in ray.nodes() if n['Alive']]))"
        found: list[tuple[str, str]] = json.loads(self.run(program))
        return found

    def _accepts_jobs(self) -> bool:
        """The dashboard answers some seconds before there is an agent that runs what is submitted."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        url = f"{self.env['RAY_API_SERVER_ADDRESS']}/api/jobs/"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, b'{"entrypoint": "true"}', headers), timeout=30
            ) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextlib.contextmanager
def start_head(folder: Path, num_cpus: int = 2) -> Iterator[dict[str, str]]:
    """A head node with token authentication that accepts jobs; gives the environment of a client of it."""
    nodes = Nodes(folder)
    with nodes.head(num_cpus):
        yield nodes.env


LIST = """
import json, ray
from ray.util.state import list_actors, list_placement_groups
ray.init(logging_level="ERROR")
left = [a.class_name for a in list_actors(limit=1000) if a.state != "DEAD"]
left += [f"group {g.placement_group_id}" for g in list_placement_groups(limit=1000) if g.state != "REMOVED"]
print(json.dumps(left))
"""
"""A program that prints what lives on the cluster, but for Ray's own."""

RAYS_OWN = (
    "_AutoscalingCoordinatorActor",
    "_StatsActor",
    "_UsageCollectionActor",
    "ActorLocationTracker",
    "JobSupervisor",
)


def living(nodes: Nodes) -> list[str]:
    """Actors and placement groups that are not Ray's own."""
    found: list[str] = json.loads(nodes.run(LIST))
    return [name for name in found if name not in RAYS_OWN]
