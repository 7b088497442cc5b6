"""Keep the table of predictions: what is committed, what is staged, what is left to do, and the act that commits.

    run=000001/predictions.parquet  run=000001/_manifest.json      committed, never changed again
    date=2026-11-20/run=000001/...                                 the same, one sequence of runs per date
    _staging/<work>/<attempt>/block-*.staged                       recognized and not yet committed
    _lease.json                                                    the job at work

A run is one Parquet object, written under the next free number only if nothing is there: that write is the commit.
Plain readers see a whole run or none of it, on a disk and in a bucket. Of two writers, one finds the number taken,
drops the rows that the other has committed, and takes the next number. Staged names do not end in `.parquet`, so no
reader takes them for rows. What is done is read from the committed rows themselves.
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import hashlib
import io
import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from captcha_ray.inference import listing, schema
from captcha_ray.inference.config import InferConfig
from captcha_ray.runs.directory import read_json, to_json
from captcha_ray.storage import filesystem, parquet

NUM_THREADS = 8
"""Objects of the table that are read at once."""

NUM_COPY_THREADS = 2
"""Committed files of a bucket that are fetched at once; each is held in memory."""

GROUP_ROWS = 131_072
"""Rows per row group of a committed file."""

KEY_COLUMNS = ["uri", "etag", "size", "last_modified", "model_id", "status"]
"""Columns that decide whether an object is done."""

SAME_OBJECT = """done.uri = listed.uri AND CASE WHEN listed.etag <> '' THEN done.etag = listed.etag
    ELSE coalesce(done.size = listed.size, true) AND coalesce(done.last_modified >= listed.last_modified, true) END"""
"""SQL: whether a row is of the object as listed. Without an etag in the listing, size and date decide."""

STAGED_SCHEMA = pa.schema([field for field in schema.PREDICTION_SCHEMA if field.name != "run_id"])
"""Staged rows: predictions that no run has committed yet."""

NO_DATE = "date=unknown"
"""Partition of rows whose URI holds no date. Not Hive's name for null: pandas cannot read a table that has it."""

BLOCK = ".staged"
"""Suffix of staged blocks."""

BEGUN = "begun.json"
"""Holds the runs that were there when the work began, before any interruption."""

FOOTER = b"captcha_ray.manifest"
"""Key of the manifest in the footer of a committed file."""


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """A committed run. partition: "" or `date=YYYY-MM-DD`."""

    partition: str
    number: int

    @property
    def folder(self) -> str:
        """Return its folder, relative to the table."""
        return "/".join([*([self.partition] if self.partition else []), f"run={self.number:06d}"])

    @property
    def file(self) -> str:
        """Return the file of its rows, relative to the table."""
        return f"{self.folder}/predictions.parquet"

    @property
    def run_id(self) -> str:
        """Return its id in rows."""
        date = self.partition.removeprefix("date=")
        return f"{date}/{self.number:06d}" if date else f"{self.number:06d}"

    @classmethod
    def parse(cls, name: str) -> "Run | None":
        """Return the run of a file's name relative to the table; None for other files."""
        found = re.fullmatch(r"(?:(date=[^/]+)/)?run=(\d+)/predictions\.parquet", name)
        return cls(found[1] or "", int(found[2])) if found else None


