"""Keep the table of predictions: what is committed, what is staged, what is left to do, and the act that commits.

    run=000001/predictions.parquet              committed, never changed again
    run=000001/_manifest.json  _keys.index      follow, and can be made from it
    date=2026-11-20/run=000001/...              the same, one sequence of runs per date
    _staging/<work>/<attempt>/block-*.staged    recognized and not yet committed
    _lease.json                                 the job at work

A run is one Parquet object, written under the next free number only if nothing is there: that write is the commit.
Plain readers see a whole run or none of it, on a disk and in a bucket. Of two writers, one finds the number taken,
drops the rows that the other has committed, and takes the next number. Staged names do not end in `.parquet`, so no
reader takes them for rows. What is done is read from the key indexes, see `keys`.
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import hashlib
import json
import re
import secrets
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from captcha_ray import console
from captcha_ray.predictions import keys, plan, schema
from captcha_ray.predictions.plan import Done
from captcha_ray.runs.directory import read_json, to_json
from captcha_ray.storage import filesystem, parquet

NUM_THREADS = 8
"""Objects of the table that are read at once."""

GROUP_ROWS = 131_072
"""Rows per row group of a committed file."""

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
        return f"{self.folder}/{schema.FILE}"

    @property
    def run_id(self) -> str:
        """Return its id in rows."""
        date = self.partition.removeprefix("date=")
        return f"{date}/{self.number:06d}" if date else f"{self.number:06d}"

    @classmethod
    def of_id(cls, run_id: str) -> "Run | None":
        """Return the run of an id; None for another text."""
        found = re.fullmatch(r"(?:(\d{4}-\d\d-\d\d|unknown)/)?(\d{6,7})", run_id)  # eight digits are a date
        return cls(f"date={found[1]}" if found[1] else "", int(found[2])) if found else None

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

    attempt: URI of the folder of what it stages. others_begun: whether other work was begun and not ended.
    """

    def __init__(
        self,
        out: str,
        model_id: str,
        spool: Path,
        *,
        work: str,
        skip: str = "same-model",
        retry_errors: bool = False,
        date_pattern: str = "",
    ) -> None:
        """Describe a job.

        Args:
            out: URI of the table.
            model_id: Fingerprint of the network.
            spool: Local scratch folder.
            work: Name of the work, the same for who may take over what this job leaves staged.
            skip: Of `InferConfig`, as are the following.
            retry_errors: See there.
            date_pattern: See there.
        """
        self._out = out
        self._model_id = model_id
        self._spool = spool
        self._skip, self._retry_errors, self._date_pattern = skip, retry_errors, date_pattern
        self._runs: dict[Run, int] = {}  # and the bytes of its rows' file
        self._work = filesystem.join(out, "_staging", work)
        self.attempt = filesystem.join(self._work, f"attempt-{secrets.token_hex(8)}")
        self._before: set[Run] = set()
        self._adopted = spool / "adopted.parquet"
        self.others_begun = False

    def open(self) -> Counts:
        """Take over what interrupted attempts at the same work have staged, and return its counts.

        Completes what a kill between a commit and its manifest has left undone.
        """
        listed = (entry for page in filesystem.list_pages(self._out) for entry in page)
        names = {entry.uri.removeprefix(f"{self._out}/"): entry.size for entry in listed}
        self._runs = {run: size for name, size in names.items() if (run := Run.parse(name))}
        for run in self._runs:
            if f"{run.folder}/_manifest.json" not in names:
                self._write_manifest(run, read_manifest(self._out, run))
        self._index([run for run in sorted(self._runs) if f"{run.folder}/{keys.NAME}" not in names])
        for name in names:
            if re.search(r"(^|/)\.[^/]+\.[0-9a-f]{32}\.tmp$", name):  # a write that was interrupted
                filesystem.delete(self._uri(name))
        self._before = self._begin()
        begun = (re.fullmatch(rf"_staging/([^/]+)/{re.escape(BEGUN)}", name) for name in names)
        self.others_begun = any(found and found[1] != self._work.rpartition("/")[2] for found in begun)
        left = [self._uri(name) for name in names if self._uri(name).startswith(f"{self._work}/attempt-")]
        adopted = self._adopt([uri for uri in left if uri.endswith(BLOCK)])
        filesystem.delete(*left)
        return adopted

    def _begin(self) -> set[Run]:
        """Return the runs that were committed when this work began, before any interruption."""
        marker = filesystem.join(self._work, BEGUN)
        if filesystem.exists(marker):
            return {run for file in read_json(marker) if (run := Run.parse(file))}
        filesystem.write(marker, to_json(sorted(run.file for run in self._runs)))
        return set(self._runs)

    def _index(self, runs: list[Run]) -> None:
        """Write the indexes of runs that have none: of an earlier version's, or where a kill came between."""
        if runs:
            with console.progress("index", len(runs), "runs") as shown:
                for run in runs:
                    keys.build(self._uri(run.folder), self._runs[run], self._spool)
                    shown(1)

    def _adopt(self, blocks: list[str]) -> Counts:
        """Merge others' blocks into one: each object once, without those that were committed meanwhile."""
        blocks = [path for path in self._copies(blocks) if _is_whole(path)]
        if not blocks:
            return Counts()
        plan.write_unique(blocks, self._adopted, self._done(staged=None, failed=None))
        counts = Counts.of(pq.read_table(self._adopted, columns=["status", "error"]))
        if counts.total:
            filesystem.write(self.adopted_block, self._adopted.read_bytes())
        return counts

    @property
    def adopted_block(self) -> str:
        """Return the URI of the block of rows from earlier attempts."""
        return filesystem.join(self.attempt, f"adopted{BLOCK}")

    @property
    def _runs_that_count(self) -> list[Run]:
        """Return the runs by which an object is done: all of them, or only this work's own if it repeats objects."""
        repeats = self._retry_errors or self._skip == "never"
        return [run for run in self._runs if not (repeats and run in self._before)]

    @property
    def has_none_done(self) -> bool:
        """Return whether every listed object is to be recognized. The table must be open."""
        return not (self._runs_that_count or self._adopted.exists() or self._retry_errors)

    def plan(self, listed: Path, path: Path) -> int:
        """Write the rows of a listing that are still to be recognized to `path`, and return how many."""
        failed = self._sizes([run for run in self._runs if run in self._before]) if self._retry_errors else None
        staged = self._adopted if self._adopted.exists() else None
        return plan.write_left(listed, path, self._done(staged, failed))

    def _done(self, staged: Path | None, failed: dict[str, int] | None) -> Done:
        """Return by what an object is done. See `Done`."""
        model_id = self._model_id if self._skip != "any-model" else ""
        return Done(self._sizes(self._runs_that_count), staged, failed, model_id, self._spool)

    def _sizes(self, runs: list[Run]) -> dict[str, int]:
        """Return the sizes of the files of runs by the URIs of their folders."""
        return {self._uri(run.folder): self._runs[run] for run in sorted(runs)}

    def _copies(self, blocks: list[str]) -> list[str]:
        """Return local paths of blocks, for which DuckDB takes no other folder's name for a pattern."""

        def copy(block: str) -> str:
            path = self._spool / hashlib.sha256(block.encode()).hexdigest()
            if filesystem.is_remote(block):
                filesystem.copy(block, path)
            else:
                path.symlink_to(block)
            return str(path)

        with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
            return list(pool.map(copy, blocks))

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
        filesystem.delete(*blocks)
        return committed

    def _commit_one(self, partition: str, rows: pa.Table, describe: Callable[[Counts], dict[str, Any]]) -> Committed:
        number = max((run.number for run in self._runs if run.partition == partition), default=0)
        while len(rows):
            number += 1
            run, counts = Run(partition, number), Counts.of(rows)
            manifest = {"run_id": run.run_id, **describe(counts)}
            data = _encode(rows, run, manifest)
            try:
                filesystem.write(self._uri(run.file), data, exclusive=True)
            except FileExistsError:  # another job has committed meanwhile, maybe some of the same objects
                rows = self._without(rows, parquet.read(self._uri(run.file), ["uri", "etag", "model_id"]))
                continue
            self._runs[run] = len(data)
            self._write_manifest(run, manifest)
            keys.write(self._uri(run.folder), rows, len(data), self._spool)
            return Committed([run], counts)
        return Committed()

    def _without(self, rows: pa.Table, others: pa.Table) -> pa.Table:
        """Return the rows whose object is not among others' rows of the same network."""
        if self._skip != "any-model":
            others = others.filter(pc.equal(others["model_id"], self._model_id))
        own, taken = (pc.binary_join_element_wise(t["uri"], t["etag"], "\n") for t in (rows, others))
        return rows.filter(pc.invert(pc.is_in(own, value_set=taken)))

    def _partitions(self, rows: pa.Table) -> pa.Array:
        """Return the partition of each row."""
        if not self._date_pattern:
            return pa.repeat("", len(rows))
        date = re.compile(self._date_pattern)
        return pa.array([_partition_of(uri, date) for uri in rows["uri"].to_pylist()], pa.string())

    def _write_manifest(self, run: Run, manifest: dict[str, Any]) -> None:
        filesystem.write(self._uri(f"{run.folder}/_manifest.json"), to_json(manifest))

    def _uri(self, name: str) -> str:
        return filesystem.join(self._out, name)

    def give_up(self) -> None:
        """Forget this work after a refusal if nothing was recognized.

        The next job then counts later runs as well.
        """
        staged = (uri for uri in filesystem.list_files(self._work) if uri.endswith(BLOCK))
        if set(self._runs) == self._before and not any(staged):
            self.close()

    def close(self) -> None:
        """Mark the work as complete: nothing of it stays staged."""
        filesystem.delete(*filesystem.list_files(self._work))
        filesystem.prune(filesystem.join(self._out, "_staging"))


