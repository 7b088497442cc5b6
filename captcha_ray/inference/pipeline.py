"""Recognize blocks: yield what is staged, and keep what workers report. Does not plan, does not commit.

On a machine alone the job's own process begins. Ray takes some seconds to start and to end, in which one process
recognizes ten thousand images; a longer night goes on with Ray's workers as soon as they can be had. With two cores
only a night of more than `MANY` images does: 40,000 files took 19 s without Ray and 32 s with it, but processes, which
do not share an interpreter, are a sixth faster than threads once they are there. With one core nothing is to be gained.
"""

import collections
import contextlib
import dataclasses
import functools
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from captcha_ray.errors import InputError, JobError, full_disk
from captcha_ray.inference.block import IDLE, AbandonedError, BlockTask, Finished, block_sizes
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.source import Source, is_table
from captcha_ray.inference.watchdog import Watch
from captcha_ray.inference.worker import (
    DecodeBlocks,
    RecognizeBlocks,
    RecognizeDecoded,
    Report,
    WorkerState,
    load_reader,
    report_every,
)
from captcha_ray.models import fingerprint
from captcha_ray.models.spec import ModelSpec

if TYPE_CHECKING:
    import ray.data

MAX_DEATHS = 10
"""Workers that may die one after another without a finished block before the job fails."""

SILENCE = "start the workers (none has reported; if they died, for lack of memory perhaps, Ray's log says so)"
"""Stage of workers that have not reported."""

RAY_S = 6.0
"""Seconds that Ray and its workers take to start and to end on two cores. A night that takes no longer needs no Ray."""

MANY = 100_000
"""Objects of a night above which Ray is started at once: no process recognizes so many in `RAY_S`."""

MAX_THREADS_HERE = 2
"""Most threads of the job's own process that recognize."""

CGROUP = Path("/sys/fs/cgroup")
"""Holds what Linux says of the CPUs that a container may use."""

END_S = 5.0
"""Seconds that a job which ends early waits until this process leaves its block, which it does after a batch."""


