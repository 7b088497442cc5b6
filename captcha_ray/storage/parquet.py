"""Read and write Parquet objects, local or in a bucket; of a bucket's objects only the bytes that are asked for.

obstore has files to read by ranges too, but they know neither the retries of `objectstore` nor servers such as
rclone's, which answer a range with the status of a whole object.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captcha_ray.errors import InputError
from captcha_ray.storage import filesystem, objectstore, retries

TAIL_BYTES = 65_536
"""Bytes of a footer that pyarrow asks for first; with them it has all of a small object."""


class RangeReader(io.RawIOBase):
    """Reads an object in a bucket as a file; each read is a request, and the last bytes are kept.

    Raises as `filesystem.read` does, when it is opened and when it is read.
    """

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri
        found = objectstore.head(uri)
        if found is None:
            raise FileNotFoundError(f"{uri} does not exist")
        self.num_bytes = found.size
        self._kept_from = max(found.size - TAIL_BYTES, 0)
        self._tail = self._fetch(self._kept_from, found.size)
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position, and return it."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.num_bytes}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, by one request unless they are among the last ones."""
        start = self._position
        end = self.num_bytes if size < 0 else min(start + size, self.num_bytes)
        self._position = max(start, end)
        if start >= end:
            return b""
        if start >= self._kept_from:
            return self._tail[start - self._kept_from : end - self._kept_from]
        return self._fetch(start, end)

    def _fetch(self, start: int, end: int) -> bytes:
        if end - start < self.num_bytes:
            return objectstore.get_range(self._uri, start, end)
        whole, _ = objectstore.get(self._uri)  # some stores refuse a range of all bytes
        assert whole is not None, "no limit was given"
        return whole


class DamagedError(InputError):
    """Says that the bytes of a Parquet file are wrong, not that they cannot be had."""


@contextlib.contextmanager
def naming_damage(uri: str) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into `DamagedError`, which names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        # For some damage pyarrow raises OSError; unlike that of a system or a store, it has no number.
        refused = FileNotFoundError | retries.StoreError
        if isinstance(error, OSError) and (error.errno is not None or isinstance(error, refused)):
            raise
        raise DamagedError(f"{uri} is damaged: {error}") from error


def open_file(uri: str, **options: Any) -> pq.ParquetFile:
    """Open an object; of one in a bucket only the footer and then what is read is fetched.

    Args:
        uri: Of the object.
        options: Of `pyarrow.parquet.ParquetFile`.

    Raises:
        OSError: As of `filesystem.read`, also by what is read later.
        pyarrow.ArrowException: The file is damaged; see `naming_damage`.
    """
    return pq.ParquetFile(RangeReader(uri) if filesystem.is_remote(uri) else uri, pre_buffer=True, **options)


def read(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of one object. columns: None for all of them."""
    if columns is None:
        return pq.read_table(io.BytesIO(filesystem.read(uri)))
    with open_file(uri) as file:
        return file.read(columns)


def encode(table: pa.Table, **options: Any) -> memoryview:
    """Return a table as the bytes of a file, zstd-compressed. options: of `pyarrow.parquet.write_table`."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **{"compression": "zstd", **options})
    return buffer.getbuffer()


def write(uri: str, table: pa.Table, **options: Any) -> None:
    """Write a table as one object, zstd-compressed. options: of `pyarrow.parquet.write_table`."""
    filesystem.write(uri, encode(table, **options))
