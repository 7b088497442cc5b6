"""Rows out of Ray's object store: a worker's share is the same however they are cut, and little else comes to it."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from captcha_ray.errors import JobError
from captcha_ray.runtime import blocks, ray_session

ROWS = pa.table({"number": np.arange(1000), "image": [np.random.default_rng(k).bytes(1000) for k in range(1000)]})


def cut(*edges: int) -> list[Any]:
    """Put parts of `ROWS` into the object store."""
    return [ray.put(ROWS.slice(start, stop - start)) for start, stop in pairwise((0, *edges, 1000))]


@pytest.fixture(params=[1, 2], ids=["one node", "two nodes"])
def num_nodes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let a worker see so many nodes."""
    monkeypatch.setattr(ray_session, "nodes", lambda: [{}] * request.param)
    number: int = request.param
    return number


@pytest.mark.parametrize("edges", [(), (500,), (1, 2, 3), (7, 7, 333, 999)])
def test_shares_are_every_nth_row_however_the_rows_are_cut(
    ray_cluster: ray_session.Cluster, num_nodes: int, edges: tuple[int, ...]
) -> None:
    for world_size in (1, 2, 3):
        for rank in range(world_size):
            share = blocks.Share(cut(*edges), rank, world_size)
            assert share.num_rows == 1000
            assert pa.concat_tables(share) == ROWS.take(np.arange(rank, 1000, world_size))


def test_a_worker_of_several_nodes_fetches_its_share_and_little_else(
    ray_cluster: ray_session.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "nodes", lambda: [{}, {}])
    fetched = []

    def fetch(reference: Any) -> Any:
        value = ray.get(reference)
        fetched.append(value.nbytes if isinstance(value, pa.Table) else 8)
        return value

    monkeypatch.setattr(blocks, "fetch", fetch)
    for rank in range(4):
        fetched.clear()
        assert len(pa.concat_tables(blocks.Share(cut(200, 500, 900), rank, 4))) == 250
        assert 0.25 * ROWS.nbytes <= sum(fetched) + 8 <= 1.05 * 0.25 * ROWS.nbytes


def test_few_shares_are_made_ahead(ray_cluster: ray_session.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "nodes", lambda: [{}, {}])
    monkeypatch.setattr(blocks, "NUM_AHEAD", 2)
    asked: list[Any] = []

    class Take:
        @staticmethod
        def remote(*arguments: Any) -> Any:
            asked.append(arguments)
            return ray.put(ROWS)

    monkeypatch.setattr(blocks, "_take", Take)
    used = 0
    for used, _ in enumerate(blocks.Share(cut(*range(100, 1000, 100)), 0, 2), 1):
        assert len(asked) == min(used + 2, 10)
    assert used == 10


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_table_that_does_not_come_is_a_sentence(
    ray_cluster: ray_session.Cluster, num_nodes: int, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "TIMEOUT_S", 0.1)
    never = ray.remote(resources={"a resource of no node": 1})(lambda: None).remote()
    with pytest.raises(JobError, match="images have not come from another node for 0 s: Ray's object store"):
        blocks.Share([never], 0, world_size)
    ray.cancel(never)


def test_a_share_that_does_not_come_is_a_sentence(
    ray_cluster: ray_session.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "nodes", lambda: [{}, {}])
    share = blocks.Share(cut(), 0, 2)
    monkeypatch.setattr(blocks, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(blocks, "_take", blocks._take.options(resources={"a resource of no node": 1}))
    with pytest.raises(JobError, match="images have not come"):
        next(iter(share))