class Pipeline:
    """Recognizes the blocks of a job, in this process and on Ray. reader: name of the class that does so."""

    def __init__(self, config: InferConfig, source: Source, task: BlockTask, reader: str) -> None:
        self._config, self._source, self._task, self._reader = config, source, task, reader
        self._states: dict[str, WorkerState] = {}  # the last one of each worker
        self._num_workers = self._num_decoders = self._finished = 0
        self._finished_before, self._workers_before = 0, 0
        self._own: list[Report] = []  # of each thread of this process that recognizes
        self._begun = self._at_work = 0  # blocks of this process, and its threads
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
        config = self._config
        asked = config.num_workers or config.cpus_per_worker > 1 or config.use_gpu or config.num_decoders > 0
        return not (asked or is_connected())

    def _is_enough_for(self, num_objects: int) -> bool:
        """Return whether this process recognizes all: it begins, and workers would gain too little or nothing."""
        few = _num_cpus() == 1 or (_num_cpus() <= MAX_THREADS_HERE and num_objects <= MANY)
        return self._begins_here and few

    def plan_blocks(self, num_batches: int) -> list[int]:
        """Return the batches of each block for the workers there will be. See `block_sizes`.

        Raises InputError if they do not fit, or if a node does not see what they need.
        """
        if self._begins_here:
            return block_sizes(num_batches, _num_cpus(), growing=True)
        self._connect()
        decoded_bytes = math.prod(self._spec.image.shape) if self._num_decoders else None
        return block_sizes(num_batches, max(self._num_workers, self._num_decoders), decoded_bytes=decoded_bytes)

    @functools.cached_property
    def _spec(self) -> ModelSpec:
        """Return the description of the network that decoders decode for."""
        return fingerprint.load_spec(self._task.model)

    def expect(self, num_objects: int) -> None:
        """Start Ray if so many objects, which are to be recognized for sure, need it; it is ready sooner then."""
        if num_objects > MANY and not self._is_enough_for(num_objects):
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
        self._num_workers, self._num_decoders = _group_sizes(self._config, self._source)

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
        """Recognize blocks in threads of this process until all are done or `_stop` is set.

        Each thread has a reader of its own: two readers of one thread are an eighth faster than one of two. Torch takes
        all cores for one.
        """
        num_readers = 1 if self._task.engine == "torch" else min(_num_threads_here(), num_blocks)
        self._own = [Report() for _ in range(num_readers)]
        task = dataclasses.replace(self._task, num_threads=_num_threads_here() // num_readers)
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        loading = threading.Lock()  # whoever is first may make an ONNX model, which is no work for two at once

        def recognize(report: Report, give: Callable[[Finished], None]) -> None:
            try:
                with loading:
                    reader = load_reader(self._reader, task, report)
                reader.is_abandoned = self._abandoned.is_set
                for finished in reader.read_all(self._claimed(num_blocks)):
                    give(finished)
            except AbandonedError:
                pass
            except BaseException as error:
                ended.put(error)
            finally:
                with self._lock:
                    self._at_work -= 1
                    if not self._at_work:
                        self._ended.set()
                ended.put(None)

        def give_blocks(give: Callable[[Finished], None]) -> None:
            self._at_work = num_readers
            for report in self._own:
                threading.Thread(target=recognize, args=(report, give), daemon=True).start()
            for error in (ended.get() for _ in self._own):
                if isinstance(error, OSError) and (sentence := full_disk(error)):
                    raise JobError(sentence) from error
                if error:
                    raise error

        return Watch(give_blocks, self._config.stall_timeout_s, self._stage, self._evidence)

    def _claimed(self, num_blocks: int) -> Iterator[int]:
        """Yield the blocks of one thread of this process, until all are begun or `_stop` is set."""
        while True:
            with self._lock:
                block = self._begun
                if block == num_blocks or self._stop.is_set() or self._abandoned.is_set():
                    return
                self._begun += 1
            yield block

    def _until_long(self, here: Iterator[Finished], num_objects: int) -> Iterator[Finished]:
        """Yield what this process finishes until the rest is seen to take it longer than `RAY_S`."""
        if self._is_enough_for(num_objects):
            yield from here
            return
        if num_objects > MANY:
            return
        first, done_at_first = 0.0, 0
        for finished in here:
            yield finished
            now, done = time.monotonic(), sum(report["fetched"] for report in self._own)
            if not first:  # what comes before, such as loading the network, is no measure of the rest
                first, done_at_first = now, done
            elif (num_objects - done) * (now - first) > RAY_S * (done - done_at_first):
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
        """Return the cores that recognize and decode, or have done so last."""
        on_ray = self._num_workers * self._config.cpus_per_worker + self._num_decoders
        return on_ray or len(self._own)

    def _all_states(self) -> list[WorkerState]:
        return [*self._states.values(), *(report.state("") for report in self._own)]

    def _stage(self) -> str:
        """Return the stage that most workers and threads with work are at."""
        own = [] if self._ended.is_set() else [report.state("") for report in self._own]
        stages = collections.Counter(state.stage for state in [*self._states.values(), *own])
        if len(stages) > 1:
            del stages[IDLE]
        return stages.most_common(1)[0][0] if stages else SILENCE

    def _evidence(self) -> Any:
        """Return the workers' progress. Raise JobError if too many have died: Ray restarts them with the same block."""
        num_states = len(self._states)
        if self._finished > self._finished_before:
            self._finished_before, self._workers_before = self._finished, num_states
        if num_states > max(self._workers_before, self._num_workers + self._num_decoders) + MAX_DEATHS:
            raise JobError(
                f"workers died {MAX_DEATHS} times without finishing a block, perhaps for lack of memory; what was "
                f"finished is kept"
            )
        return [(state.worker, state.fetched, state.recognized) for state in self._all_states()]

    def _dataset(self, blocks: range, send: Callable[[WorkerState], None]) -> "ray.data.Dataset":
        import ray.data  # noqa: PLC0415 -- a night with nothing new imports no Ray

        def pool(initial: int, most: int) -> dict[str, Any]:
            sizes: dict[str, Any] = {"min_size": 1, "max_size": min(most, len(blocks))}
            sizes["initial_size"] = min(initial, sizes["max_size"])
            return {"compute": ray.data.ActorPoolStrategy(**sizes, max_tasks_in_flight_per_actor=2)}

        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = False  # whichever block is done first
        context.target_max_block_size = None  # a decoded block stays whole
        report_s = report_every(self._num_workers + self._num_decoders, self._config.stall_timeout_s)
        recognizes: dict[str, Any] = {
            "fn_constructor_args": (self._task, send, report_s, self._reader),
            "num_cpus": self._config.cpus_per_worker,
            "num_gpus": 1 if self._config.use_gpu else None,
            **pool(self._num_workers, self._num_workers),
        }
        with ray.data.DataContext.current(context):
            items = ray.data.from_items([{"block": number} for number in blocks], override_num_blocks=len(blocks))
            if not self._num_decoders:
                return items.map_batches(RecognizeBlocks, batch_size=1, **recognizes)
            arguments = (dataclasses.replace(self._task, num_threads=1), self._spec, send, report_s)
            # Ray Data starts more of them while they hold the others up, and once these have found their nodes.
            decoders: dict[str, Any] = {"fn_constructor_args": arguments, "num_cpus": 1, **pool(1, self._num_decoders)}
            decoded = items.map_batches(DecodeBlocks, batch_size=1, **decoders)
            recognizes |= {"batch_format": "pyarrow", "zero_copy_batch": True}
            return decoded.map_batches(RecognizeDecoded, batch_size=None, **recognizes)


def is_connected() -> bool:
    """Return whether this process is connected to Ray. Does not import it."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _num_cpus() -> int:
    """Return the CPUs of this process, as many as its container may use."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(seen, _quota(CGROUP) or seen)


def _quota(cgroup: Path) -> int:
    """Return the CPUs that a cgroup of version 2 or 1 may use, rounded up; 0 for as many as there are."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            quota, period = map(int, " ".join((cgroup / name).read_text() for name in names).split())
            return max(math.ceil(quota / period), 0)
    return 0


def _num_threads_here() -> int:
    return min(_num_cpus(), MAX_THREADS_HERE)


def _group_sizes(config: InferConfig, source: Source) -> tuple[int, int]:
    """Return how many workers recognize, and how many may decode for them.

    Raises InputError if they do not fit, or if a node, which may have come meanwhile, does not see what they need.
    """
    from captcha_ray.runtime import capacity, ray_session  # noqa: PLC0415 -- imports Ray

    shared = shared_with_nodes(config, source)
    ray_session.check_shared(**shared)
    fitting = capacity.num_fitting(config.cpus_per_worker, config.use_gpu)
    if not config.use_gpu:  # decoders take CPUs that workers could have
        fitting -= math.ceil(max(config.num_decoders, 0) / config.cpus_per_worker)
    num_workers = config.num_workers or max(fitting, 1)
    capacity.wait_for_capacity(num_workers, config.cpus_per_worker, config.use_gpu, **shared)
    left = capacity.num_cpus() - num_workers * config.cpus_per_worker
    if config.num_decoders > 0 and left < 1:
        raise InputError(
            f"no CPU is left for decoders: the workers take {num_workers * config.cpus_per_worker} of "
            f"{capacity.num_cpus()}; fewer --num-workers, or --num-decoders 0, by which they decode themselves"
        )
    if config.num_decoders < 0:
        return num_workers, left if config.use_gpu else 0
    return num_workers, min(config.num_decoders, left)


def shared_with_nodes(config: InferConfig, source: Source) -> dict[str, str]:
    """Return what workers read and write, by flag; a table that lists images is the driver's alone."""
    images = "" if is_table(source.uris[0]) else source.shared
    return {"images": images, "run": fingerprint.shared(config.run), "out": config.out}
