"""Run block tasks on a cluster's workers: yield what they have staged, and keep what they report.

Does not plan, does not commit.
"""

import collections
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from captcha_ray.errors import InputError, JobError
from captcha_ray.inference.block import BlockTask
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.watchdog import watch
from captcha_ray.inference.worker import RecognizeBlocks, WorkerState

if TYPE_CHECKING:
    import ray.data

MAX_DEATHS = 10
"""Workers that may die one after another without a finished block before the job fails."""

SILENCE = "start the workers (none has reported; if they died, for lack of memory perhaps, Ray's log says so)"
"""Stage of workers that have not reported."""


class Pipeline:
    """Workers of a job. reader: name of the class that they recognize with."""

    def __init__(self, config: InferConfig, task: BlockTask, reader: str) -> None:
        self._config, self._task, self._reader = config, task, reader
        self._states: dict[str, WorkerState] = {}  # the last one of each worker
        self._num_workers = self._finished = 0
        self._finished_before, self._workers_before = 0, 0

    def run(self, num_blocks: int, num_workers: int) -> Generator[tuple[int, int, int]]:
        """Recognize all blocks with so many workers; yield number, rows and errors of each block that is staged.

        Raises InputError or JobError as a worker does, and JobError for a stall or if workers die again and again.
        """
        from captcha_ray.runtime.progress_channel import ProgressChannel  # noqa: PLC0415 -- imports Ray

        self._num_workers = num_workers
        with ProgressChannel(lambda state: self._states.update({state.worker: state})) as channel:
            dataset = self._dataset(num_blocks, channel.sender())

            def give_rows(give: Callable[[dict[str, Any]], None]) -> None:
                for row in dataset.iter_rows():
                    give(row)

            for row in watch(give_rows, self._config.stall_timeout_s, self._stage, self._evidence):
                if row["refusal"]:
                    raise InputError(row["refusal"])
                if row["failure"]:
                    raise JobError(row["failure"])
                self._finished += 1
                channel.deliver()  # a block that is committed now counts with its workers' seconds
                yield row["block"], row["rows"], row["errors"]

    @property
    def seconds(self) -> collections.Counter[str]:
        """Return the seconds of each stage, summed over workers."""
        seconds = collections.Counter[str]()
        for state in list(self._states.values()):
            seconds.update(state.seconds)
        return seconds

    @property
    def engines(self) -> list[str]:
        """Return what workers recognize with; machines may differ."""
        return sorted({state.engine for state in list(self._states.values())} - {""})

    def _stage(self) -> str:
        """Return the stage that most workers are at."""
        stages = collections.Counter(state.stage for state in list(self._states.values()))
        return stages.most_common(1)[0][0] if stages else SILENCE

    def _evidence(self) -> Any:
        """Return the workers' progress. Raise JobError if too many have died: Ray restarts them with the same block."""
        states = list(self._states.values())
        if self._finished > self._finished_before:
            self._finished_before, self._workers_before = self._finished, len(states)
        if len(states) > max(self._workers_before, self._num_workers) + MAX_DEATHS:
            raise JobError(
                f"workers died {MAX_DEATHS} times without finishing a block, perhaps for lack of memory; what was "
                f"finished is kept"
            )
        return [(state.worker, state.fetched, state.recognized) for state in states]

    def _dataset(self, num_blocks: int, send: Callable[[WorkerState], None]) -> "ray.data.Dataset":
        import ray.data  # noqa: PLC0415 -- a night with nothing new imports no Ray

        num_workers = min(self._num_workers, num_blocks)
        items = [{"block": number} for number in range(num_blocks)]
        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = False  # whichever block is done first
        pool: Any = ray.data.ActorPoolStrategy(
            min_size=1, max_size=num_workers, initial_size=num_workers, max_tasks_in_flight_per_actor=2
        )
        with ray.data.DataContext.current(context):
            return ray.data.from_items(items, override_num_blocks=num_blocks).map_batches(
                RecognizeBlocks,
                fn_constructor_args=(self._task, send, self._reader),
                batch_size=1,
                compute=pool,
                num_cpus=self._config.cpus_per_worker,
                num_gpus=1 if self._config.use_gpu else None,
            )
