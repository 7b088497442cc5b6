"""Find the label of a file: by its folder, its name, or a table. Does not open images."""

import csv
import dataclasses
import io
import posixpath
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from captcha_ray.datasets.config import Labels
from captcha_ray.errors import InputError, check
from captcha_ray.storage import filesystem
from captcha_ray.storage.filesystem import is_hidden, speakable


@dataclasses.dataclass(frozen=True)
class LabelRule:
    """Rule by which labels are found."""

    labels: Labels
    pattern: str = ""
    table: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the rule as a manifest holds it."""
        return {"labels": self.labels, "label_pattern": self.pattern, "table": self.table}


@dataclasses.dataclass(frozen=True)
class Listing:
    """Files of a corpus in listing order. texts[i]: label of uris[i], None if the rule finds none."""

    uris: list[str]
    texts: list[str | None]
    num_hidden: int


def list_corpus(corpus: str, rule: LabelRule) -> Listing:
    """List all files of a corpus with their labels; with a table, the files that it names.

    Raises InputError if corpus or table is absent, or the table has no columns `path` and `text`.
    """
    if rule.labels == "table":
        rows = list(read_table(rule.table))
        return Listing([uri for uri, _ in rows], [text for _, text in rows], 0)
    uris = []
    num_hidden = 0
    for uri in filesystem.list_files(corpus):
        if is_hidden(uri, corpus):
            num_hidden += 1
        else:
            uris.append(uri)
    pattern = re.compile(rule.pattern) if rule.pattern else None
    texts = [label_of(uri, corpus, rule.labels, pattern) for uri in uris]
    return Listing([speakable(uri) for uri in uris], texts, num_hidden)


def list_images(folder: str) -> list[str]:
    """Return the URIs of unlabeled images. Raises InputError if there are none."""
    uris = list_corpus(filesystem.absolute(folder), LabelRule("filename")).uris
    check(bool(uris), f"{folder} holds no images")
    return uris


def label_of(uri: str, corpus: str, labels: Labels, pattern: re.Pattern[str] | None) -> str | None:
    """Return the label of one file; None if the rule finds none or its name is not UTF-8.

    A file directly in the corpus, in no folder of it, has no label by folder.
    """
    if speakable(uri) != uri:
        return None
    folder, _, name = uri.rpartition("/")
    if labels == "folder":
        return (folder.rpartition("/")[2] or None) if folder != corpus.rstrip("/") else None
    stem = posixpath.splitext(name)[0]
    if pattern is None:
        return stem or None
    match = pattern.search(stem)
    return (match.group(1 if pattern.groups else 0) or None) if match else None


def read_table(uri: str) -> Iterator[tuple[str, str | None]]:
    """Yield the image's URI and label for each row of a CSV or Parquet table with columns `path` and `text`.

    Paths are relative to the table; absolute ones and URIs stay as they are. Labels are text: "007" stays "007". A row
    without a path yields the table's URI with the row's number, from 1, and no label. Raises InputError if the table is
    absent, cannot be read or lacks a column.
    """
    uri = filesystem.absolute(uri)
    try:
        data = filesystem.read(uri)
    except OSError as error:
        raise InputError(f"the table {uri} cannot be read: {error.strerror or error}") from error
    folder = uri.rpartition("/")[0]
    if data[:4] == b"PAR1":
        try:
            table = pq.read_table(io.BytesIO(data))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"the table {uri} is no readable Parquet: {error}") from error
        _check_columns(uri, table.column_names)
        rows = list(zip(table["path"].to_pylist(), table["text"].to_pylist(), strict=True))
    else:
        try:
            reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
            _check_columns(uri, list(reader.fieldnames or []))
            rows = [(row["path"], row["text"]) for row in reader]
        except UnicodeDecodeError:
            raise InputError(f"the table {uri} is neither Parquet nor CSV in UTF-8") from None
        except csv.Error as error:
            raise InputError(f"the table {uri} is no readable CSV: {error}") from error
    for number, (path, text) in enumerate(rows, start=1):
        label = None if text is None or text == "" else str(text)
        if not path:
            yield f"{uri}#row-{number}", None
        elif path.startswith("/") or "://" in path:
            yield filesystem.absolute(path), label
        else:
            yield filesystem.join(folder, posixpath.normpath(path)), label


def _check_columns(uri: str, names: list[str]) -> None:
    for name in ("path", "text"):
        if name not in names:
            raise InputError(f"the table {uri} has no column {name!r}; it has {', '.join(names) or 'none'}")
