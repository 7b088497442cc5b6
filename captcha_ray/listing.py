"""What there is to read: a folder, a bucket or a table of URIs -> one local Parquet file, in bounded memory.

Everything after works from that file, so that a bucket is listed once. Does not know what is done already.
"""

import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from captcha_ray import schema, storage
from captcha_ray.config import InputError
from captcha_ray.labels import is_junk, speakable
from captcha_ray.objectstore import Entry

TABLES = (".csv", ".csv.gz", ".parquet")
"""Names of files that list images; anything else is an image, a folder or a prefix."""

GROUP_ROWS = 65_536
"""Rows that are held until they are written: about 10 MB."""

MEMORY_LIMIT = "1GB"
"""What DuckDB may hold before it spills to its temporary folder."""

ALIASES = {
    "uri": ("uri", "path", "url"),
    "etag": ("etag", "e_tag"),
    "size": ("size", "size_bytes"),
    "last_modified": ("last_modified", "last_modified_date"),
}
"""Names of a table's columns, as people and as Amazon's inventory write them; `bucket` and `key` make a URI as well."""


def write_listing(images: str, path: Path, match: str, advance: Callable[[int], None]) -> int:
    """Writes `schema.LISTING_SCHEMA` rows of all objects whose URI holds the pattern `match`.

    images: absolute URI. advance: told how many more were found. Returns how many hidden files and such of operating
    systems (`.DS_Store`, `Thumbs.db`, ...) were passed over. Raises InputError where there is nothing of that name or a
    table cannot be read.
    """
    if images.endswith(TABLES):
        _copy_table(images, path, match)
        advance(pq.read_metadata(path).num_rows)
        return 0
    num_junk = 0
    pattern = re.compile(match)
    with pq.ParquetWriter(path, schema.LISTING_SCHEMA, compression="zstd") as writer:
        for page in _grouped(storage.list_pages(images)):
            kept = [entry for entry in page if not is_junk(entry.uri, images)]
            num_junk += len(page) - len(kept)
            kept = [entry for entry in kept if pattern.search(entry.uri)]
            columns = (
                [speakable(entry.uri) for entry in kept],
                [entry.etag for entry in kept],
                [entry.size for entry in kept],
                [entry.last_modified for entry in kept],
            )
            arrays = [pa.array(c, field.type) for c, field in zip(columns, schema.LISTING_SCHEMA, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema.LISTING_SCHEMA))
            advance(len(kept))
    return num_junk


def _grouped(pages: Iterator[list[Entry]]) -> Iterator[list[Entry]]:
    group: list[Entry] = []
    for page in pages:
        group += page
        if len(group) >= GROUP_ROWS:
            yield group
            group = []
    yield group


def _copy_table(table: str, path: Path, match: str) -> None:
    """A CSV or Parquet table of URIs -> listing. Relative paths stand beside the table; a URI twice is one object."""
    source = path.with_name(f"source{Path(table.removesuffix('.gz')).suffix}")
    try:
        data = storage.read(table)
    except OSError as error:
        raise InputError(f"the listing {table} cannot be read: {error.strerror or error}") from error
    try:
        source.write_bytes(gzip.decompress(data) if table.endswith(".gz") else data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"the listing {table} cannot be read: {error}") from error
    del data
    csv = "header = true, all_varchar = true, delim = ',', quote = '\"', escape = '\"', comment = '', skip = 0"
    pattern = re.compile(match)
    read = "read_parquet(?, hive_partitioning = false)" if table.endswith(".parquet") else f"read_csv(?, {csv})"
    folder = table.rpartition("/")[0]
    try:
        with connect(path.parent) as database:
            names = [row[0] for row in database.execute(f"DESCRIBE SELECT * FROM {read}", [str(source)]).fetchall()]
            columns = _columns(names, table)
            database.create_function("wanted", lambda uri: bool(pattern.search(uri)), ["VARCHAR"], "BOOLEAN")
            database.execute(
                f"""COPY (
                    SELECT DISTINCT ON (uri) * FROM (
                        SELECT CASE WHEN contains(given, '://') OR ($local AND given LIKE '/%') THEN given
                                    ELSE $folder || '/' || given END AS uri, etag, size, last_modified
                        FROM (SELECT {columns} FROM {read.replace("?", "$source")})
                        WHERE given <> '')
                    {"WHERE wanted(uri)" if match else ""}
                    ORDER BY last_modified DESC NULLS LAST
                ) TO '{quoted(path)}' (FORMAT parquet, COMPRESSION zstd)""",
                # A key in a bucket's table never names a file of this machine.
                {"folder": folder, "source": str(source), "local": not storage.is_remote(table)},
            )
    except duckdb.Error as error:
        raise InputError(f"the listing {table} cannot be read: {str(error).splitlines()[0]}") from error
    finally:
        source.unlink()


def _columns(names: list[str], table: str) -> str:
    """SQL for the columns given, etag, size, last_modified from those a table has."""
    lower = {name.lower(): name for name in names}

    def found(wanted: str) -> str | None:
        return next((f'"{quoted(lower[n], chr(34))}"' for n in ALIASES[wanted] if n in lower), None)

    given = found("uri")
    if given is None and {"bucket", "key"} <= set(lower):
        given = f"'s3://' || \"{lower['bucket']}\" || '/' || \"{lower['key']}\""
    if given is None:
        raise InputError(f"the listing {table} has no column uri, path, or bucket and key; it has {', '.join(names)}")
    etag, size, modified = (found(name) or "NULL" for name in ("etag", "size", "last_modified"))
    return (
        f"CAST({given} AS VARCHAR) AS given, "
        f"coalesce(regexp_replace(CAST({etag} AS VARCHAR), '^(W/)?\"|\"$', '', 'g'), '') AS etag, "
        f"TRY_CAST({size} AS BIGINT) AS size, TRY_CAST({modified} AS TIMESTAMPTZ) AS last_modified"
    )


def connect(folder: Path) -> duckdb.DuckDBPyConnection:
    """A database in memory that spills to a folder beyond `MEMORY_LIMIT`."""
    settings: dict[str, Any] = {
        "memory_limit": MEMORY_LIMIT,
        "temp_directory": str(folder / "spill"),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
    }
    database = duckdb.connect(config=settings)
    database.execute("SET TimeZone = 'UTC'")  # of times that do not say theirs
    return database


def quoted(value: Path | str, quote: str = "'") -> str:
    """The inside of an SQL literal or name."""
    return str(value).replace(quote, quote * 2)
