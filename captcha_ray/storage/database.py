"""Open DuckDB databases in bounded memory, and write names into SQL."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

MEMORY_LIMIT = "1GB"
"""Memory of DuckDB before it spills to its temporary folder."""


@contextlib.contextmanager
def connect(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database in memory that spills to a folder beyond `MEMORY_LIMIT`. Raises OSError if the disk is full."""
    settings: dict[str, Any] = {
        "memory_limit": MEMORY_LIMIT,
        "temp_directory": str(folder / "spill"),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
    }
    with duckdb.connect(config=settings) as database:
        database.execute("SET enable_progress_bar = false")  # it would be drawn into logs
        database.execute("SET TimeZone = 'UTC'")  # of times that do not say theirs
        try:
            yield database
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            no_room = os.strerror(errno.ENOSPC)
            if no_room in str(error) or "max_temp_directory_size" in str(error):
                raise OSError(errno.ENOSPC, no_room, str(folder)) from error
            raise


def quoted(value: Path | str, quote: str = "'") -> str:
    """Return the inside of an SQL literal or name."""
    return str(value).replace(quote, quote * 2)


def table_of(paths: list[str]) -> str:
    """Return SQL that reads local Parquet files, without partition columns from the names of folders above them.

    DuckDB takes brackets and stars in a path for a pattern of names.
    """
    names = ", ".join(f"'{quoted(path)}'" for path in paths)
    return f"read_parquet([{names}], hive_partitioning = false)"
