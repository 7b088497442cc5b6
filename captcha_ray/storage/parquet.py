"""Read and write Parquet objects, local or in a bucket, whole."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captcha_ray.storage import filesystem


def read(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of one object. columns: None for all of them."""
    return pq.read_table(io.BytesIO(filesystem.read(uri)), columns=columns)


def encode(table: pa.Table, **options: Any) -> memoryview:
    """Return a table as the bytes of a file, zstd-compressed. options: of `pyarrow.parquet.write_table`."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", **options)
    return buffer.getbuffer()


def write(uri: str, table: pa.Table, **options: Any) -> None:
    """Write a table as one object, zstd-compressed. options: of `pyarrow.parquet.write_table`."""
    filesystem.write(uri, encode(table, **options))