@dataclasses.dataclass
class Counts:
    """Rows of a run. uncertain: predictions with less confidence than required. errors: by class."""

    ok: int = 0
    uncertain: int = 0
    errors: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Return the number of all rows."""
        return self.ok + self.uncertain + self.num_errors

    @property
    def num_errors(self) -> int:
        """Return the number of rows without a prediction."""
        return sum(self.errors.values())

    @classmethod
    def of(cls, rows: pa.Table) -> "Counts":
        """Count rows with columns status and error."""
        bad = rows.filter(pc.equal(rows["status"], "error"))["error"].to_pylist()
        uncertain = pc.sum(pc.equal(rows["status"], "uncertain")).as_py() or 0
        kinds = Counter(sentence.partition(":")[0] for sentence in bad)
        return cls(len(rows) - uncertain - len(bad), uncertain, kinds)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.ok + other.ok, self.uncertain + other.uncertain, self.errors + other.errors)

    def to_dict(self) -> dict[str, Any]:
        """Return what a manifest holds."""
        errors = dict(self.errors.most_common())
        return {"objects": self.total, "ok": self.ok, "uncertain": self.uncertain, "errors": errors}


@dataclasses.dataclass
class Committed:
    """Committed runs and the rows in them."""

    runs: list[Run] = dataclasses.field(default_factory=list)
    counts: Counts = dataclasses.field(default_factory=Counts)

    def __add__(self, other: "Committed") -> "Committed":
        return Committed(self.runs + other.runs, self.counts + other.counts)


class PredictionTable:
    """The table below one URI, as a job with one network works on it.

    spool: a local scratch folder. attempt: URI of the folder for what this process stages.
    """

    def __init__(self, config: InferConfig, model_id: str, spool: Path) -> None:
        self._config = config
        self._model_id = model_id
        self._spool = spool
        self._runs: set[Run] = set()
        names = (
            "images", "match", "skip", "retry_errors", "max_bytes", "max_pixels", "max_stretch", "min_confidence",
        )  # fmt: skip
        decisive = [model_id, *(getattr(config, name) for name in names)]
        task = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]
        self._task = filesystem.join(config.out, "_staging", task)
        self.attempt = filesystem.join(self._task, f"attempt-{secrets.token_hex(8)}")
        self._before: set[Run] = set()
        self._adopted = spool / "adopted.parquet"

    def open(self) -> Counts:
        """Take over what interrupted attempts at the same work have staged, and return its counts.

        Completes what a kill between a commit and its manifest has left undone.
        """
        names = {uri.removeprefix(f"{self._config.out}/") for uri in filesystem.list_files(self._config.out)}
        self._runs = {run for name in names if (run := Run.parse(name))}
        for run in self._runs:
            if f"{run.folder}/_manifest.json" not in names:
                self._write_manifest(run, _footer(filesystem.read(self._uri(run.file))))
        for name in names:
            if re.search(r"(^|/)\.[^/]+\.[0-9a-f]{32}\.tmp$", name):  # a write that was interrupted
                filesystem.delete(self._uri(name))
        self._before = self._begin()
        left = [self._uri(name) for name in names if self._uri(name).startswith(f"{self._task}/attempt-")]
        adopted = self._adopt([uri for uri in left if uri.endswith(BLOCK)])
        self.discard(left)
        return adopted

    def _begin(self) -> set[Run]:
        """Return the runs that were committed when this work began, before any interruption."""
        marker = filesystem.join(self._task, BEGUN)
        if filesystem.exists(marker):
            return {run for file in read_json(marker) if (run := Run.parse(file))}
        filesystem.write(marker, to_json(sorted(run.file for run in self._runs)))
        return set(self._runs)

    def _adopt(self, blocks: list[str]) -> Counts:
        """Merge others' blocks into one: each object once, without those that were committed meanwhile."""
        if not blocks:
            return Counts()
        blocks = [path for path in self._copies(blocks, None) if _is_whole(path)]
        if not blocks:
            return Counts()
        with listing.connect(self._spool) as database:
            database.execute(
                f"""COPY (WITH done AS ({self._done(self._runs_that_count)})
                    SELECT DISTINCT ON (uri, etag) * FROM {_sql_table(blocks)} AS staged WHERE NOT EXISTS
                        (FROM done WHERE done.uri = staged.uri AND done.etag = staged.etag)
                ) TO '{listing.quoted(self._adopted)}' (FORMAT parquet, COMPRESSION zstd)"""
            )
        counts = Counts.of(pq.read_table(self._adopted, columns=["status", "error"]))
        if counts.total:
            filesystem.write(self.adopted_block, self._adopted.read_bytes())
        return counts

    @property
    def adopted_block(self) -> str:
        """Return the URI of the block of rows from earlier attempts."""
        return filesystem.join(self.attempt, f"adopted{BLOCK}")

    @property
    def _runs_that_count(self) -> set[Run]:
        """Return the runs by which an object is done: all of them, or only this work's own if it repeats objects."""
        return self._runs - self._before if self._config.retry_errors or self._config.skip == "never" else self._runs

    @property
    def has_none_done(self) -> bool:
        """Return whether every listed object is to be recognized. The table must be open."""
        return not (self._runs_that_count or self._adopted.exists() or self._config.retry_errors)

    def plan(self, listed: Path, path: Path) -> int:
        """Write the rows of a listing that are still to be recognized to `path`, and return how many.

        DuckDB anti-joins the listing with the committed and adopted rows; it partitions both by hash and spills what
        exceeds its memory.
        """
        done = [self._done(self._runs_that_count)]
        if self._adopted.exists():
            done.append(f"SELECT uri, etag, size, last_modified, status FROM {_sql_table([str(self._adopted)])}")
        failed = f"AND EXISTS (FROM failed AS done WHERE {SAME_OBJECT})" if self._config.retry_errors else ""
        with listing.connect(self._spool) as database:
            database.execute(
                f"""COPY (
                    WITH done AS ({" UNION ALL ".join(done)}),
                    failed AS (SELECT uri, etag, any_value(size) AS size, max(last_modified) AS last_modified
                               FROM ({self._done(self._before)})
                               GROUP BY uri, etag HAVING bool_and(status = 'error'))
                    FROM {_sql_table([str(listed)])} AS listed
                    WHERE NOT EXISTS (FROM done WHERE {SAME_OBJECT}) {failed}
                ) TO '{listing.quoted(path)}' (FORMAT parquet, COMPRESSION zstd)"""
            )
        num_rows: int = pq.read_metadata(path).num_rows
        return num_rows

    def _done(self, settling: set[Run]) -> str:
        """Return SQL for uri, etag, size, date and status of what committed runs hold."""
        if not settling:
            nothing = "NULL::BIGINT AS size, NULL::TIMESTAMPTZ AS last_modified"
            return f"SELECT '' AS uri, '' AS etag, {nothing}, '' AS status WHERE false"
        files = self._copies([self._uri(run.file) for run in sorted(settling)], KEY_COLUMNS)
        this = f"WHERE model_id = '{self._model_id}'" if self._config.skip != "any-model" else ""
        return f"SELECT uri, etag, size, last_modified, status FROM {_sql_table(files)} {this}"

    def _copies(self, uris: list[str], columns: list[str] | None) -> list[str]:
        """Return local paths of Parquet files; those of a bucket are copied here, with the wanted columns only.

        Paths are below the spool: DuckDB would take brackets and stars in another folder's name for a pattern.
        """

        def copy(uri: str) -> str:
            path = self._spool / hashlib.sha256(f"{uri} {columns}".encode()).hexdigest()
            if path.exists():
                return str(path)
            if filesystem.is_remote(uri):
                pq.write_table(parquet.read(uri, columns), path, compression="zstd")
            else:
                path.symlink_to(uri)
            return str(path)

        with concurrent.futures.ThreadPoolExecutor(NUM_COPY_THREADS) as pool:
            return list(pool.map(copy, uris))

    def commit(self, blocks: list[str], describe: Callable[[Counts], dict[str, Any]]) -> Committed:
        """Commit staged blocks as a run, or one per date, and remove them. The rows are held in memory meanwhile.

        describe: returns the manifest of a run with such counts.
        """
        with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
            rows = pa.concat_tables(table.cast(STAGED_SCHEMA) for table in pool.map(parquet.read, blocks))
        partitions = self._partitions(rows)
        committed = Committed()
        for partition in sorted(pc.unique(partitions).to_pylist()):
            committed += self._commit_one(partition, rows.filter(pc.equal(partitions, partition)), describe)
        self.discard(blocks)
        return committed

    def _commit_one(self, partition: str, rows: pa.Table, describe: Callable[[Counts], dict[str, Any]]) -> Committed:
        number = max((run.number for run in self._runs if run.partition == partition), default=0)
        while len(rows):
            number += 1
            run, counts = Run(partition, number), Counts.of(rows)
            manifest = {"run_id": run.run_id, **describe(counts)}
            self._runs.add(run)
            try:
                filesystem.write(self._uri(run.file), _encode(rows, run, manifest), exclusive=True)
            except FileExistsError:  # another job has committed meanwhile, maybe some of the same objects
                rows = self._without(rows, parquet.read(self._uri(run.file), KEY_COLUMNS))
                continue
            self._write_manifest(run, manifest)
            return Committed([run], counts)
        return Committed()

    def _without(self, rows: pa.Table, others: pa.Table) -> pa.Table:
        """Return the rows whose object is not among others' rows of the same network."""
        if self._config.skip != "any-model":
            others = others.filter(pc.equal(others["model_id"], self._model_id))
        keys, taken = (pc.binary_join_element_wise(t["uri"], t["etag"], "\n") for t in (rows, others))
        return rows.filter(pc.invert(pc.is_in(keys, value_set=taken)))

    def _partitions(self, rows: pa.Table) -> pa.Array:
        """Return the partition of each row."""
        if not self._config.date_pattern:
            return pa.repeat("", len(rows))
        date = re.compile(self._config.date_pattern)
        return pa.array([_partition_of(uri, date) for uri in rows["uri"].to_pylist()], pa.string())

    def _write_manifest(self, run: Run, manifest: dict[str, Any]) -> None:
        filesystem.write(self._uri(f"{run.folder}/_manifest.json"), to_json(manifest))

    def _uri(self, name: str) -> str:
        return filesystem.join(self._config.out, name)

    def discard(self, uris: Iterable[str]) -> None:
        """Remove what was staged."""
        with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(filesystem.delete, uris))

    def give_up(self) -> None:
        """Forget this work after a refusal if nothing was recognized.

        The next job then counts later runs as well.
        """
        if self._runs == self._before and not any(uri.endswith(BLOCK) for uri in filesystem.list_files(self._task)):
            self.close()

    def close(self) -> None:
        """Mark the work as complete: nothing of it stays staged."""
        self.discard(filesystem.list_files(self._task))
        filesystem.prune(filesystem.join(self._config.out, "_staging"))


