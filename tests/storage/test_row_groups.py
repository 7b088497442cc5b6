"""Row groups of Parquet files: listed, divided among workers, and read in any order."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captcha_ray.errors import InputError
from captcha_ray.storage import parquet, row_groups
from captcha_ray.storage.parquet import TAIL_BYTES, DamagedError
from captcha_ray.storage.row_groups import RowGroup
from tests.support.fault_proxy import FaultProxy

URI = "s3://bucket/new"

GOLDEN = [59, 10, 24, 6, 19, 66]
"""Numbers of the first row groups of the last of four shares of a hundred."""

Behind = Callable[..., AbstractContextManager[FaultProxy]]


def write(uri: str, start: int, stop: int, rows_per_group: int) -> None:
    rows = pa.table({"number": range(start, stop), "text": [str(number) for number in range(start, stop)]})
    parquet.write(uri, rows, row_group_size=rows_per_group)


def test_a_row_group_is_read_whole_or_in_part(tmp_path: Path) -> None:
    first, second = (str(tmp_path / name) for name in ("first.parquet", "second.parquet"))
    write(first, 0, 7, 3)
    write(second, 7, 11, 4)
    groups = [group for uri in (first, second) for group in row_groups.list_row_groups(uri)]
    assert [(group.number, group.num_rows) for group in groups] == [(0, 3), (1, 3), (2, 1), (0, 4)]
    chosen = [groups[3]._replace(start=1, stop=3), groups[1], groups[0]]
    tables = [row_groups.read(group, ["text"]) for group in chosen]
    assert [table["text"].to_pylist() for table in tables] == [["8", "9"], ["3", "4", "5"], ["0", "1", "2"]]
    assert tables[0].column_names == ["text"]


def test_a_row_group_of_a_bucket_costs_its_own_bytes_and_the_footer(behind: Behind) -> None:
    rows = pa.table({name: np.random.default_rng(k).integers(0, 2**63, 50_000) for k, name in enumerate("ab")})
    with behind(lambda *_: None) as proxy:
        parquet.write(URI, rows, use_dictionary=False, row_group_size=10_000)
        groups = row_groups.list_row_groups(URI)
        before = proxy.num_bytes["/bucket/new"]
        table = row_groups.read(groups[2], ["b"])
        assert table.equals(rows.select(["b"]).slice(20_000, 10_000))
        assert proxy.num_bytes["/bucket/new"] - before <= 1.1 * 80_000 + TAIL_BYTES


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    write(str(path), 0, 7, 3)
    groups = row_groups.list_row_groups(str(path))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"part\.parquet is damaged"):
        row_groups.read(groups[0], ["number"])
    with pytest.raises(DamagedError, match=r"part\.parquet is damaged"):
        row_groups.list_row_groups(str(path))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 5), st.randoms())
def test_shares_are_equal_and_have_each_row_once(sizes: list[int], num_shares: int, random: Random) -> None:
    groups = [RowGroup("file", number, 0, size) for number, size in enumerate(sizes)]
    shares = row_groups.divide(groups, num_shares)
    rows = [[(one.number, row) for one in share for row in range(one.start, one.stop)] for share in shares]
    every = [(number, row) for number, size in enumerate(sizes) for row in range(size)]
    assert sorted(row for share in rows for row in share) == every
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    numbers = [{one.number for one in share} for share in shares]
    assert sum(map(len, numbers)) <= len(groups) + num_shares - 1, "only the last of a share is another's as well"
    assert row_groups.divide(random.sample(groups, len(groups)), num_shares) == shares


def test_each_share_is_of_all_files_and_the_same_everywhere() -> None:
    groups = [RowGroup(f"file {number // 25}", number, 0, 10) for number in range(100)]
    shares = row_groups.divide(groups, 4)
    assert [len({group.uri for group in share}) for share in shares] == [4] * 4
    assert [group.number for group in shares[3]][:6] == GOLDEN


def test_a_file_that_is_gone_or_another_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    write(str(path), 0, 7, 3)
    groups = row_groups.list_row_groups(str(path))
    for rows in (range(5), range(3)):  # with two rows in that row group, and without it
        write(str(path), rows.start, rows.stop, 3)
        with pytest.raises(InputError, match=r"part\.parquet is another file than"):
            row_groups.read(groups[1], ["number"])
    path.unlink()
    with pytest.raises(InputError, match=r"part\.parquet is gone"):
        row_groups.read(groups[0], ["number"])
