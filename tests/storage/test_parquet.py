"""Parquet objects in a bucket are read in part, and as those on a disk."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from captcha_ray.storage import objectstore, parquet
from captcha_ray.storage.parquet import TAIL_BYTES, RangeReader
from captcha_ray.storage.retries import StoreError
from tests.support.fault_proxy import Fault, FaultProxy

URI = "s3://bucket/new"

ROWS = pa.table({name: np.random.default_rng(k).integers(0, 2**63, 50_000) for k, name in enumerate("abc")})

Behind = Callable[..., AbstractContextManager[FaultProxy]]


def nothing(*_: object) -> None:
    """Let every request pass."""


def test_a_column_costs_its_own_bytes_and_the_footer(behind: Behind) -> None:
    with behind(nothing) as proxy:
        parquet.write(URI, ROWS, use_dictionary=False)
        assert proxy.num_bytes["/bucket/new"] == 0
        assert parquet.read(URI, ["b"]).equals(ROWS.select(["b"]))
        column = 8 * len(ROWS)
        assert column <= proxy.num_bytes["/bucket/new"] <= 1.1 * column + TAIL_BYTES
        assert parquet.read(URI).equals(ROWS)


@pytest.mark.parametrize("num_bytes", [0, 1, TAIL_BYTES - 1, TAIL_BYTES, TAIL_BYTES + 1, 3 * TAIL_BYTES])
def test_an_object_is_read_as_a_file_is(behind: Behind, num_bytes: int) -> None:
    data = np.random.default_rng(0).bytes(num_bytes)
    with behind(nothing):
        objectstore.put(URI, data)
        found, expected = RangeReader(URI), io.BytesIO(data)
        moves = [
            (0, 0, 10),
            (5, 1, 20),
            (-min(9, num_bytes), 2, 100),
            (num_bytes // 2, 0, 9),
            (num_bytes, 0, 1),
            (7, 0, -1),
        ]
        for offset, whence, size in moves:
            assert found.seek(offset, whence) == expected.seek(offset, whence)
            assert found.read(size) == expected.read(size)
            assert found.tell() == expected.tell()


def test_what_a_store_refuses_in_the_middle_of_a_file_is_said_as_elsewhere(behind: Behind) -> None:
    def refuse(method: str, path: str, attempt: int) -> Fault | None:
        return Fault.DENIED if method == "GET" and path == "/bucket/new" and attempt >= 1 else None

    with behind(refuse):
        parquet.write(URI, ROWS)
        with pytest.raises(StoreError, match=f"^{URI}: "):
            parquet.read(URI, ["a"])


def test_an_absent_object_is_not_found_and_a_damaged_one_is_no_parquet(behind: Behind, tmp_path: Path) -> None:
    with behind(nothing):
        objectstore.delete(URI)
        with pytest.raises(FileNotFoundError):
            parquet.open_file(URI)
        objectstore.put(URI, b"PAR1 and no more")
        with pytest.raises(pa.ArrowInvalid):
            parquet.open_file(URI)
    with pytest.raises(FileNotFoundError):
        parquet.open_file(str(tmp_path / "absent"))
