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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from captcha_ray.predictions import schema
from captcha_ray.storage import filesystem, parquet
from captcha_ray.storage.database import connect
from captcha_ray.storage.parquet import DamagedError

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
"""Holds a row per row of the run.

uri_high, uri_low: the first and the last eight bytes of the MD5 of the URI, as little-endian numbers. object: the last
eight bytes of the MD5 of the URI, a newline and the etag. With 128 bits, a billion objects have two of the same hash
once in 10^21 tables. model_id, size, last_modified: as in the run. is_error: whether the row has no text.
"""

LOW, HIGH = "({} & 18446744073709551615::UHUGEINT)::UBIGINT", "({} >> 64)::UBIGINT"
"""SQL for the halves of a number of 128 bits. DuckDB has functions for those of an MD5, five times as slow."""

HASHES = ", ".join(
    [
        f"{LOW.format('md5_number(uri)')} AS uri_high",
        f"{HIGH.format('md5_number(uri || chr(10) || etag)')} AS object",
        f"{HIGH.format('md5_number(uri)')} AS uri_low",
    ]
)
"""SQL for the hashes of `INDEX_SCHEMA` from columns uri and etag."""

ABOUT = b"captcha_ray.index"
"""Key, in the footer of an index, of the least and the greatest URI and of the size of the rows' file, in JSON."""

NUM_THREADS = 4
"""Indexes that are read at once, and held: 32 MB each for two million rows, 90 MB for a listing without etags."""


class UriRange(NamedTuple):
    """Bounds some rows by the least and the greatest of their URIs, in the order of their UTF-8 bytes."""

    first: str
    last: str

    def touches(self, other: "UriRange") -> bool:
        """Return whether a URI may lie in both."""
        return self.first <= other.last and other.first <= self.last


def write(run: str, rows: pa.Table, num_bytes: int, spool: Path) -> None:
    """Write the index of a run.

    Args:
        run: URI of its folder.
        rows: All of it, with `SOURCE_COLUMNS`; at least one.
        num_bytes: Size of their file, by which an index of other rows is told.
        spool: Local scratch folder.
    """
    with connect(spool) as database:
        kept = database.from_arrow(rows.select(SOURCE_COLUMNS))
        columns = f"{HASHES}, model_id, status = 'error' AS is_error, size, last_modified"
        keys = kept.project(columns).order("uri_high").to_arrow_table().select(INDEX_SCHEMA.names)
    ends = pc.min_max(rows["uri"]).as_py()
    about = {ABOUT: json.dumps([ends["min"], ends["max"], num_bytes])}
    table = keys.cast(INDEX_SCHEMA).replace_schema_metadata(about)
    is_hash = {field.name: field.type == pa.uint64() for field in INDEX_SCHEMA}  # and does not get any shorter
    compression = {name: "none" if found else "zstd" for name, found in is_hash.items()}
    data = parquet.encode(table, use_dictionary=["model_id"], compression=compression, write_page_checksum=True)
    filesystem.write(filesystem.join(run, NAME), data)


def build(run: str, num_bytes: int, spool: Path) -> None:
    """Write the index of a run, a folder's URI, from its rows, of which it holds `SOURCE_COLUMNS` meanwhile.

    Raises DamagedError if they make no sense.
    """
    rows = filesystem.join(run, schema.FILE)
    with parquet.naming_damage(rows):
        write(run, parquet.read(rows, SOURCE_COLUMNS), num_bytes, spool)


def scan(runs: Mapping[str, int], columns: list[str], wanted: UriRange, spool: Path) -> Iterator[pa.Table]:
    """Yield columns of the indexes of runs whose URIs may be in a range; of the others only the footer is fetched.

    An index that a power failure has damaged, or of rows that were replaced since, is made again.

    Args:
        runs: Sizes of the files of rows, by the URIs of their folders.
        columns: Of `INDEX_SCHEMA`.
        wanted: URIs that are asked for.
        spool: Local scratch folder.

    Raises:
        OSError: An index is absent, or a store refuses.
        DamagedError: The rows of a damaged index are damaged too.
    """

    def read(run: str) -> pa.Table | None:
        index = filesystem.join(run, NAME)
        with parquet.naming_damage(index), parquet.open_file(index, page_checksum_verification=True) as file:
            about = (file.schema_arrow.metadata or {}).get(ABOUT, b"[null, null, null]")
            first, last, num_bytes = json.loads(about)
            if num_bytes != runs[run]:
                raise DamagedError(f"{index} has the keys of other rows")
            return file.read(columns) if UriRange(first, last).touches(wanted) else None

    waiting = iter(runs)
    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
        ahead = deque((run, pool.submit(read, run)) for run in itertools.islice(waiting, NUM_THREADS))
        while ahead:
            run, future = ahead.popleft()
            try:
                found = future.result()
            except DamagedError:
                build(run, runs[run], spool)
                found = read(run)
            ahead.extend((run, pool.submit(read, run)) for run in itertools.islice(waiting, 1))
            if found is not None:
                yield found
