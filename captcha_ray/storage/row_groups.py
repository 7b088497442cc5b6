"""Divide the row groups of Parquet files among workers, and read them one by one.

A row group is the least that can be read of a file, so files that are to be read in another order than they were
written in should have small ones.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from captcha_ray.errors import InputError
from captcha_ray.storage import parquet


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
    """Return the row groups of a file. Raises `parquet.DamagedError`, and as `filesystem.read` does."""
    with parquet.naming_damage(uri), parquet.open_file(uri) as file:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return [RowGroup(uri, number, 0, size) for number, size in enumerate(sizes)]


def divide(groups: Sequence[RowGroup], num_shares: int) -> list[list[RowGroup]]:
    """Divide rows among workers; their numbers differ by one at most.

    The shares follow from the row groups alone, in whatever order these are given. Each has row groups of all files, as
    rows that were written one after another are often alike. A row group lies in several shares where one ends in it.
    """
    total = sum(group.num_rows for group in groups)
    shuffled = random.Random(0).sample(sorted(groups), len(groups))
    shares: list[list[RowGroup]] = []
    for number in range(num_shares):
        first, last = (total * edge // num_shares for edge in (number, number + 1))
        found, before = [], 0
        for group in shuffled:
            start, stop = max(first - before, 0), min(last - before, group.num_rows)
            if start < stop:
                found.append(group._replace(start=group.start + start, stop=group.start + stop))
            before += group.num_rows
        shares.append(found)
    return shares


def read(group: RowGroup, columns: list[str]) -> pa.Table:
    """Return the rows of a row group.

    Raises:
        InputError: The file is gone, damaged or another one than was listed.
        OSError: As of `filesystem.read`.
    """
    try:
        with parquet.naming_damage(group.uri), parquet.open_file(group.uri) as file:
            changed = group.number >= file.num_row_groups
            table = None if changed else file.read_row_group(group.number, columns).slice(group.start, group.num_rows)
    except FileNotFoundError:
        raise InputError(f"{group.uri} is gone, but its rows are still to be read") from None
    if table is None or len(table) != group.num_rows:
        raise InputError(f"{group.uri} is another file than it was when its rows were counted")
    return table
