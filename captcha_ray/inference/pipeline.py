"""Recognize blocks: yield what is staged, and keep what workers report. Does not plan, does not commit.

On a machine alone the job's own process begins. Ray takes some seconds to start and to end, in which one process
recognizes ten thousand images; a longer night goes on with Ray's workers as soon as they can be had.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Self

from captcha_ray.errors import InputError, JobError, full_disk
from captcha_ray.inference import listing
from captcha_ray.inference.block import AbandonedError, BlockTask
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.watchdog import Watch
from captcha_ray.inference.worker import RecognizeBlocks, Report, WorkerState, load_reader
from captcha_ray.models import fingerprint

if TYPE_CHECKING:
    import ray.data

MAX_DEATHS = 10
"""Workers that may die one after another without a finished block before the job fails."""

SILENCE = "start the workers (none has reported; if they died, for lack of memory perhaps, Ray's log says so)"
"""Stage of workers that have not reported."""

RAY_S = 6.0
"""Seconds that Ray and its workers take to start and to end on two cores. A night that takes no longer needs no Ray."""

MANY = 100_000
"""Objects of a night for which Ray is started at once: no process recognizes so many in `RAY_S`."""

MAX_THREADS_HERE = 2
"""Most threads of the job's own process. More help little, and a container may have fewer CPUs than it sees."""

END_S = 5.0
"""Seconds that a job which ends early waits until this process leaves its block, which it does after a batch."""

Finished = tuple[int, int, int]
"""Number, rows and errors of a block that is staged."""


