"""Say which objects are still to be recognized: join a listing, or staged rows, with the keys of what is done.

DuckDB joins by hash, in memory up to a limit and on the disk beyond it. Reads indexes, no committed rows.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from captcha_ray.errors import InputError
from captcha_ray.predictions import keys
from captcha_ray.predictions.keys import HASHES, INDEX_SCHEMA, UriRange
from captcha_ray.storage.database import connect, quoted, table_of

SAME_OBJECT = "done.uri_high = listed.uri_high AND done.object = listed.object"
"""SQL: whether a key is of an object, by URI and etag."""

SAME_BY_DATE = """done.uri_high = listed.uri_high AND CASE WHEN listed.etag <> '' THEN done.object = listed.object
    ELSE done.uri_low = listed.uri_low AND coalesce(done.size = listed.size, true)
        AND coalesce(done.last_modified >= listed.last_modified, true) END"""
"""SQL: the same for a listing of which some objects lack etags; of these, size and date decide."""

COLUMNS = ["uri_high", "object", "is_error"]
"""Columns of an index that the first condition and `_failed_sql` need."""

COLUMNS_BY_DATE = [*COLUMNS, "uri_low", "size", "last_modified"]
"""Columns that the second condition needs."""


@dataclasses.dataclass(frozen=True)
class Done:
    """Says which objects are left out.

    runs: runs whose objects are done, as `keys.scan` takes them. staged: local file of rows whose objects are done too.
    failed: if not None, only objects of which these runs hold errors alone are kept. model_id: network of the rows that
    count; "" for any. spool: local scratch folder.
    """

    runs: Mapping[str, int]
    staged: Path | None
    failed: Mapping[str, int] | None
    model_id: str
    spool: Path


def write_left(listed: Path, path: Path, done: Done) -> int:
    """Write the rows of a listing that are to be recognized.

    Args:
        listed: Parquet file of `schema.LISTING_SCHEMA`.
        path: Of the Parquet file to write, of the same columns.
        done: Says what is left out.

    Returns:
        The number of rows.

    Raises:
        OSError: An index cannot be read, or the disk is full.
    """
    source = table_of([str(listed)])
    with connect(done.spool) as database:
        uris, has_etags = _look(database, source)
        same, columns = (SAME_OBJECT, COLUMNS) if has_etags else (SAME_BY_DATE, COLUMNS_BY_DATE)
        query = f"""SELECT uri, etag, size, last_modified FROM (SELECT *, {HASHES} FROM {source}) AS listed
            WHERE NOT EXISTS (FROM done WHERE {same})"""
        if done.failed is not None:
            query += f" AND EXISTS (FROM failed AS done WHERE {same})"
        return _write(database, query, path, done, columns, uris)


def write_unique(staged: list[str], path: Path, done: Done) -> int:
    """Write staged rows of local files, each object once, without those that are done; otherwise as `write_left`."""
    source = table_of(staged)
    with connect(done.spool) as database:
        uris, _ = _look(database, source)
        query = f"""SELECT DISTINCT ON (uri, etag) * EXCLUDE (uri_high, object, uri_low)
            FROM (SELECT *, {HASHES} FROM {source}) AS listed WHERE NOT EXISTS (FROM done WHERE {SAME_OBJECT})"""
        return _write(database, query, path, done, COLUMNS, uris)


def _look(database: duckdb.DuckDBPyConnection, source: str) -> tuple[UriRange, bool]:
    """Return the range of some rows' URIs, and whether all have an etag."""
    found = database.sql(f"SELECT min(uri), max(uri), min(length(etag)) FROM {source}").fetchall()
    first, last, shortest = found[0]
    return UriRange(first or "", last or ""), bool(shortest)


def _write(
    database: duckdb.DuckDBPyConnection, query: str, path: Path, done: Done, columns: list[str], uris: UriRange
) -> int:
    """Write what a query yields that names `done` and perhaps `failed`, and return the number of its rows."""
    errors: list[OSError | InputError] = []
    named = [f"done AS ({_done_sql(done, columns)})"]
    database.register("done_runs", _reader(done.runs, columns, uris, done, errors))
    if done.failed is not None:
        named.append(f"failed AS ({_failed_sql(columns)})")
        database.register("failed_runs", _reader(done.failed, columns, uris, done, errors))
    target = f"'{quoted(path)}' (FORMAT parquet, COMPRESSION zstd)"
    try:
        database.execute(f"COPY (WITH {', '.join(named)} {query}) TO {target}")
    except duckdb.Error:
        if errors:
            raise errors[0] from None
        raise
    num_rows: int = pq.read_metadata(path).num_rows
    return num_rows


def _done_sql(done: Done, columns: list[str]) -> str:
    """Return SQL for the keys of objects that are done; `done_runs` has those of committed runs."""
    names = ", ".join(columns)
    committed = f"SELECT {names} FROM done_runs"
    if done.staged is None:
        return committed
    hashed = f"SELECT *, {HASHES}, status = 'error' AS is_error FROM {table_of([str(done.staged)])}"
    return f"{committed} UNION ALL SELECT {names} FROM ({hashed})"


def _failed_sql(columns: list[str]) -> str:
    """Return SQL for the keys of objects of which `failed_runs` has errors only, with their latest date."""
    hashes = ", ".join(name for name in columns if INDEX_SCHEMA.field(name).type == pa.uint64())
    latest = ", any_value(size) AS size, max(last_modified) AS last_modified" if "size" in columns else ""
    return f"SELECT {hashes}{latest} FROM failed_runs GROUP BY {hashes} HAVING bool_and(is_error)"


def _reader(
    runs: Mapping[str, int], columns: list[str], uris: UriRange, done: Done, errors: list[OSError | InputError]
) -> pa.RecordBatchReader:
    """Return a reader of keys of runs. errors: gets those of which DuckDB makes errors of its own."""

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for table in keys.scan(runs, [*columns, "model_id"], uris, done.spool):
                kept = table.filter(pc.equal(table["model_id"], done.model_id)) if done.model_id else table
                yield from kept.select(columns).to_batches()
        except (OSError, InputError) as error:
            errors.append(error)
            raise

    return pa.RecordBatchReader.from_batches(pa.schema([INDEX_SCHEMA.field(name) for name in columns]), batches())
