"""Keep a key index beside each run: hashes of its objects, by which a night knows what is done without reading rows.

    run=000001/_keys.index

It is a Parquet file, sorted by the hash of the URI, of 16 bytes a row that a night reads and some 20 more that only a
listing without etags needs. It is written after the run that it describes, never changes, and can be made from the run
again. Its name does not end in `.parquet`, as DuckDB's pattern `**/*.parquet` would take its rows for predictions.
"""

import concurrent.futures
import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from captcha_ray.errors import InputError
from captcha_ray.predictions import schema
from captcha_ray.storage import filesystem, parquet
from captcha_ray.storage.database import connect

NAME = "_keys.index"
"""Name of the file in a run's folder."""

SOURCE_COLUMNS = [*schema.LISTING_SCHEMA.names, "model_id", "status"]
"""Columns of a run that its index is made from."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("uri_high", pa.uint64(), nullable=False),
        pa.field("object", pa.uint64(), nullable=False),
        pa.field("model_id", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("is_error", pa.bool_(), nullable=False),
        pa.field("uri_low", pa.uint64(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("last_modified", schema.TIMESTAMP),
    ]
)
"""A row per row of the run.

uri_high, uri_low: the halves of the MD5 of the URI, 64 bits each. object: the lower half of the MD5 of the URI, a
newline and the etag. With 128 bits, a billion objects have two of the same hash once in 10^21 tables. model_id, size,
last_modified: as in the run. is_error: whether the row has no text.
"""

HASHES = """md5_number_upper(uri) AS uri_high, md5_number_lower(uri || chr(10) || etag) AS object,
    md5_number_lower(uri) AS uri_low"""
"""SQL for the hashes of `INDEX_SCHEMA` from columns uri and etag."""

RANGE = b"captcha_ray.uris"
"""Key of the least and the greatest URI, a list in JSON, in the footer of an index."""

NUM_THREADS = 4
"""Indexes that are read at once, and held: 32 MB each for two million rows."""


class UriRange(NamedTuple):
    """The least and the greatest URI of some rows, in the order of their UTF-8 bytes."""

    first: str
    last: str

    def touches(self, other: "UriRange") -> bool:
        """Return whether a URI may lie in both."""
        return self.first <= other.last and other.first <= self.last


def write(run: str, rows: pa.Table, spool: Path) -> None:
    """Write the index of a run.

    Args:
        run: URI of its folder.
        rows: All of it, with `SOURCE_COLUMNS`; at least one.
        spool: Local scratch folder.
    """
    with connect(spool) as database:
        kept = database.from_arrow(rows.select(SOURCE_COLUMNS))
        columns = f"{HASHES}, model_id, status = 'error' AS is_error, size, last_modified"
        keys = kept.project(columns).order("uri_high").to_arrow_table().select(INDEX_SCHEMA.names)
    ends = pc.min_max(rows["uri"]).as_py()
    metadata = {RANGE: json.dumps([ends["min"], ends["max"]])}
    table = keys.cast(INDEX_SCHEMA).replace_schema_metadata(metadata)
    is_hash = {field.name: field.type == pa.uint64() for field in INDEX_SCHEMA}  # and does not get any shorter
    compression = {name: "none" if found else "zstd" for name, found in is_hash.items()}
    data = parquet.encode(table, use_dictionary=["model_id"], compression=compression)
    filesystem.write(filesystem.join(run, NAME), data)


def build(run: str, spool: Path) -> None:
    """Write the index of a run, a folder's URI, from its rows, of which it holds `SOURCE_COLUMNS` meanwhile.

    Raises InputError if they cannot be read.
    """
    rows = filesystem.join(run, schema.FILE)
    try:
        write(run, parquet.read(rows, SOURCE_COLUMNS), spool)
    except pa.ArrowException as error:
        raise InputError(f"{rows} is damaged: {error}") from error


def scan(runs: Iterable[str], columns: list[str], wanted: UriRange, spool: Path) -> Iterator[pa.Table]:
    """Yield columns of the indexes of runs whose URIs may be in a range; of the others only the footer is fetched.

    An index that a power failure has damaged is made again.

    Args:
        runs: URIs of their folders.
        columns: Of `INDEX_SCHEMA`.
        wanted: URIs that are asked for.
        spool: Local scratch folder.

    Raises:
        OSError: An index is absent, or a store refuses.
    """

    def read(run: str) -> pa.Table | None:
        with parquet.open_file(filesystem.join(run, NAME)) as file:
            held = UriRange(*json.loads(file.schema_arrow.metadata[RANGE]))
            return file.read(columns) if held.touches(wanted) else None

    waiting = iter(runs)
    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
        ahead = deque((run, pool.submit(read, run)) for run in itertools.islice(waiting, NUM_THREADS))
        while ahead:
            run, future = ahead.popleft()
            try:
                found = future.result()
            except pa.ArrowInvalid:
                build(run, spool)
                found = read(run)
            ahead.extend((run, pool.submit(read, run)) for run in itertools.islice(waiting, 1))
            if found is not None:
                yield found