class Pipeline:
    """Whoever recognizes blocks in a job. reader: name of the class that they recognize with."""

    def __init__(self, config: InferConfig, task: BlockTask, reader: str) -> None:
        self._config, self._task, self._reader = config, task, reader
        self._states: dict[str, WorkerState] = {}  # the last one of each worker
        self._num_workers = self._finished = 0
        self._finished_before, self._workers_before = 0, 0
        self._own: Report | None = None
        self._begun = 0  # blocks of this process
        self._lock = threading.Lock()
        self._stop, self._abandoned, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._start_s = 0.0
        self._connection = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._connection.__exit__(*error)  # which puts some of Ray's errors in a sentence

    @property
    def _begins_here(self) -> bool:
        """Return whether this process begins: nobody asks for workers of any kind, and there is no Ray yet."""
        asked = self._config.num_workers or self._config.cpus_per_worker > 1 or self._config.use_gpu
        return not (asked or is_connected())

    def plan_workers(self) -> tuple[int, bool]:
        """Return how many workers there will be, and whether this process begins.

        Raises InputError if they do not fit, or if a node does not see what they need.
        """
        if self._begins_here:
            return _num_cpus(), True
        self._connect()
        return self._num_workers, False

    def expect(self, num_objects: int) -> None:
        """Start Ray if so many objects, which are to be recognized for sure, need it; it is ready sooner then."""
        if num_objects > MANY:
            self._start_ray()

    def _start_ray(self) -> None:
        """Connect to Ray, unless this process is, for as long as this pipeline is open."""
        from captcha_ray.runtime import ray_session  # noqa: PLC0415 -- a short night imports no Ray

        started = time.monotonic()
        if not is_connected():
            self._connection.enter_context(ray_session.connect())
        self._start_s += time.monotonic() - started

    def _connect(self) -> None:
        """Connect to Ray, and settle how many workers to use."""
        self._start_ray()
        self._num_workers = _num_workers(self._config)

    def run(self, num_blocks: int, num_objects: int) -> Generator[Finished]:
        """Recognize all blocks, of so many objects together; yield each that is staged.

        Raises InputError or JobError as a worker does, and JobError for a stall or if workers die again and again.
        """
        if not self._begins_here:
            yield from self._run_on_ray(range(num_blocks))
            return
        here = self._run_here(num_blocks)
        try:
            yield from self._until_long(here, num_objects)
            if self._begun < num_blocks:
                self._connect()
            with self._lock:
                self._stop.set()
            if self._begun < num_blocks:
                for finished in self._run_on_ray(range(self._begun, num_blocks)):
                    yield finished
                    yield from here.ready()
            yield from here
        finally:
            self._abandoned.set()
            self._ended.wait(END_S)

    def _run_here(self, num_blocks: int) -> Watch[Finished]:
        """Recognize blocks in a thread of this process, one after another, until all are done or `_stop` is set."""
        self._own = report = Report()
        task = dataclasses.replace(self._task, num_threads=_num_threads_here())

        def begins(block: int) -> bool:
            with self._lock:
                if not (self._stop.is_set() or self._abandoned.is_set()):
                    self._begun = block + 1
                return self._begun > block

        def give_blocks(give: Callable[[Finished], None]) -> None:
            try:
                reader = load_reader(self._reader, task, report)
                reader.is_abandoned = self._abandoned.is_set
                for block in itertools.takewhile(begins, range(num_blocks)):
                    give((block, *reader.read(block)))
            except AbandonedError:
                return
            except OSError as error:
                if sentence := full_disk(error):
                    raise JobError(sentence) from error
                raise
            finally:
                self._ended.set()

        return Watch(give_blocks, self._config.stall_timeout_s, self._stage, self._evidence)

    def _until_long(self, here: Iterator[Finished], num_objects: int) -> Iterator[Finished]:
        """Yield what this process finishes until the rest is seen to take it longer than `RAY_S`."""
        if num_objects > MANY:
            return
        first, after_first, rows = 0.0, 0, 0
        for finished in here:
            rows += finished[1]
            yield finished
            now = time.monotonic()
            if not first:  # what comes before, such as loading the network, is no measure of the rest
                first = now
                continue
            after_first += finished[1]
            if (num_objects - rows) * (now - first) > RAY_S * after_first:
                return

    def _run_on_ray(self, blocks: range) -> Generator[Finished]:
        """Recognize blocks with workers of the Ray that this process is connected to."""
        from captcha_ray.runtime.progress_channel import ProgressChannel  # noqa: PLC0415 -- imports Ray

        with ProgressChannel(lambda state: self._states.update({state.worker: state})) as channel:
            dataset = self._dataset(blocks, channel.sender())

            def give_rows(give: Callable[[dict[str, Any]], None]) -> None:
                for row in dataset.iter_rows():
                    give(row)

            for row in Watch(give_rows, self._config.stall_timeout_s, self._stage, self._evidence):
                if row["refusal"]:
                    raise InputError(row["refusal"])
                if row["failure"]:
                    raise JobError(row["failure"])
                self._finished += 1
                channel.deliver()  # a block that is committed now counts with its workers' seconds
                yield row["block"], row["rows"], row["errors"]

    @property
    def seconds(self) -> collections.Counter[str]:
        """Return the seconds of each stage, summed over workers, and those of the start of Ray."""
        seconds = collections.Counter[str]({"start Ray": self._start_s} if self._start_s else {})
        for state in self._all_states():
            seconds.update(state.seconds)
        return seconds

    @property
    def engines(self) -> list[str]:
        """Return what workers recognize with; machines may differ."""
        return sorted({state.engine for state in self._all_states()} - {""})

    @property
    def num_cores(self) -> int:
        """Return the cores that are at work, or were at last."""
        return self._num_workers * self._config.cpus_per_worker or (_num_threads_here() if self._own else 0)

    def _all_states(self) -> list[WorkerState]:
        return [*self._states.values(), *([self._own.state("")] if self._own else [])]

    def _stage(self) -> str:
        """Return the stage that most workers are at, or this process while there are none."""
        own = [self._own.state("")] if self._own and not self._ended.is_set() else []
        stages = collections.Counter(state.stage for state in [*self._states.values()] or own)
        return stages.most_common(1)[0][0] if stages else SILENCE

    def _evidence(self) -> Any:
        """Return the workers' progress. Raise JobError if too many have died: Ray restarts them with the same block."""
        num_states = len(self._states)
        if self._finished > self._finished_before:
            self._finished_before, self._workers_before = self._finished, num_states
        if num_states > max(self._workers_before, self._num_workers) + MAX_DEATHS:
            raise JobError(
                f"workers died {MAX_DEATHS} times without finishing a block, perhaps for lack of memory; what was "
                f"finished is kept"
            )
        return [(state.worker, state.fetched, state.recognized) for state in self._all_states()]

    def _dataset(self, blocks: range, send: Callable[[WorkerState], None]) -> "ray.data.Dataset":
        import ray.data  # noqa: PLC0415 -- a night with nothing new imports no Ray

        num_workers = min(self._num_workers, len(blocks))
        items = [{"block": number} for number in blocks]
        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = False  # whichever block is done first
        pool: Any = ray.data.ActorPoolStrategy(
            min_size=1, max_size=num_workers, initial_size=num_workers, max_tasks_in_flight_per_actor=2
        )
        with ray.data.DataContext.current(context):
            return ray.data.from_items(items, override_num_blocks=len(blocks)).map_batches(
                RecognizeBlocks,
                fn_constructor_args=(self._task, send, self._reader),
                batch_size=1,
                compute=pool,
                num_cpus=self._config.cpus_per_worker,
                num_gpus=1 if self._config.use_gpu else None,
            )


def is_connected() -> bool:
    """Return whether this process is connected to Ray. Does not import it."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_threads_here() -> int:
    return min(_num_cpus(), MAX_THREADS_HERE)


def _num_workers(config: InferConfig) -> int:
    """Return how many workers to use.

    Raises InputError if they do not fit, or if a node, which may have come meanwhile, does not see what they need.
    """
    from captcha_ray.runtime import capacity, ray_session  # noqa: PLC0415 -- imports Ray

    shared = shared_with_nodes(config)
    ray_session.check_shared(**shared)
    num_workers = config.num_workers or max(capacity.num_fitting(config.cpus_per_worker, config.use_gpu), 1)
    capacity.wait_for_capacity(num_workers, config.cpus_per_worker, config.use_gpu, **shared)
    return num_workers


def shared_with_nodes(config: InferConfig) -> dict[str, str]:
    """Return what workers read and write, by flag; a table that lists images is the driver's alone."""
    images = "" if listing.is_table(config.images) else config.images
    return {"images": images, "run": fingerprint.shared(config.run), "out": config.out}