def _encode(rows: pa.Table, run: Run, manifest: dict[str, Any]) -> memoryview:
    """Return rows as a Parquet file with its manifest, so that one act commits both."""
    columns = [
        pa.repeat(pa.scalar(run.run_id), len(rows)) if name == "run_id" else rows[name]
        for name in schema.PREDICTION_SCHEMA.names
    ]
    table = pa.table(columns, schema=schema.PREDICTION_SCHEMA.with_metadata({FOOTER: to_json(manifest)}))
    return parquet.encode(table, row_group_size=GROUP_ROWS)


def read_manifest(out: str, run: Run) -> dict[str, Any]:
    """Return the manifest of a run of the table `out`, from the file that commits it.

    Raises FileNotFoundError if there is no such run, and DamagedError if its file makes no sense.
    """
    uri = filesystem.join(out, run.file)
    with parquet.naming_damage(uri), parquet.open_file(uri) as file:
        manifest: dict[str, Any] = json.loads(file.schema_arrow.metadata[FOOTER])
    return manifest


def _is_whole(path: str) -> bool:
    """Return whether a staged block can be read; a power failure may have cut it off."""
    try:
        with parquet.naming_damage(path):
            pq.read_metadata(path)
    except parquet.DamagedError:
        return False
    return True


def _partition_of(uri: str, date: re.Pattern[str]) -> str:
    """Return the Hive-style folder of the last valid date in a URI."""
    for year, month, day in reversed(date.findall(uri)):
        with contextlib.suppress(ValueError):
            return f"date={datetime.date(int(year), int(month), int(day))}"
    return NO_DATE
