"""Read tables of labels: Parquet, JSON Lines, and CSV in any delimiter. Does not look whether the images exist.

A row that cannot be understood has a sentence that names its line instead of a label; the other rows are read.
"""

import csv
import dataclasses
import gzip
import io
import json
import mimetypes
import posixpath
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captcha_ray.errors import InputError
from captcha_ray.storage import filesystem
from captcha_ray.storage.filesystem import speakable
from captcha_ray.storage.table_text import DELIMITERS, EXCELS_FIRST_LINE, PATH_NAMES, encoding_of

TEXT_NAMES = ("text", "label", "ground_truth", "transcription")
"""Columns, in lower case, that may hold the label, the first that is there."""

MAX_RECORD_LINES = 100
"""Most lines of a record, whose notes may hold line breaks within quotation marks."""

UNCLOSED = "a quotation mark that is not closed; a path or a label must stand on one line"

NUMBERS_LOSE = "numbers lose leading zeros; keep labels as text from the start, in pandas by read_csv(..., dtype=str)"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    uri: of the image, or the table's with the number of the row, from 1, where it names none. problem: why there is no
    label, a sentence; empty if there is one, or the table leaves it empty.
    """

    uri: str
    text: str | None
    problem: str = ""


Cell = tuple[Any, Any, str, str]
"""Path and label of a row as they stand in the table, what is wrong with it, and its place, such as `line 3`."""


def read_table(uri: str, path_column: str = "", text_column: str = "") -> Iterator[Row]:
    """Yield the rows of a table in order.

    Paths are relative to the table; absolute ones and URIs stay as they are. Labels are text: "007" stays "007".

    Args:
        uri: Of a Parquet file, of JSON Lines (`.jsonl`, `.ndjson`), or of a CSV file in UTF-8 or UTF-16, perhaps
            gzipped.
        path_column: Name of the column of images; empty for the first of `PATH_NAMES`.
        text_column: Name of the column of labels; empty for the first of `TEXT_NAMES`.

    Raises:
        InputError: The table is absent, cannot be read, lacks a column, or holds labels that are not text.
    """
    uri = filesystem.absolute(uri)
    folder = uri.rpartition("/")[0]
    for number, cell in enumerate(_cells(uri, path_column, text_column), start=1):
        path, text, problem, place = cell
        problem = problem or _no_text(path) or _no_text(text)
        image = ""
        if path and not _no_text(path):
            try:
                image = _resolve(folder, path)
            except InputError as error:  # a scheme that is not read
                problem = problem or str(error)
        label = None if problem or not text else text
        said = f"{place} of {uri}: {problem}" if problem else "" if image else "the row names no image"
        yield Row(image or f"{uri}#row-{number}", label if image else None, said)


def _resolve(folder: str, path: str) -> str:
    """Return the URI of an image. Raises InputError for a scheme that is not read."""
    if path.startswith("/") or "://" in path:
        return filesystem.absolute(path)
    joined = filesystem.join(folder, posixpath.normpath(path))
    return joined if filesystem.is_remote(joined) else posixpath.normpath(joined)


def _no_text(value: str | None) -> str:
    """Return what a path or a label holds that no text does; empty if all is well."""
    if not value:
        return ""
    if "\0" in value:
        return "a byte of zero"
    return "half a surrogate pair, which is no character" if speakable(value) != value else ""


def _cells(uri: str, path_column: str, text_column: str) -> Iterator[Cell]:
    try:
        data = filesystem.read(uri)
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"the table {uri} is no readable gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"the table {uri} cannot be read: {error.strerror or error}") from error

    def choose(names: Sequence[str]) -> tuple[str, str]:
        return (
            _column(uri, names, "path", path_column, PATH_NAMES),
            _column(uri, names, "text", text_column, TEXT_NAMES),
        )

    if data[:4] == b"PAR1":
        return _of_parquet(uri, data, choose)
    if data[:4] == b"PK\x03\x04":
        raise InputError(f"the table {uri} is a workbook or an archive; save it as CSV in UTF-8")
    lines = re.split("\r\n|\n|\r", _decode(uri, data))
    first = next((line.strip() for line in lines if line.strip()), "")
    if first.startswith("["):
        raise InputError(f"the table {uri} is a JSON array; write one object a line")
    suffix = posixpath.splitext(uri.lower().removesuffix(".gz"))[1]
    if suffix in (".jsonl", ".ndjson") or first.startswith("{"):
        return _of_json_lines(uri, lines, choose)
    return _of_csv(uri, lines, choose)


def _column(uri: str, names: Sequence[str], what: str, wanted: str, known: Sequence[str]) -> str:
    """Return the name of a column as the table has it. Raises InputError if there is none."""
    lower = [name.strip().lower() for name in names]
    for name in [wanted.strip().lower()] if wanted else known:
        if lower.count(name) > 1:
            raise InputError(f"the table {uri} has {lower.count(name)} columns named {name!r}")
        if name in lower:
            return names[lower.index(name)]
    has = ", ".join(names) or "none"
    is_row = any((mimetypes.guess_type(name)[0] or "").startswith("image/") for name in names)
    hint = "its first line must name the columns, such as path,text" if is_row else f"--{what}-column names another"
    raise InputError(f"the table {uri} has no column {wanted or what!r}; it has {has}; {hint}")


def _of_parquet(uri: str, data: bytes, choose: Callable[[Sequence[str]], tuple[str, str]]) -> Iterator[Cell]:
    try:
        names = pq.read_schema(io.BytesIO(data)).names
        path_column, text_column = choose(names)
        table = pq.read_table(io.BytesIO(data), columns=list(dict.fromkeys([path_column, text_column])))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"the table {uri} is no readable Parquet: {error}") from error
    columns = [_strings(uri, name, table[name]) for name in (path_column, text_column)]
    for number, (path, text) in enumerate(zip(*columns, strict=True), start=1):
        problems = [found.args[0] for found in (path, text) if isinstance(found, ValueError)]
        path, text = (None if isinstance(found, ValueError) else found for found in (path, text))  # noqa: PLW2901
        yield path, text, "; ".join(problems), f"row {number}"


TEXT_TYPES = (pa.types.is_null, pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
BYTE_TYPES = (
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary,
)  # fmt: skip


def _strings(uri: str, name: str, column: pa.ChunkedArray) -> list[Any]:
    """Return a column's texts, None where there is none, and a ValueError for bytes that are no UTF-8.

    Raises InputError for a column of another type.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if any(is_kind(kind) for is_kind in TEXT_TYPES):
        try:
            return column.to_pylist()  # type: ignore[no-any-return]
        except UnicodeDecodeError:  # Parquet does not keep a writer from it
            return [_text_of(value, name) for value in column.cast(pa.binary()).to_pylist()]
    if any(is_kind(kind) for is_kind in BYTE_TYPES):
        return [_text_of(value, name) for value in column.to_pylist()]
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    why = NUMBERS_LOSE if is_number and name.lower() not in PATH_NAMES else "it must hold text"
    raise InputError(f"the column {name!r} of the table {uri} is of type {kind}: {why}")


