"""A job at work on a table of predictions, and what readers see of the table."""

import datetime
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.job import open_table
from captcha_ray.predictions import schema
from captcha_ray.predictions.table import (
    FOOTER,
    STAGED_SCHEMA,
    Committed,
    Counts,
    Run,
)
from captcha_ray.storage import filesystem, parquet

MODEL, OTHER = "a" * 64, "b" * 64
NOW = datetime.datetime(2026, 11, 21, 3, 4, 5, 678901, datetime.UTC)
DATES = r"(\d{4})-(\d\d)-(\d\d)"

Object = tuple[str, str]
"""(uri, etag)."""


def objects(*names: str, etag: str = "1") -> list[Object]:
    return [(f"s3://images/{name}", etag) for name in names]


FIVE = objects("2026-11-20/a", "2026-11-20/b", "2026-11-21/c", "2026-11-21/d", "e")


def made(uri: str, etag: str, model: str = MODEL, error: str | None = None) -> dict[str, Any]:
    """A row as a worker stages it."""
    ok = error is None
    return {
        "uri": uri,
        "etag": etag,
        "size": len(uri),
        "last_modified": NOW,
        "text": uri[-1] if ok else None,
        "confidence": 0.5 if ok else None,
        "char_confidence": [0.5, 0.75] if ok else None,
        "status": "ok" if ok else "error",
        "error": error,
        "model_id": model,
        "predicted_at": NOW,
    }


class Writer:
    """A job at work on a table. errors: the sentences of objects that cannot be read, by URI."""

    def __init__(self, out: str, model: str = MODEL, **changes: Any) -> None:
        self._spool = Path(tempfile.mkdtemp(dir=os.environ["SPOOLS"]))
        self.model = model
        self.table = open_table(InferConfig(out=out, **changes), model, self._spool)
        self.adopted = self.table.open()
        self.blocks = [self.table.adopted_block] if self.adopted.total else []

    def plan(self, listed: list[Object], **changes: Any) -> list[Object]:
        """Return what of a listing is to be read, sorted. changes: to the size and date it says."""
        source, path = self._spool / "listed.parquet", self._spool / "todo.parquet"
        rows = [{"uri": uri, "etag": etag, "size": len(uri), "last_modified": NOW, **changes} for uri, etag in listed]
        pq.write_table(pa.Table.from_pylist(rows, schema.LISTING_SCHEMA), source)
        count = self.table.plan(source, path)
        found = pq.read_table(path)
        assert found.schema.names == schema.LISTING_SCHEMA.names
        assert len(found) == count
        return sorted(zip(found["uri"].to_pylist(), found["etag"].to_pylist(), strict=True))

    def stage(self, read: list[Object], errors: dict[str, str] | None = None, folder: str = "") -> str:
        """URI of a new block of this attempt, or in another's folder."""
        uri = filesystem.join(folder or self.table.attempt, f"block-{len(self.blocks):06d}.staged")
        rows = [made(uri, etag, self.model, (errors or {}).get(uri)) for uri, etag in read]
        parquet.write(uri, pa.Table.from_pylist(rows, STAGED_SCHEMA))
        return uri

    def commit(self) -> Committed:
        """Commits all that is staged."""
        committed = self.table.commit(self.blocks, lambda counts: {"counts": counts.to_dict(), "ünï": 1})
        self.blocks = []
        return committed

    def read(self, pending: list[Object], errors: dict[str, str] | None = None, size: int = 2) -> Committed:
        """Stages blocks of `size` and commits every other time, as a night of several runs does."""
        committed = Committed()
        for start in range(0, len(pending), size):
            self.blocks.append(self.stage(pending[start : start + size], errors))
            if len(self.blocks) == 2:
                committed += self.commit()
        return committed + self.commit() if self.blocks else committed

    def night(self, listed: list[Object], errors: dict[str, str] | None = None, size: int = 2) -> Committed:
        """A whole night."""
        committed = self.read(self.plan(listed), errors, size)
        self.table.close()
        return committed


def arrow(out: str) -> pa.Table:
    """All that a plain reader sees; an empty table where there is no row yet."""
    disk, path = pyarrow.fs.LocalFileSystem(), out
    if filesystem.is_remote(out):
        endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
        disk = pyarrow.fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1")
        path = out.removeprefix("s3://")
    if not any(name.endswith(".parquet") for name in filesystem.list_files(out)):
        return schema.PREDICTION_SCHEMA.empty_table()
    return pyarrow.dataset.dataset(path, filesystem=disk, partitioning="hive").to_table()


def seen(out: str) -> Counter[Object]:
    """Count how many rows each object has."""
    found = arrow(out)
    return Counter(zip(found["uri"].to_pylist(), found["etag"].to_pylist(), strict=True))


def once(listed: list[Object], times: int = 1) -> Counter[Object]:
    return Counter(dict.fromkeys(listed, times))


def names(out: str) -> list[str]:
    """Files of the table, without those of a job that is at work."""
    return [name for uri in filesystem.list_files(out) if not (name := uri.removeprefix(f"{out}/")).startswith("_")]


def check_whole(out: str, expected: Counter[Object]) -> None:
    """The table holds what it should, and nothing that is half done or left over."""
    assert seen(out) == expected
    files = [uri.removeprefix(f"{out}/") for uri in filesystem.list_files(out)]
    runs = [run for name in files if (run := Run.parse(name))]
    assert sorted(files) == sorted(f"{run.folder}/{name}" for run in runs for name in PARTS)
    for run in runs:
        data = filesystem.read(filesystem.join(out, run.file))
        footer = pq.read_schema(pa.BufferReader(data)).metadata[FOOTER]
        manifest = json.loads(filesystem.read(filesystem.join(out, f"{run.folder}/_manifest.json")))
        assert json.loads(footer) == manifest
        rows = pq.read_table(pa.BufferReader(data))
        assert manifest["run_id"] == run.run_id == set(rows["run_id"].to_pylist()).pop()
        assert manifest["counts"] == Counts.of(rows).to_dict()
    for partition in {run.partition for run in runs}:
        numbers = sorted(run.number for run in runs if run.partition == partition)
        assert numbers == list(range(1, len(numbers) + 1))


PARTS = ("_keys.index", "_manifest.json", "predictions.parquet")
