"""A cluster of several nodes, and what may befall it."""

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.namespace import HOST, Namespace
from tests.support.processes import kill
from tests.support.ray_nodes import Node, Nodes
from tests.support.waiting import wait_until

CUT_OFF_S = 60.0
"""Seconds that a node cannot be reached: longer than Ray takes to give it up."""

NOTICE_S = 20
"""Seconds between the notice that a node will be taken away and its end."""


class Cluster:
    """A head without work and two nodes of one CPU."""

    def __init__(self, folder: Path, number: int = 2, namespace: Namespace | None = None) -> None:
        self._stack = contextlib.ExitStack()
        self.nodes = Nodes(folder, HOST if namespace else "127.0.0.1")
        # Bytes above which a result is kept on the node that made it, and lost with it: images are, as those of real
        # shards, and Ray Tune's results of some 2 kB are not, as elsewhere.
        self.nodes.env["RAY_max_direct_call_object_size"] = "5000"
        try:
            self.start(number, namespace)
        except BaseException:
            self.close()
            raise

    def start(self, number: int, namespace: Namespace | None = None) -> None:
        """Starts head and nodes, the last one in the namespace."""
        self.head = self._stack.enter_context(self.nodes.head(0))
        self.workers: list[Node] = []
        near, far = (
            ({"GLOO_SOCKET_IFNAME": name} for name in (namespace.near, namespace.far)) if namespace else ({}, {})
        )
        for _ in range(number - bool(namespace)):
            self.add(**near)
        if namespace:
            node = self.nodes.add(1, host=namespace.host, within=namespace.command, **far)
            self.workers.append(self._stack.enter_context(node))
        self.nodes.await_alive(1 + number)

    def add(self, **env: str) -> None:
        """Starts one more node; it joins some seconds later."""
        self.workers.append(self._stack.enter_context(self.nodes.add(1, **env)))

    def lose(self) -> None:
        """The head is gone, and so are all nodes."""
        for node in (self.head, *self.workers):
            node.kill()

    def drain(self, node: Node) -> None:
        """Tells Ray that a node will be taken away, as a notice of a spot machine's end does; then it is."""
        (identifier,) = self.nodes.ids_of(node)
        flags = ("--node-id", identifier, "--reason", "DRAIN_NODE_REASON_PREEMPTION")
        flags += ("--reason-message", "the market", "--deadline-remaining-seconds", str(NOTICE_S))
        command = ["ray", "drain-node", "--address", self.nodes.address, *flags]
        subprocess.run(command, env=self.nodes.env, check=True, capture_output=True)
        time.sleep(NOTICE_S)  # the notice's own time, not a guess at another process
        node.kill()

    def close(self) -> None:
        self._stack.close()


def rank_0(run: Path, workers: list[Node]) -> Node:
    """The node whose worker keeps the run: it alone has the event file open."""
    events = str(run / "tensorboard")
    for node in workers:
        for pid in node.pids():
            with contextlib.suppress(OSError):
                if any(os.readlink(link).startswith(events) for link in Path(f"/proc/{pid}/fd").iterdir()):
                    return node
    raise AssertionError("no process keeps the run")


def _kill_one(cluster: Cluster, moment: random.Random, title: str) -> bool:
    found = [pid for node in cluster.workers for pid in node.pids(title)]
    if found:
        kill(moment.choice(found))
    return bool(found)


def strike(how: str, cluster: Cluster, moment: random.Random, title: str, kept_by: Callable[[], Node]) -> None:
    """Brings a disaster about; where nodes are gone for good, others come."""
    match how:
        case "worker":
            # Between two trials there is no worker for a moment.
            wait_until(lambda: _kill_one(cluster, moment, title), None, 60, lambda: "there is no worker to kill")
        case "node":
            moment.choice(cluster.workers).kill()
            cluster.add()
        case "node of rank 0":
            kept_by().kill()
            cluster.add()
        case "node, for good":
            moment.choice(cluster.workers).kill()
        case "both nodes":
            for node in list(cluster.workers):
                node.kill()
                cluster.add()
        case "drain":
            cluster.add()
            cluster.drain(moment.choice(cluster.workers[:2]))
        case "head":
            cluster.lose()
        case _:
            raise AssertionError(how)


def cut_off(namespace: Namespace) -> None:
    with namespace.cut():
        time.sleep(CUT_OFF_S)  # what the test is about
