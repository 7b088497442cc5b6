"""Recognize a bucket's new images on all workers: list, skip what is done, fetch, decode, recognize, commit.

A worker handles a block of objects and returns only how many rows it has staged; a block that is repeated after a
worker's death is staged once, under its number. The driver holds a page of the listing, parts of the plan and of the
key indexes, or the rows of a commit, never the bucket. Does not train, does not know labels.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from captcha_ray import console
from captcha_ray.engines import choice
from captcha_ray.errors import InputError, JobError
from captcha_ray.inference import block_plan, listing
from captcha_ray.inference.block import BATCH_SIZE, BlockTask
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.pipeline import Pipeline, is_connected, shared_with_nodes
from captcha_ray.inference.source import Source, resolve
from captcha_ray.inference.watchdog import Watch
from captcha_ray.models import fingerprint
from captcha_ray.predictions.table import Committed, Counts, PredictionTable, Run
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.runs.environment import environment
from captcha_ray.runtime.telemetry import Telemetry
from captcha_ray.storage import filesystem, objectstore, parquet
from captcha_ray.storage.lock import Lease

T = TypeVar("T")

STAGES = ("fetch", "decode", "recognize", "write")
"""Stages of a worker, each of which handles every object and so has a rate; seconds are summed over workers."""

READER = "captcha_ray.inference.block_reader.BlockReader"
"""Class that recognizes; by its name, so that only who recognizes imports an engine."""


@dataclasses.dataclass(frozen=True)
class NightSummary:
    """Summary of a job.

    skipped: listed objects that were done. adopted: objects that an interrupted job had recognized. seconds: of this
    job, from start to end. engines: what workers have recognized with.
    """

    out: str
    listed: int
    skipped: int
    adopted: int
    committed: Committed
    seconds: float
    engines: Sequence[str] = ()

    def describe(self) -> str:
        """Return a line for a person."""
        counts = self.committed.counts
        errors = ", ".join(f"{count:,} {kind}" for kind, count in counts.errors.most_common())
        uncertain = f"{counts.uncertain:,} uncertain, " if counts.uncertain else ""
        total = counts.total
        where = ", ".join(run.folder for run in self.committed.runs[:3])
        engines = " and ".join(self.engines)
        more = f" and {len(self.committed.runs) - 3:,} more" if len(self.committed.runs) > 3 else ""
        return (
            f"{total:,} of {self.listed:,} objects done: {counts.ok:,} ok, {uncertain}{counts.num_errors:,} errors"
            f"{f' ({errors})' if errors else ''}; {self.skipped:,} skipped as done; "
            f"{f'committed as {where}{more} in' if where else 'nothing to add to'} {self.out}; "
            f"{self.seconds:.1f} s, {max(total - self.adopted, 0) / self.seconds:,.0f} objects/s"
            f"{f' with {engines}' if engines else ''}"
        )


def _warn_of_unfinished(run: str) -> None:
    if fingerprint.shared(run) and RunDirectory(run).is_unfinished:
        console.warn(
            f"the training of {run} has not ended: its best network so far recognizes, with confidences that may be "
            f"far off, and the one that it ends with will recognize all objects again"
        )


def transcribe(config: InferConfig, started: float, reader: str = READER) -> NightSummary:
    """Recognize what is new and commit it, together with what an interrupted job has staged.

    Ray is started only if there is more to recognize than this process can in the seconds that Ray takes to start.

    Args:
        config: Of the job.
        started: `time.monotonic()` when the job began.
        reader: Name of the class that workers run.

    Raises:
        InputError: Images, network or table cannot be used, or another job is at work on the table.
        JobError: Too many errors, a stall, or workers that die again and again.
    """
    if config.endpoint_url:
        objectstore.use_endpoint(config.endpoint_url)
    config = dataclasses.replace(
        config,
        images=filesystem.absolute(config.images),
        run=fingerprint.absolute(config.run),
        out=filesystem.absolute(config.out),
    )
    source = resolve(config, datetime.date.today())
    for uri in source.uris:
        _check_apart(uri, config.out)
    spec, whole_id = fingerprint.load_spec_and_fingerprint(config.run)
    model_id = config.restriction.model_id(whole_id, spec)
    choice.check(config.run, config.engine, config.precision, "cuda" if config.use_gpu else "cpu")
    _warn_of_unfinished(config.run)
    with contextlib.ExitStack() as stack:
        if os.environ.get("RAY_ADDRESS"):  # a cluster says no before a listing of hours; a Ray of our own cannot
            from captcha_ray.runtime import capacity, ray_session  # noqa: PLC0415 -- imports Ray

            stack.enter_context(ray_session.connect())
            ray_session.check_shared(**shared_with_nodes(config, source))
            capacity.has_capacity(config.num_workers or 1, config.cpus_per_worker, config.use_gpu)
        spool = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="captcha_ray-")))
        lease = stack.enter_context(Lease(filesystem.join(config.out, "_lease.json")))
        return _Job(config, source, model_id, lease, spool, started, reader).run()


def _check_apart(source: str, out: str) -> None:
    for inner, outer in ((source, out), (out, source)):
        if f"{inner}/".startswith(f"{outer.rstrip('/')}/"):
            raise InputError(f"{inner} lies in {outer}; the table and the images must stand apart")


def open_table(config: InferConfig, model_id: str, spool: Path, dates: Sequence[str] = ()) -> PredictionTable:
    """Return the table of a job. Another job takes over from it if all is the same that decides what a row holds.

    dates: URIs of the days that are listed.
    """
    names = ("images", "match", "skip", "retry_errors", "max_bytes", "max_pixels", "max_stretch", "min_confidence")
    decisive = [model_id, *(getattr(config, name) for name in names)]
    chosen = {"dates": list(dates), "since": config.since, "start_after": config.start_after}
    decisive += [pair for pair in chosen.items() if pair[1]]  # nothing else, so that works of earlier versions go on
    work = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]
    options = {name: getattr(config, name) for name in ("skip", "retry_errors", "date_pattern")}
    return PredictionTable(config.out, model_id, spool, work=work, **options)


STORE_ERRORS = ("StoreError", "Denied")
"""Errors that say nothing about the file."""


class TooManyErrorsError(JobError):
    """More objects fail than the user allows."""


class _Job:
    """One call of `transcribe`, from the listing to the last commit."""

    def __init__(
        self,
        config: InferConfig,
        source: Source,
        model_id: str,
        lease: Lease,
        spool: Path,
        started: float,
        reader: str,
    ) -> None:
        self._config, self._source = config, source
        self._lease = lease
        self._spool = spool
        self._started = started
        self._table = open_table(config, model_id, spool, source.uris if source.is_dated else ())
        self._task = BlockTask(
            config.run,
            model_id,
            "cuda" if config.use_gpu else "cpu",
            config.engine,
            config.precision,
            self._table.attempt,
            objectstore.endpoint(),
            config.max_bytes,
            config.max_pixels,
            config.max_stretch,
            config.min_confidence,
            config.cpus_per_worker,
            config.restriction,
        )
        self._pipeline = Pipeline(config, source, self._task, reader)
        self._seconds: dict[str, float] = {}
        self._blocks: list[tuple[str, int]] = []  # and rows
        self._rows = self._errors = self._total = self._adopted = 0
        self._listed = self._skipped = 0
        self._passed = listing.Passed(0, 0)
        self._committed = Committed()
        self._telemetry = Telemetry("infer", config.out)
        self._measured = Counter[str]()  # seconds per stage that Prometheus knows

    def run(self) -> NightSummary:
        adopted = self._timed("resume", self._table.open)
        if adopted.total:
            console.say(f"{adopted.total:,} objects were recognized before an interruption and are kept")
            self._adopted = adopted.total
            self._add(self._table.adopted_block, adopted.total, adopted.num_errors)
        try:
            if self._table.others_begun and Run.of_id(self._config.since):
                raise InputError(
                    f"since is {self._config.since!r}, but a job on {self._config.out} did not end, and what it left "
                    "may be older; repeat its command first, or give a date"
                )
            with self._pipeline:
                pending = self._plan()
                self._total = adopted.total + pending
                if pending:
                    if said := choice.prepare(self._config.run, self._task.engine, self._task.device):
                        console.say(said)
                    sizes = self._pipeline.plan_blocks(math.ceil(pending / BATCH_SIZE))
                    todo = self._spool / "todo.parquet"
                    self._timed("plan", block_plan.write, self._task, block_plan.cut(todo, sizes))
                    todo.unlink()
                    self._recognize(len(sizes))
        except TooManyErrorsError:
            filesystem.delete(*filesystem.list_files(self._table.attempt))  # now that no worker adds to it
            self._table.give_up()
            raise
        except InputError:
            self._table.give_up()
            raise
        self._check_errors()
        self._commit()
        self._lease.check()
        self._table.close()
        seconds = time.monotonic() - self._started
        return NightSummary(
            self._config.out,
            self._listed,
            self._skipped,
            self._adopted,
            self._committed,
            seconds,
            self._pipeline.engines,
        )

    def _list(self, advance: Callable[[int], None]) -> None:
        where = self._spool / "listed.parquet"
        self._passed = self._timed("list", listing.write_listing, self._source, where, advance)

    def _plan(self) -> int:
        """Wait for the listing, write what is to be recognized to the spool, and return how many objects that is."""
        with console.progress("list", None, "objects") as shown:
            for count in Watch(self._list, self._config.stall_timeout_s, lambda: "list the images"):
                self._listed += count
                shown(count)
                if self._table.has_none_done:
                    self._pipeline.expect(self._listed)  # and the listing goes on meanwhile
        if not self._listed + self._passed.older:
            if not self._source.may_be_empty:
                raise InputError(self._source.describe_nothing())
            console.warn(self._source.describe_nothing())
        for number, what in zip(self._passed, ("hidden or system files", "older objects"), strict=True):
            if number:
                console.say(f"passed over: {number:,} {what}")
        listed = self._spool / "listed.parquet"
        num_rows = self._timed("plan", self._table.plan, listed, self._spool / "todo.parquet")
        listed.unlink()
        self._skipped = 0 if self._config.retry_errors else max(self._listed - num_rows - self._rows, 0)
        return num_rows

    def _recognize(self, num_blocks: int) -> None:
        """Let the workers recognize all blocks; commit whenever there are rows enough."""
        began = time.monotonic()
        with (
            console.progress("recognize", self._total - self._rows, "objects") as shown,
            contextlib.closing(self._pipeline.run(num_blocks, self._total - self._rows)) as finished,
        ):
            for block, rows, errors in finished:
                self._add(self._task.staged(block), rows, errors)
                if is_connected():
                    self._measure(rows, errors, time.monotonic() - began)
                shown(rows, f"{self._errors:,} errors" if self._errors else "")
                if self._rows >= self._config.objects_per_run and not self._may_fail():
                    self._commit()

    def _add(self, block: str, rows: int, errors: int) -> None:
        self._blocks.append((block, rows))
        self._rows += rows
        self._errors += errors
        self._check_errors()

    @property
    def _num_recognized(self) -> int:
        """Return the objects that this job has recognized, committed or not."""
        return self._committed.counts.total + self._rows - self._adopted

    def _may_fail(self) -> bool:
        """Return whether so many objects have failed that nothing should be committed before the end."""
        return self._errors > self._max_error_fraction * (self._committed.counts.total + self._rows)

    @property
    def _max_error_fraction(self) -> float:
        """Return the share of objects that may fail: all, if they are known to fail."""
        return 1.0 if self._config.retry_errors else self._config.max_error_fraction

    def _check_errors(self) -> None:
        """Stop as soon as the errors are more than the whole night allows."""
        allowed = self._max_error_fraction * max(self._total, self._rows)
        if self._total and self._errors > allowed:
            kinds, example = Counter[str](), ""
            for block, _ in self._blocks:
                rows = parquet.read(block, ["uri", "status", "error"])
                kinds += Counts.of(rows).errors
                example = example or next((f"{r['uri']}: {r['error']}" for r in rows.to_pylist() if r["error"]), "")
            few = self._total < self._config.min_objects_to_judge
            if few and sum(kinds[kind] for kind in STORE_ERRORS) <= allowed:
                return  # each is a row with its reason, and no later night waits for them
            said = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
            since = f"after {self._committed.runs[-1].folder}" if self._committed.runs else "of them"
            raise TooManyErrorsError(
                f"{self._errors:,} of {self._total:,} objects cannot be recognized ({said}), more than "
                f"--max-error-fraction {self._config.max_error_fraction:g} allows; nothing {since} was committed; "
                f"the first is {example!a}"
            )

    def _commit(self) -> None:
        """Commit all that is staged as runs of about `objects_per_run` rows, as all may be more than memory holds."""
        while self._blocks:
            self._lease.check()
            taken: list[str] = []
            num_rows = 0
            while self._blocks and num_rows < self._config.objects_per_run:
                block, rows = self._blocks.pop(0)
                taken.append(block)
                num_rows += rows
            self._committed += self._timed("commit", self._table.commit, taken, self._describe)
            self._rows -= num_rows

    def _describe(self, counts: Counts) -> dict[str, Any]:
        """Return the manifest of a run with such counts."""
        wall = time.monotonic() - self._started
        seconds = self._pipeline.seconds
        seconds.update(self._seconds)
        cores = self._pipeline.num_cores
        recognized = max(self._num_recognized, 1)
        price = self._config.price_per_core_hour
        return {
            "counts": counts.to_dict(),
            "listed": self._listed,
            "skipped": self._skipped,
            "recognized_before_an_interruption": self._adopted,
            "images": self._config.images,
            "model": self._config.run,
            "model_id": self._task.model_id,
            "engines": self._pipeline.engines,
            "committed_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": {"wall": round(wall, 3), **{name: round(s, 3) for name, s in seconds.items()}},
            "images_per_second": {
                "wall": round(recognized / wall, 1),
                **{name: round(recognized / seconds[name], 1) for name in STAGES if seconds.get(name)},
            },
            "cost": {
                "cores": cores,
                "price_per_core_hour": price,
                "per_million_images": round(cores * wall / 3600 * price / recognized * 1e6, 4) if cores else None,
            },
            "config": self._config.to_dict(),
            "environment": environment(),
        }

    def _measure(self, rows: int, errors: int, seconds: float) -> None:
        """Report a block to Prometheus."""
        self._telemetry.add("captcha_objects", rows)
        self._telemetry.add("captcha_errors", errors)
        self._telemetry.set("captcha_progress", (self._adopted + self._num_recognized) / max(self._total, 1))
        self._telemetry.set("captcha_images_per_second", self._num_recognized / max(seconds, 1e-9))
        spent = self._pipeline.seconds
        for stage in STAGES:
            self._telemetry.add("captcha_stage_seconds", spent[stage] - self._measured[stage], stage)
        self._measured = spent

    def _timed(self, stage: str, call: Callable[..., T], *arguments: Any) -> T:
        started = time.monotonic()
        result = call(*arguments)
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.monotonic() - started
        return result