def _encode(rows: pa.Table, run: Run, manifest: dict[str, Any]) -> memoryview:
    """Return rows as a Parquet file with its manifest, so that one act commits both."""
    columns = [
        pa.repeat(pa.scalar(run.run_id), len(rows)) if name == "run_id" else rows[name]
        for name in schema.PREDICTION_SCHEMA.names
    ]
    table = pa.table(columns, schema=schema.PREDICTION_SCHEMA.with_metadata({FOOTER: to_json(manifest)}))
    return parquet.encode(table, row_group_size=GROUP_ROWS)


def _footer(data: bytes) -> dict[str, Any]:
    """Return the manifest in a committed file."""
    manifest: dict[str, Any] = json.loads(pq.read_schema(io.BytesIO(data)).metadata[FOOTER])
    return manifest


def _sql_table(paths: list[str]) -> str:
    """Return SQL that reads local Parquet files, without partition columns from the names of folders above them."""
    names = ", ".join(f"'{listing.quoted(path)}'" for path in paths)
    return f"read_parquet([{names}], hive_partitioning = false)"


def _is_whole(path: str) -> bool:
    """Return whether a staged block can be read; a power failure may have cut it off."""
    try:
        pq.read_metadata(path)
    except pa.ArrowException:
        return False
    return True


def _partition_of(uri: str, date: re.Pattern[str]) -> str:
    """Return the Hive-style folder of the last valid date in a URI."""
    for year, month, day in reversed(date.findall(uri)):
        with contextlib.suppress(ValueError):
            return f"date={datetime.date(int(year), int(month), int(day))}"
    return NO_DATE
