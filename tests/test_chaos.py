"""What is lost with a node: trainings on a cluster of several nodes whose workers and nodes are killed."""

import contextlib
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captcha_ray import corpus
from tests.processes import Job, kill
from tests.ray_nodes import Node, Nodes
from tests.test_cluster import num_alive
from tests.test_jobs import TRAIN
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("CAPTCHA_RAY_KILL_SEED", "0"))
NUM_EPOCHS = 400


class Cluster:
    """A head without work and nodes of one CPU."""

    def __init__(self, folder: Path, number: int) -> None:
        self._stack = contextlib.ExitStack()
        self.nodes = Nodes(folder)
        self.head = self._stack.enter_context(self.nodes.head(0))
        self.workers: list[Node] = []
        for _ in range(number):
            self.add()
        wait_until(lambda: num_alive(self.nodes) == 1 + number, self.head.process, explain=lambda: self.head.said)

    def add(self) -> None:
        """Starts one more node; it joins some seconds later."""
        self.workers.append(self._stack.enter_context(self.nodes.add(1)))

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, 2)
    yield cluster
    cluster.close()


def epochs_of(run: Path) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` so far."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rank_0(run: Path, workers: list[Node]) -> Node:
    """The node whose worker keeps the run: it alone has the event file open."""
    events = str(run / "tensorboard")
    for node in workers:
        for pid in node.pids():
            with contextlib.suppress(OSError):
                if any(os.readlink(link).startswith(events) for link in Path(f"/proc/{pid}/fd").iterdir()):
                    return node
    raise AssertionError("no process keeps the run")


@pytest.mark.parametrize("lost", ["worker", "node", "node of rank 0", "both nodes"])
def test_an_elastic_training_outlives_what_it_runs_on(
    lost: str, cluster: Cluster, glyph_shards: corpus.Shards, tmp_path: Path
) -> None:
    moment = random.Random(f"{SEED}-{lost}")
    run = tmp_path / "run"
    train = (*TRAIN, "--shards", glyph_shards.uri, "--run", run, "--epochs", str(NUM_EPOCHS), "--num-workers", "1:2")
    with Job("train", *train, cwd=tmp_path, env=cluster.nodes.env, address=cluster.nodes.address) as job:
        after = moment.randrange(2, 20)
        wait_until(lambda: len(epochs_of(run)) >= after, job.process, 180, lambda: job.said)
        victims: list[Node] = []
        match lost:
            case "worker":
                kill(moment.choice([pid for node in cluster.workers for pid in node.pids("ray::RayTrainWorker")]))
            case "node":
                victims = [moment.choice(cluster.workers)]
            case "node of rank 0":
                victims = [rank_0(run, cluster.workers)]
            case _:
                victims = list(cluster.workers)
        kept = epochs_of(run)
        for node in victims:
            node.kill()
            cluster.add()
        killed = time.monotonic()
        wait_until(lambda: len(epochs_of(run)) > len(kept) + 1, job.process, 300, lambda: job.said)
        print(f"{lost} after {len(kept)} epochs: two epochs later {time.monotonic() - killed:.0f} s after")
        assert job.wait() == 0, job.said
    epochs = epochs_of(run)
    assert epochs[: len(kept)] == kept, "an epoch that was kept is not done again"
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, NUM_EPOCHS + 1))
    assert epochs[-1]["val_exact_match"] > 0.95
    assert (run / "_SUCCESS").exists()