def _text_of(value: bytes | None, name: str) -> Any:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return ValueError(f"{name} {value!r} is not UTF-8")


def _of_json_lines(uri: str, lines: list[str], choose: Callable[[Sequence[str]], tuple[str, str]]) -> Iterator[Cell]:
    rows = [(number, _object(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    columns = choose(list(dict.fromkeys(name for _, values in rows if isinstance(values, dict) for name in values)))
    for number, values in rows:
        where = f"line {number}"
        if not isinstance(values, dict):
            yield None, None, values, where
            continue
        path, text = (values.get(name) for name in columns)
        problem = ""
        if not isinstance(path, str | None):
            path, problem = None, f"the image is {path!r}, which is no text"
        elif not isinstance(text, str | None):
            why = f"; {NUMBERS_LOSE}" if isinstance(text, int | float) and not isinstance(text, bool) else ""
            text, problem = None, f"the label is {text!r}, which is no text{why}"
        yield path, text, problem, where


def _object(line: str) -> dict[str, Any] | str:
    """Return the JSON object of a line, or why it holds none."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"no JSON, {error}"
    return values if isinstance(values, dict) else "no JSON object"


def _of_csv(uri: str, lines: list[str], choose: Callable[[Sequence[str]], tuple[str, str]]) -> Iterator[Cell]:
    at = next((at for at, line in enumerate(lines) if line.strip()), len(lines))
    if at < len(lines) and EXCELS_FIRST_LINE.fullmatch(lines[at].strip()):
        at = next((at for at in range(at + 1, len(lines)) if lines[at].strip()), len(lines))
    delimiter, header = _header(uri, "".join(lines[at : at + 1]))
    places = [header.index(name) for name in choose(header)]
    num_lines = 1
    while (at := at + num_lines) < len(lines):
        num_lines = 1
        if not lines[at].strip():
            continue
        fields, num_lines, problem = _record(lines[at : at + MAX_RECORD_LINES], delimiter)
        path, text = (fields[place] if place < len(fields) else None for place in places)
        if num_lines > 1 and (len(fields) != len(header) or "\n" in f"{path}{text}"):
            path, text, num_lines, problem = None, None, 1, UNCLOSED
        elif len(fields) > len(header):
            problem = f"{len(fields)} fields where the header has {len(header)}"
        yield path, text, problem, f"line {at + 1}"


def _header(uri: str, line: str) -> tuple[str, list[str]]:
    """Return the delimiter that parts the header into most fields, and these. Raises InputError if none parts it."""
    found = {delimiter: _record([line], delimiter) for delimiter in DELIMITERS}
    parted = {delimiter: fields for delimiter, (fields, _, problem) in found.items() if not problem}
    if not parted:
        raise InputError(f"the table {uri} is no readable CSV: {found[','][2]}")
    return max(parted.items(), key=lambda item: len(item[1]))


def _record(lines: Sequence[str], delimiter: str) -> tuple[list[str], int, str]:
    """Return the fields of the record that begins with the first line, its number of lines, and what is wrong with it.

    A record that is wrong has no fields and one line, so that the rows after it are read.
    """
    blanks = f'{delimiter} "' in lines[0]  # before a quotation mark, as some write it; others are the field's
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True, skipinitialspace=blanks)
    try:
        return next(reader), reader.line_num, ""
    except csv.Error as error:
        is_unclosed = reader.line_num > 1 or str(error) == "unexpected end of data"
        return [], 1, UNCLOSED if is_unclosed else str(error)


def _decode(uri: str, data: bytes) -> str:
    """Return the text of a table in UTF-8, UTF-16 or UTF-32. Raises InputError for another encoding."""
    try:
        return data.decode(encoding_of(data))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"the table {uri} is not in UTF-8: byte {data[error.start]:#x} in line {line}; convert it, if it is from "
            "Windows by iconv -f cp1252 -t utf-8"
        ) from None
