"""Divide the row groups of Parquet files among workers, and read them in any order in bounded memory.

A row group is the least that can be read of a file, so files that are to be read in another order than they were
written in should have small ones.
"""

import concurrent.futures
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from captcha_ray.storage import parquet

NUM_THREADS = 8
"""Row groups that are read at once; in a bucket each waits for some requests."""


class RowGroup(NamedTuple):
    """Names rows of a Parquet file: those from `start` to before `stop` of the row group of this number."""

    uri: str
    number: int
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Return the number of rows."""
        return self.stop - self.start


def list_row_groups(uri: str) -> list[RowGroup]:
    """Return the row groups of a file. Raises as `parquet.open_file` does."""
    with parquet.naming_damage(uri), parquet.open_file(uri) as file:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return [RowGroup(uri, number, 0, size) for number, size in enumerate(sizes)]


def share(groups: Sequence[RowGroup], rank: int, world_size: int) -> list[RowGroup]:
    """Return the rows of one of several workers, whose numbers of rows differ by one at most.

    A worker's row groups are from all files, as rows that were written one after another are often alike. At most two
    of them are another worker's as well.
    """
    total = sum(group.num_rows for group in groups)
    first, last = (total * number // world_size for number in (rank, rank + 1))
    found, before = [], 0
    for group in random.Random(0).sample(groups, len(groups)):
        start, stop = max(first - before, 0), min(last - before, group.num_rows)
        if start < stop:
            found.append(group._replace(start=group.start + start, stop=group.start + stop))
        before += group.num_rows
    return found


def read(groups: Sequence[RowGroup], columns: list[str]) -> Iterator[pa.Table]:
    """Yield the rows of each row group, in order. Those to come are read meanwhile, however many they are.

    Raises as `parquet.open_file` does, and `parquet.DamagedError`.
    """
    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
        yield from pool.map(lambda group: _read(group, columns), groups)


def _read(group: RowGroup, columns: list[str]) -> pa.Table:
    with parquet.naming_damage(group.uri), parquet.open_file(group.uri) as file:
        return file.read_row_group(group.number, columns).slice(group.start, group.num_rows)
