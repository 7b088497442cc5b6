"""Twenty disasters on a cluster of several nodes: trainings, searches and bulk inference end as if there had been none.

`make check-chaos` runs them. Nodes are Ray's own processes on this machine; one that is cut off is in a network
namespace of its own, which takes root and `ip`.
"""

import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest

from captcha_ray.storage import filesystem
from tests.factories import SHORT_RECIPE, network_of_size
from tests.support.disasters import Cluster, cut_off, rank_0, strike
from tests.support.namespace import Namespace
from tests.support.processes import TRAIN, Job, kill, preprocessed
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

SEED = int(os.environ.get("CAPTCHA_RAY_KILL_SEED", "0"))

NUM_EPOCHS = 80
"""Epochs of a training: about a minute on two cores, so that a recovery falls within it."""

TRIAL_EPOCHS = 120
"""Epochs of a trial of a search: about ten seconds."""

TITLES = {"train": "ray::RayTrainWorker", "tune": "ray::ResourceTrainable", "infer": "ray::MapWorker"}
"""Parts of the command lines of workers, by job."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


@pytest.fixture
def cluster_with_a_cable(namespace: Namespace, tmp_path: Path) -> Iterator[Cluster]:
    """Start a cluster with one node behind a cable that can be pulled."""
    cluster = Cluster(tmp_path, namespace=namespace)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the epochs of an undisturbed training of two workers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    cluster = Cluster(folder)
    try:
        training = Training(cluster, shards, folder, "2")
        with training.start() as job:
            assert job.wait() == 0, job.said
    finally:
        cluster.close()
    return epochs_of(training.run)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preprocessed(tmp_path_factory.mktemp("shards"))


def epochs_of(run: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl` so far."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def metrics(epochs: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    """Return the measures of each epoch, without times."""
    return [tuple(epoch[name] for name in ("train_loss", "val_loss", "val_exact_match")) for epoch in epochs]


class Training:
    """A training of two workers, with checks of its result."""

    def __init__(
        self, cluster: Cluster, shards: Path, folder: Path, num_workers: str, epochs: int = NUM_EPOCHS
    ) -> None:
        self.run, self.cluster, self._folder, self._epochs = folder / "run", cluster, folder, epochs
        flags = (*TRAIN, "--shards", shards, "--run", self.run, "--num-workers", num_workers)
        self._command = (*flags, "--epochs", str(epochs), "--resume")

    def start(self) -> Job:
        env, address = self.cluster.nodes.env, self.cluster.nodes.address
        return Job("train", *self._command, cwd=self._folder, env=env, address=address)

    def progress(self) -> int:
        return len(epochs_of(self.run))

    def check(self, kept: list[dict[str, Any]]) -> list[int]:
        """Check the finished run; return the number of workers of each epoch."""
        epochs = epochs_of(self.run)
        assert epochs[: len(kept)] == kept, "an epoch that was kept is not done again"
        assert [epoch["epoch"] for epoch in epochs] == list(range(1, self._epochs + 1))
        assert max(epoch["val_exact_match"] for epoch in epochs) > 0.95
        assert (self.run / "_SUCCESS").exists()
        assert not (self.run / "_lease.json").exists()
        return [epoch["num_workers"] for epoch in epochs]


def survive(training: Training, how: str, disaster: Callable[[], None], moment: random.Random) -> list[int]:
    """Train, strike in one of the first epochs, and wait for the end of the training."""
    with training.start() as job:
        after = moment.randrange(2, 25)
        wait_until(lambda: training.progress() >= after, job.process, 180, lambda: job.said)
        struck = time.monotonic()
        disaster()
        kept = epochs_of(training.run)
        if how != "head":
            second = min(len(kept) + 2, NUM_EPOCHS)  # one that was cut off may have ended since
            wait_until(lambda: training.progress() >= second, None, 300, lambda: job.said)
            print(
                f"{how} after {len(kept)} epochs: the second epoch since came {time.monotonic() - struck:.0f} s later"
            )
            assert job.wait() == 0, job.said
            assert re.search(r"^workers were lost: training goes on after epoch \d+ with \d, it was 2$", job.said, re.M)
        else:
            assert job.wait() != 0, job.said
    if how == "head":
        training.cluster.start(2)
        struck = time.monotonic()
        with training.start() as job:
            wait_until(lambda: training.progress() > len(kept) + 1, job.process, 300, lambda: job.said)
            print(
                f"head after {len(kept)} epochs: the second one came {time.monotonic() - struck:.0f} s after the rerun"
            )
            assert job.wait() == 0, job.said
    return training.check(kept)


@pytest.mark.parametrize("how", ["worker", "node of rank 0", "both nodes", "drain", "head"])
def test_a_training_outlives(
    how: str, undisturbed: list[dict[str, Any]], cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    moment = random.Random(f"{SEED}-train-{how}")
    training = Training(cluster, shards, tmp_path, "2")

    def disaster() -> None:
        strike(how, cluster, moment, TITLES["train"], lambda: rank_0(training.run, cluster.workers))

    assert set(survive(training, how, disaster, moment)) == {2}
    # To the last bit: random numbers follow from the seed and the epoch, a sum of two gradients from nobody's order.
    assert metrics(epochs_of(training.run)) == metrics(undisturbed)


def test_an_elastic_training_goes_on_with_the_node_that_is_left(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    moment = random.Random(f"{SEED}-shrink")
    training = Training(cluster, shards, tmp_path, "1:2")

    def disaster() -> None:
        strike("node, for good", cluster, moment, TITLES["train"], lambda: cluster.workers[0])

    workers = survive(training, "node, for good", disaster, moment)
    assert workers == sorted(workers, reverse=True)
    assert set(workers) == {1, 2}


def test_an_elastic_training_grows_when_a_node_joins(tmp_path: Path, shards: Path) -> None:
    cluster = Cluster(tmp_path, 1)
    training = Training(cluster, shards, tmp_path, "1:2", epochs=10_000)

    def workers() -> list[int]:
        return [epoch["num_workers"] for epoch in epochs_of(training.run)]

    try:
        with training.start() as job:
            wait_until(lambda: training.progress() >= 2, job.process, 180, lambda: job.said)
            cluster.add()
            wait_until(lambda: workers().count(2) >= 3, job.process, 180, lambda: job.said)
            job.process.terminate()
            assert job.wait() == 143, job.said
            assert re.search(r"^more workers have come: training goes on after epoch \d+ with 2", job.said, re.M)
    finally:
        cluster.close()
    assert workers() == sorted(workers())
    assert [epoch["epoch"] for epoch in epochs_of(training.run)] == list(range(1, len(workers()) + 1))


def test_a_training_outlives_a_node_that_is_cut_off(
    cluster_with_a_cable: Cluster, namespace: Namespace, shards: Path, tmp_path: Path
) -> None:
    training = Training(cluster_with_a_cable, shards, tmp_path, "1:2")
    moment = random.Random(f"{SEED}-cut")
    workers = survive(training, "a node cut off", lambda: cut_off(namespace), moment)
    assert workers[0] == 2


def committed(table: Path) -> Counter[str]:
    """Count each URI that a plain reader sees."""
    if not list(table.rglob("run=*/*.parquet")):
        return Counter()
    return Counter(pyarrow.dataset.dataset(str(table), partitioning="hive").to_table(["uri"])["uri"].to_pylist())


@pytest.mark.parametrize("how", ["worker", "node", "both nodes", "drain", "head", "cut off"])
def test_every_object_is_recognized_once(
    how: str,
    request: pytest.FixtureRequest,
    corpus: Path,
    tmp_path: Path,
) -> None:
    moment = random.Random(f"{SEED}-infer-{how}")
    cluster: Cluster = request.getfixturevalue("cluster_with_a_cable" if how == "cut off" else "cluster")
    out = tmp_path / "out"
    # a drained node goes after its notice only, and the night must still be at work then
    network = network_of_size(tmp_path / "slow", *((384, 1536) if how == "drain" else (128, 192)))
    flags = ("--images", corpus, "--run", network, "--out", out, "--stall-timeout-s", "120")
    flags = (*flags, "--num-workers", "2", "--objects-per-run", "500")

    def start() -> Job:
        return Job("infer", *flags, cwd=tmp_path, env=cluster.nodes.env, address=cluster.nodes.address)

    wanted = Counter(filesystem.list_files(str(corpus)))
    with start() as job:
        after = moment.choice([0, 0, 500, 1000])
        ready = (
            (lambda: committed(out).total() >= after)
            if after
            else (lambda: bool(list(out.glob("_staging/*/*/*.staged"))))
        )
        wait_until(ready, job.process, 300, lambda: job.said)
        if how == "cut off":
            cut_off(request.getfixturevalue("namespace"))
        else:
            strike(how, cluster, moment, TITLES["infer"], lambda: cluster.workers[0])
        assert how == "head" or job.process.poll() is None, "it ended before it was struck"
        status = job.wait()
    before = committed(out)
    assert set(before.values()) <= {1}
    print(f"{how} after {after} objects: status {status}, {before.total()} committed")
    if how == "head":
        assert status != 0
        cluster.start(2)
        with start() as job:
            assert job.wait() == 0, job.said
    else:
        assert status == 0, job.said
    assert committed(out) == wanted
    assert not list(out.rglob("*_staging*"))


@pytest.mark.parametrize("how", ["worker", "node", "both nodes", "drain", "head", "driver"])
def test_no_finished_trial_is_lost(how: str, cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    moment = random.Random(f"{SEED}-tune-{how}")
    run = tmp_path / "run"
    (tmp_path / "recipe.json").write_text(json.dumps({**SHORT_RECIPE.to_dict(), "shards": str(shards)}))
    flags = ("--recipe", tmp_path / "recipe.json", "--shards", shards, "--run", run, "--final-seeds", "0")
    num_trials = 10 if how == "drain" else 4  # a drained node goes after its notice only: there must be enough left
    flags = (*flags, "--num-trials", str(num_trials), "--scheduler", "none", "--epochs", str(TRIAL_EPOCHS), "--resume")

    def start() -> Job:
        return Job("tune", *flags, cwd=tmp_path, env=cluster.nodes.env, address=cluster.nodes.address)

    def finished() -> dict[Path, str]:
        found = {path: path.read_text() for path in run.glob("trials/*/outcome.json")}
        return {path: text for path, text in found.items() if json.loads(text)["status"] == "finished"}

    def num_epochs() -> int:
        return sum(len(path.read_text().splitlines()) for path in run.glob("trials/*/metrics.jsonl"))

    with start() as job:
        after = 2 * TRIAL_EPOCHS + moment.randrange(1, 60)  # two run at a time: one at least has finished
        wait_until(lambda: num_epochs() >= after, job.process, 180, lambda: job.said)
        before = finished()
        assert before
        if how == "driver":
            kill(job.process.pid)
        else:
            strike(how, cluster, moment, TITLES["tune"], lambda: cluster.workers[0])
            assert how == "head" or job.process.poll() is None, "it ended before it was struck"
        lines = {path: path.read_text().splitlines() for path in run.glob("trials/*/metrics.jsonl")}
        status = job.wait()
    print(f"{how} after {after} epochs: status {status}; {len(before)} trials had finished")
    if how in ("driver", "head"):
        assert status != 0
        if how == "head":
            cluster.start(2)
        with start() as job:
            assert job.wait() == 0, job.said
    else:
        assert status == 0, job.said
    assert {path: path.read_text() for path in before} == before
    for path, kept in lines.items():
        assert path.read_text().splitlines()[: len(kept)] == kept, "an epoch was run twice"
    outcomes = [json.loads(path.read_text()) for path in run.glob("trials/*/outcome.json")]
    assert len(outcomes) == num_trials
    assert {outcome["status"] for outcome in outcomes} == {"finished"}
    assert (run / "_SUCCESS").exists()
