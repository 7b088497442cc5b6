"""List what there is to recognize: a folder, a bucket or a table of URIs, as one local Parquet file, in bounded memory.

Everything after works from that file, so a bucket is listed once. Does not know what is done already.
"""

import codecs
import dataclasses
import gzip
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from captcha_ray.errors import InputError, full_disk
from captcha_ray.inference.source import MANIFEST, Source, is_table
from captcha_ray.predictions import schema
from captcha_ray.storage import filesystem
from captcha_ray.storage.database import connect, quoted
from captcha_ray.storage.filesystem import is_hidden, speakable
from captcha_ray.storage.objectstore import Entry
from captcha_ray.storage.table_text import DELIMITERS, EXCELS_FIRST_LINE, PATH_NAMES, encoding_of

TEXT_TYPES = ("VARCHAR", "BLOB", "ENUM", '"NULL"')
"""First words of DuckDB's types of columns that may name images."""

GROUP_ROWS = 65_536
"""Rows that are held until they are written: about 10 MB."""

ALIASES = {
    "uri": ("uri", "path", "url", *(name.replace("_", "") for name in PATH_NAMES)),
    "etag": ("etag",),
    "size": ("size", "sizebytes"),
    "last_modified": ("lastmodified", "lastmodifieddate"),
}
"""Names of a table's columns, as people and Amazon's inventory write them, in lower case without underscores;
`bucket` and `key` make a URI as well.
"""


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table to read. columns: of a CSV without a header. is_escaped: whether keys are URL-encoded."""

    uri: str
    columns: tuple[str, ...] = ()
    is_escaped: bool = False


class Passed(NamedTuple):
    """Counts objects that a listing passes over: hidden and system files, and those of before `Source.since`."""

    hidden: int
    older: int


def write_listing(source: Source, path: Path, advance: Callable[[int], None]) -> Passed:
    """Write `schema.LISTING_SCHEMA` rows of all objects of a source.

    Args:
        source: What to list.
        path: Of the Parquet file to write.
        advance: Called with the number of further objects.

    Returns:
        The numbers of objects that were passed over.

    Raises:
        InputError: There is nothing of any of the names, or a table cannot be read.
    """
    num_hidden = num_older = 0
    with pq.ParquetWriter(path, schema.LISTING_SCHEMA, compression="zstd") as writer:
        for uri in source.uris:
            for rows, hidden in _rows_of(uri, source, path.parent):
                kept = _new_enough(rows, source)
                writer.write_table(kept)
                num_hidden += hidden
                num_older += len(rows) - len(kept)
                advance(len(kept))
    return Passed(num_hidden, num_older)


def _rows_of(uri: str, source: Source, spool: Path) -> Iterator[tuple[pa.Table, int]]:
    """Yield rows of one URI of a source, however old, and how many hidden files stood among them."""
    if is_table(uri):
        tables = _open_inventory(uri) if uri.endswith(MANIFEST) else [_Table(uri)]
        for rows in _read_tables(tables, spool, source):
            yield rows, 0
        return
    if source.is_dated and not filesystem.is_remote(uri) and not os.path.exists(uri):
        return
    pattern = re.compile(source.match)
    for group in _grouped(filesystem.list_pages(uri, source.start_after)):
        visible = [entry for entry in group if not is_hidden(entry.uri, uri)]
        kept = [entry for entry in visible if entry.uri > source.start_after and pattern.search(entry.uri)]
        columns = (
            [speakable(entry.uri) for entry in kept],
            [entry.etag for entry in kept],
            [entry.size for entry in kept],
            [entry.last_modified for entry in kept],
        )
        arrays = [pa.array(c, field.type) for c, field in zip(columns, schema.LISTING_SCHEMA, strict=True)]
        yield pa.table(arrays, schema=schema.LISTING_SCHEMA), len(group) - len(visible)


def _new_enough(rows: pa.Table, source: Source) -> pa.Table:
    """Return the rows of objects that were modified since, or of which it is not known."""
    if source.since is None:
        return rows
    modified = rows["last_modified"]
    return rows.filter(pc.or_kleene(pc.is_null(modified), pc.greater_equal(modified, source.since)))


def _grouped(pages: Iterator[list[Entry]]) -> Iterator[list[Entry]]:
    group: list[Entry] = []
    for page in pages:
        group += page
        if len(group) >= GROUP_ROWS:
            yield group
            group = []
    yield group


def _open_inventory(manifest: str) -> list[_Table]:
    """Return the tables of an S3 inventory, as the S3 User Guide describes it ("Locating your inventory list")."""
    try:
        said = json.loads(filesystem.read(manifest))
        bucket = said["destinationBucket"].rpartition(":")[2]  # an ARN
        form = said["fileFormat"]
        columns = tuple(name.strip() for name in said["fileSchema"].split(",")) if form == "CSV" else ()
        tables = [_Table(f"s3://{bucket}/{file['key']}", columns, form == "CSV") for file in said["files"]]
    except OSError as error:
        raise InputError(f"the listing {manifest} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{manifest} is no manifest of an S3 inventory: {type(error).__name__}: {error}") from error
    if form not in ("CSV", "Parquet"):
        raise InputError(f"the inventory {manifest} is in {form}; only CSV and Parquet are read")
    return tables


def _read_tables(tables: list[_Table], spool: Path, source: Source) -> Iterator[pa.Table]:
    """Yield rows of CSV or Parquet tables in groups; one table at a time is copied to the spool."""
    for table in tables:
        suffix = Path(table.uri.lower().removesuffix(".gz")).suffix
        copy = spool / f"source{suffix}"  # a name that is no pattern of names
        try:
            _copy(table.uri, copy)
            with connect(spool) as database:
                yield from _query(table, copy, source, database)
        except OSError as error:
            if full_disk(error):
                raise
            raise InputError(f"the listing {table.uri} cannot be read: {error.strerror or error}") from error
        except (EOFError, zlib.error) as error:
            raise InputError(f"the listing {table.uri} cannot be read: {error}") from error
        except duckdb.Error as error:
            sentence = str(error).splitlines()[0].replace(str(copy), table.uri)
            if copy.suffix != ".parquet" and not _is_utf8(copy):
                sentence = "it is not in UTF-8; convert it; if it is from Windows: iconv -f cp1252 -t utf-8"
            raise InputError(f"the listing {table.uri} cannot be read: {sentence}") from error
        finally:
            copy.unlink(missing_ok=True)


def _copy(table: str, source: Path) -> None:
    """Copy and unzip a table: DuckDB takes a truncated zipped file for a whole one."""
    filesystem.copy(table, source)
    if table.lower().endswith(".gz"):
        zipped = source.rename(f"{source}.gz")
        try:
            with gzip.open(zipped) as file, source.open("wb") as unzipped:
                shutil.copyfileobj(file, unzipped, 1 << 20)
        finally:
            zipped.unlink()


def _query(table: _Table, copy: Path, source: Source, database: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
    """Yield the objects of a table. Relative paths are relative to the table; a repeated URI is one object."""
    read = _reader(table, copy, database)
    file = {"source": str(copy)}
    types = {name: kind for name, kind, *_ in database.execute(f"DESCRIBE SELECT * FROM {read}", file).fetchall()}
    columns, is_object = _columns(types, table)
    pattern = re.compile(source.match)
    database.create_function("wanted", lambda uri: bool(pattern.search(uri)), ["VARCHAR"], "BOOLEAN")
    objects = f"""(SELECT CASE WHEN contains(given, '://') OR ($local AND given LIKE '/%') THEN given
            ELSE $folder || '/' || given END AS uri, etag, size, last_modified
        FROM (SELECT {columns} FROM {read} WHERE {is_object}) WHERE given <> '')"""
    # A key in a bucket's table never names a file of this machine.
    place = {"folder": table.uri.rpartition("/")[0], "local": not filesystem.is_remote(table.uri)}
    repeats = f"SELECT hash(uri) AS of_uri FROM {objects} GROUP BY of_uri HAVING count(*) > 1 LIMIT 1"
    query = f"SELECT * FROM {objects} WHERE uri > $start_after {'AND wanted(uri)' if source.match else ''}"
    if database.execute(repeats, {**file, **place}).fetchall():  # seldom; sorting costs more than all the rest
        query = f"SELECT DISTINCT ON (uri) * FROM ({query}) ORDER BY last_modified DESC NULLS LAST"
    found = database.sql(query, params={**file, **place, "start_after": source.start_after})
    for batch in found.to_arrow_reader(GROUP_ROWS):
        yield pa.table(batch).cast(schema.LISTING_SCHEMA)


def _is_before_header(line: str) -> bool:
    return not line or bool(EXCELS_FIRST_LINE.fullmatch(line))


def _is_utf8(source: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with source.open("rb") as file:
        try:
            while block := file.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", True)
        except UnicodeDecodeError:
            return False
    return True


def _reader(table: _Table, source: Path, database: duckdb.DuckDBPyConnection) -> str:
    """Return SQL that reads the file `$source`. Raises InputError if it is not in UTF-8."""
    if source.suffix == ".parquet":
        return "read_parquet($source, hive_partitioning = false)"
    skip = 0
    with source.open("rb") as file:
        first = file.readline(65_536)
        encoding = encoding_of(first)
        if encoding != "utf-8-sig":
            raise InputError(f"the listing {table.uri} is in {encoding}; convert it by iconv -f {encoding} -t utf-8")
        while first and not table.columns and _is_before_header(first.decode(errors="replace").strip()):
            first, skip = file.readline(65_536), skip + 1
    if source.suffix in (".jsonl", ".ndjson"):
        read, parameters = "read_json($source, format = 'newline_delimited'", {"source": str(source)}
        found = database.execute(f"DESCRIBE SELECT * FROM {read})", parameters).fetchall()
        types = ", ".join(f"'{quoted(name)}': 'VARCHAR'" for name, *_ in found)
        return f"{read}, columns = {{{types}}})"
    columns = ", ".join(f"'{quoted(name)}'" for name in table.columns)
    header = f"header = false, names = [{columns}]" if columns else "header = true"
    unquoted = re.sub(b'"[^"]*"', b"", first)
    delimiter = "," if columns else max(DELIMITERS, key=lambda one: unquoted.count(one.encode()))
    form = f"all_varchar = true, delim = '{delimiter}', quote = '\"', escape = '\"', comment = '', skip = {skip}"
    return f"read_csv($source, {header}, {form})"


def _columns(types: dict[str, str], table: _Table) -> tuple[str, str]:
    """Return SQL for uri, etag, size, last_modified from a table's columns, and for whether a row is a current object.

    Buckets with versions list older ones, and marks that an object was deleted.
    """
    known = {name.lower().replace("_", ""): f'"{quoted(name, chr(34))}"' for name in reversed(types)}

    def found(wanted: str) -> str | None:
        return next((known[name] for name in ALIASES[wanted] if name in known), None)

    given = found("uri")
    if given is not None:
        name, kind = next((name, kind) for name, kind in types.items() if f'"{quoted(name, chr(34))}"' == given)
        if not kind.startswith(TEXT_TYPES) or kind.endswith("]"):
            raise InputError(f"the column {name!r} of the listing {table.uri} is of type {kind}: it must hold text")
        given = f"decode({given})" if kind == "BLOB" else given
    if given is None and {"bucket", "key"} <= set(known):
        # Amazon writes a space as +.
        key = f"url_decode(replace({known['key']}, '+', ' '))" if table.is_escaped else known["key"]
        given = f"'s3://' || {known['bucket']} || '/' || {key}"
    if given is None:
        has = ", ".join(types)
        raise InputError(f"the listing {table.uri} has no column uri, path, or bucket and key; it has {has}")
    etag, size, modified = (found(name) or "NULL" for name in ("etag", "size", "last_modified"))
    latest, deleted = known.get("islatest", "true"), known.get("isdeletemarker", "false")
    return (
        f"CAST({given} AS VARCHAR) AS given, "
        f"coalesce(regexp_replace(CAST({etag} AS VARCHAR), '^(W/)?\"|\"$', '', 'g'), '') AS etag, "
        f"TRY_CAST({size} AS BIGINT) AS size, TRY_CAST({modified} AS TIMESTAMPTZ) AS last_modified"
    ), f"coalesce(CAST({latest} AS BOOLEAN), true) AND NOT coalesce(CAST({deleted} AS BOOLEAN), false)"
