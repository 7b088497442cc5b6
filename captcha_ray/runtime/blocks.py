"""Fetch tables that lie in Ray's object store, whole or a worker's share of their rows."""

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.exceptions

from captcha_ray.errors import RESUME_HINT, JobError
from captcha_ray.runtime import ray_session
from captcha_ray.runtime.capacity import SPARE_CPU

TIMEOUT_S = 120.0
"""Seconds within which a table must come: Ray waits for ever if an object store is full."""

NUM_AHEAD = 2
"""Shares that are made while one is used; all at once would take as much of the object store as all tables."""


def fetch(reference: Any) -> Any:
    """Return the value of a reference. Raises JobError if it does not come."""
    try:
        return ray.get(reference, timeout=TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        raise JobError(
            f"images have not come from another node for {TIMEOUT_S:.0f} s: Ray's object store there or here may "
            "be full, and so the disk that it spills to; more nodes, larger ones or a larger object_store_memory hold "
            f"more, and {RESUME_HINT}"
        ) from None


class Share:
    """Gives a worker its rows of several tables: every world_size-th of all, however they are cut into tables.

    Where there are several nodes, tasks that Ray runs where a table lies, if it can, take the rows out, and only these
    come to the worker.

    Args:
        tables: References of them.
        rank: Of the worker.
        world_size: Number of workers.

    Raises:
        JobError: A table does not come.
    """

    def __init__(self, tables: Sequence[Any], rank: int, world_size: int) -> None:
        self._world_size = world_size
        self._from_afar = world_size > 1 and len(ray_session.nodes()) > 1
        if self._from_afar:
            self._tables = list(tables)
            lengths = [fetch(length) for length in [_length.remote(table) for table in tables]]
        else:
            self._tables = [fetch(table) for table in tables]
            lengths = [len(table) for table in self._tables]
        self.num_rows = sum(lengths)
        """Rows of all workers."""
        self._firsts = [int(rank - before) % world_size for before in np.cumsum([0, *lengths[:-1]])]

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the worker's rows of each table. Raises JobError if they do not come."""
        taken: collections.deque[Any] = collections.deque()
        for number, (table, first) in enumerate(zip(self._tables, self._firsts, strict=True)):
            if not self._from_afar:
                yield _every(table, first, self._world_size)
                continue
            while len(taken) <= NUM_AHEAD and number + len(taken) < len(self._tables):
                following = number + len(taken)
                taken.append(_take.remote(self._tables[following], self._firsts[following], self._world_size))
            yield fetch(taken.popleft())


def _every(table: pa.Table, first: int, step: int) -> pa.Table:
    return table if step == 1 else table.take(np.arange(first, len(table), step))


@ray.remote(num_cpus=SPARE_CPU)
def _length(table: pa.Table) -> int:
    return len(table)


_take = ray.remote(num_cpus=SPARE_CPU)(_every)
