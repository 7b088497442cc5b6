"""Train as one worker: epochs over its own rows, in step with the others, kept after each.

The shards are read once into Ray's object store; each worker copies its share of the rows from there and keeps it, so
an epoch waits for no disk and needs no CPU for reading. A streamed training reads each worker's share from the shards
again in every epoch: Ray's store would spill what does not fit, and read it back from a disk in one fixed order.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import ray.train
import ray.train.torch
import torch
import torch._dynamo  # the first optimizer would import it, when nothing else goes on meanwhile
import torch.distributed
from torch import Tensor, nn

from captcha_ray.datasets import schema
from captcha_ray.metrics.counts import guess_loss
from captcha_ray.models import checkpoint
from captcha_ray.models.allocator import keep_freed_memory
from captcha_ray.models.device import Arithmetic
from captcha_ray.models.networks import Network, build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.models.transfer import begin_with, keep_classes, known_unseen
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runs.directory import STATE, WITHIN_EPOCH, RunDirectory
from captcha_ray.runs.event_log import EventLog
from captcha_ray.runtime.blocks import Share
from captcha_ray.storage import filesystem, retries, row_groups
from captcha_ray.storage.row_groups import RowGroup
from captcha_ray.text.charset import Charset
from captcha_ray.training import loop, schedule
from captcha_ray.training.augment import Augment
from captcha_ray.training.batches import EpochFeed, Feed, StreamFeed, derive_seed
from captcha_ray.training.optim import build_optimizer
from captcha_ray.training.progress import (
    EpochDone,
    EpochNotKept,
    EpochTakenUp,
    Event,
    PlanChanged,
    StepDone,
    WorkersBegan,
)
from captcha_ray.training.state import State, load_state, save_state

EVALUATION_BATCH_SIZE = 256
ANNOUNCE_INTERVAL_S = 0.25

AGREE_STEPS = 16
"""Steps after which several workers ask rank 0 whether to keep the epoch: asking at each would cost time."""


@dataclasses.dataclass(frozen=True)
class WorkerJob:
    """Job of every worker.

    blocks: references of Arrow tables, train and val. until: epoch to stop after, or None. streamed: row groups of
    splits that are not held in memory, and so have no blocks. flush: waits until what was sent has come.
    """

    config: TrainConfig
    spec: ModelSpec
    blocks: dict[str, list[Any]]
    send: Callable[[Event], Any]
    until: int | None = None
    streamed: dict[str, list[RowGroup]] = dataclasses.field(default_factory=dict)
    flush: Callable[[], Any] = lambda: None


def train_worker(arguments: dict[str, Any]) -> None:
    """Run the loop of one worker under Ray Train.

    arguments: "job", a WorkerJob, and "num_threads" of torch, 0 for its choice.
    """
    job: WorkerJob = arguments["job"]
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train's would say each epoch's metrics on the terminal
    keep_freed_memory()
    if arguments["num_threads"]:
        torch.set_num_threads(arguments["num_threads"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if job.config.use_gpu else torch.device("cpu")
    try:
        with retries.patience():
            worker = Worker(job, context.get_world_rank(), context.get_world_size(), device)
            with contextlib.closing(worker):
                while worker.wants_epoch:
                    record = worker.run_epoch()
                    ray.train.report({k: v for k, v in record.items() if isinstance(v, (int, float))})
    finally:
        job.flush()


class Worker:
    """State of one worker between epochs.

    Every epoch's random numbers follow from (seed, epoch, rank) alone, and within one they go on as they were kept. So
    a run that is continued with as many workers draws what an undisturbed one would have drawn.
    """

    def __init__(self, job: WorkerJob, rank: int, world_size: int, device: torch.device) -> None:
        config = job.config
        self._job, self._rank, self._world_size = job, rank, world_size
        self._arithmetic = Arithmetic.choose(device, config.precision)
        step_images = config.batch_size * config.workers[1]  # as many with fewer workers: the learning rate fits them
        self._augment = Augment.of(config)
        with_colors = bool(self._augment.lines_fraction)
        self._train = self._feed("train", -(-step_images // world_size), with_colors=with_colors)
        has_val = bool(job.blocks["val"] or job.streamed.get("val"))
        self._val = self._feed("val", EVALUATION_BATCH_SIZE) if has_val else None
        counts = self._count_classes()
        self._network = self._fresh_network(attempt=0)
        self._run = RunDirectory(config.run)
        continues = filesystem.exists(self._run.path(STATE))
        if config.init and not continues:
            begin_with(self._network, job.spec, config.init)
        self._optimizer = build_optimizer(config, self._network)
        self._history: list[dict[str, Any]] = []
        decided: dict[str, Any] = {}
        self._kept: list[int] = []  # classes whose weights the first attempt keeps
        if continues:
            state = load_state(self._run.path(STATE), self._network, self._optimizer)
            self._history, decided, self._kept = state["epochs"], state.get("plan", {}), state.get("kept", [])
            if rank == 0:  # the last try may have ended between state and metrics
                self._run.write_metrics(self._history)
        self._interrupted = State.read_if_there(self._run.path(WITHIN_EPOCH))
        self._kept_within = filesystem.exists(self._run.path(WITHIN_EPOCH))
        self._events = EventLog(self._run) if rank == 0 else None
        self._parallel: nn.Module | None = None
        if world_size > 1:
            self._parallel = ray.train.torch.prepare_model(
                self._network,
                move_to_device=device,  # it is there; told nothing, Ray Train takes a GPU that is visible
                # Workers start with the same ones, and an epoch ends with rank 0's: sending them at every step would
                # hold all workers up for nothing, as batch normalization in training does not read them.
                parallel_strategy_kwargs={"forward_sync_buffers": False},
            )
        first = schedule.Plan.first(config, self._train.num_steps, guess_loss(counts))
        self._plan = first.restored(decided)
        self._train_all: Callable[[], None] = lambda: None
        if config.init and not continues:
            seen = (counts.sum(0)[: len(job.spec.charset)] > 0).tolist()
            self._kept = known_unseen(job.spec, config.init, seen)
        if self._kept and self._plan.attempt == 0:
            self._train_all = keep_classes(self._network, self._kept)
        self._announced = 0.0
        if rank == 0:
            job.send(WorkersBegan(len(self._history), world_size))
            job.send(PlanChanged(self._plan.num_epochs, ""))

    def _feed(self, split: str, batch_size: int, *, with_colors: bool = False) -> Feed:
        """Return this worker's rows, in memory unless they are streamed.

        They are copied out of the object store, table by table, except for a single worker's single one, which
        trainings of a machine share.
        """
        spec, rank, world_size = self._job.spec, self._rank, self._world_size
        encode = functools.partial(
            Charset(spec.charset).encode,
            max_length=spec.max_length,
            variable=spec.variable,
            bidirectional=spec.bidirectional,
        )
        if groups := self._job.streamed.get(split):
            shares = row_groups.divide(groups, world_size)
            counts = [sum(group.num_rows for group in share) for share in shares]
            return StreamFeed(shares[rank], spec.image, encode, counts, rank, batch_size, with_colors=with_colors)
        share = Share(self._job.blocks[split], rank, world_size)
        counts = [len(range(worker, share.num_rows, world_size)) for worker in range(world_size)]
        if len(self._job.blocks[split]) == world_size == 1:
            (table,) = share
            images, texts = schema.unpack_images(table["image"], spec.image), table["text"].to_pylist()
        else:
            images, texts = schema.gather(share, counts[rank], spec.image)
        return EpochFeed(images, encode(texts), counts, rank, batch_size, with_colors=with_colors)

    def _count_classes(self) -> npt.NDArray[np.int64]:
        """Count each class at each position of all workers' training images; return int64 (max_length, classes)."""
        counts = self._train.count_classes(len(self._job.spec.charset) + 1)
        if self._world_size > 1:
            summed = torch.from_numpy(counts).to(self._arithmetic.device)
            torch.distributed.all_reduce(summed)
            counts = summed.cpu().numpy()
        return counts

    def _fresh_network(self, attempt: int) -> Network:
        """Build the network that an attempt, from 0, begins with; it is the same on every worker."""
        seed = self._job.config.seed
        torch.manual_seed(derive_seed(seed, attempt) if attempt else derive_seed(seed))
        network = build_model(self._job.spec)
        return network.to(self._arithmetic.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _begin_anew(self) -> None:
        """Replace the weights, in place, and the optimizer by those of a new attempt."""
        self._train_all()
        self._network.load_state_dict(self._fresh_network(self._plan.attempt).state_dict())
        self._optimizer = build_optimizer(self._job.config, self._network)

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl` so far, those of before an interruption too."""
        return list(self._history)

    @property
    def wants_epoch(self) -> bool:
        """Return whether another epoch follows: it is not the last, the loss has not diverged, patience is left."""
        return self._plan.wants_epoch(self._history, self._job.until)

    def run_epoch(self) -> dict[str, Any]:
        """Train and validate one epoch, keep it on disk (rank 0), and return its line of `metrics.jsonl`."""
        number, plan = len(self._history) + 1, self._plan
        if plan.begun == number - 1 > 0:
            self._begin_anew()
        begin = self._take_up(number)
        started = time.perf_counter() - begin.seconds
        counts, waited_s = self._train_epoch(number, begin)
        train = self._sum(counts)
        train_s = time.perf_counter() - started
        self._share_buffers()
        val: dict[str, Any] = {}
        if self._val:
            counts = loop.evaluate(self._network, self._val.epoch(None), self._arithmetic)
            val = self._sum(counts).ratios("val")
        record = {
            "epoch": number,
            **train.ratios("train"),
            **val,
            "images_per_second": train.num_images / train_s,
            "data_wait_fraction": waited_s / train_s,
            "learning_rate": plan.learning_rate(number),
            "num_workers": self._world_size,
            "attempt": plan.attempt,
            "seconds": time.perf_counter() - started,
        }
        self._history.append({name: schedule.finite(value) for name, value in record.items()})
        self._plan = plan.after(self._history)
        if self._rank == 0:
            self._keep()
            if self._plan.num_epochs != plan.num_epochs or self._plan.change:
                self._job.send(PlanChanged(self._plan.num_epochs, self._plan.change.value))
        return self._history[-1]

    def _train_epoch(self, number: int, begin: loop.Position) -> tuple[loop.EpochCounts, float]:
        """Train an epoch, from 1, as the plan says, from a position on; return as `loop.train_epoch`."""
        config, plan, steps = self._job.config, self._plan, self._train.num_steps
        return loop.train_epoch(
            self._network,
            self._optimizer,
            self._train.epoch(derive_seed(config.seed, number, self._rank, 0), begin.step),
            self._arithmetic,
            parallel=self._parallel,
            augment=self._augment,
            seed=derive_seed(config.seed, number, self._rank, 1),
            world_size=self._world_size,
            learning_rate=lambda step: plan.learning_rate(number - 1 + step / steps),
            label_smoothing=config.label_smoothing,
            alignment_prior=lambda step: plan.prior(number - 1 + step / steps),
            begin=begin,
            on_step=self._on_step(number),
        )

    def _on_step(self, epoch: int) -> Callable[[int, int, Callable[[], loop.Position]], None]:
        """Return what announces the steps of an epoch and keeps some."""
        keep = self._keeper(epoch)
        started, done = time.perf_counter(), 0

        def on_step(step: int, images: int, position: Callable[[], loop.Position]) -> None:
            nonlocal done
            done += images
            keep(step + 1, position)
            now = time.perf_counter()
            if self._rank == 0 and now - self._announced >= ANNOUNCE_INTERVAL_S:
                self._announced = now
                self._job.send(StepDone(epoch, (step + 1) / self._train.num_steps, done / (now - started)))

        return on_step

    def _identity(self, epoch: int) -> dict[str, Any]:
        """Return what must be the same for an epoch to go on where another try of it was."""
        return {
            "epoch": epoch,
            "attempt": self._plan.attempt,
            "num_steps": self._train.num_steps,
            "num_workers": self._world_size,
            "streamed": isinstance(self._train, StreamFeed),
            "device": self._arithmetic.device.type,
        }

    def _take_up(self, epoch: int) -> loop.Position:
        """Return where an interrupted try of the epoch was, and restore its weights; or return the epoch's start."""
        state, step = self._interrupted, self._continues(epoch)
        self._interrupted = None
        if self._rank == 0 and self._kept_within and not state:
            self._job.send(EpochNotKept(epoch, f"{WITHIN_EPOCH} is damaged"))
        if self._world_size > 1:  # workers may have read a folder or a store at different times
            steps: list[Any] = [None] * self._world_size
            torch.distributed.all_gather_object(steps, step)
            step = step if set(steps) == {step} else 0
        if not state or not step:
            return loop.START
        state.restore(self._network, self._optimizer)
        if self._rank == 0:
            self._job.send(EpochTakenUp(epoch, step / self._train.num_steps))
        mine = f"{self._rank}."
        own = {name.removeprefix(mine): tensor for name, tensor in state.others.items() if name.startswith(mine)}
        return loop.Position.of(step, own)

    def _continues(self, epoch: int) -> int:
        """Return the steps of an epoch that an interrupted try has done and this one can go on after."""
        kept = self._interrupted.progress if self._interrupted else {}
        is_same = all(kept.get(name) == value for name, value in self._identity(epoch).items())
        return int(kept["step"]) if is_same else 0

    def _keeper(self, epoch: int) -> Callable[[int, Callable[[], loop.Position]], None]:
        """Return what keeps an epoch every `checkpoint_every_s`, at a step on which all workers agree."""
        every_s = self._job.config.checkpoint_every_s
        kept_at = time.perf_counter()

        def keep(steps: int, position: Callable[[], loop.Position]) -> None:
            nonlocal kept_at
            if not every_s or steps == self._train.num_steps or (self._world_size > 1 and steps % AGREE_STEPS):
                return
            if self._agree(time.perf_counter() - kept_at >= every_s):
                self._keep_within(epoch, position())
                kept_at = time.perf_counter()

        return keep

    def _agree(self, wanted: bool) -> bool:
        """Return what rank 0 wants."""
        if self._world_size == 1:
            return wanted
        answer = torch.tensor(int(wanted), device=self._arithmetic.device)
        torch.distributed.broadcast(answer, 0)
        return bool(answer)

    def _keep_within(self, epoch: int, position: loop.Position) -> None:
        """Save how far all workers are in an epoch. Batch statistics are rank 0's: only those outlast an epoch."""
        everyone: list[Any] = [position.to_tensors()] * self._world_size
        if self._world_size > 1:
            torch.distributed.all_gather_object(everyone, everyone[0])
        if self._rank == 0:
            others = {f"{rank}.{name}": tensor for rank, one in enumerate(everyone) for name, tensor in one.items()}
            progress = self._identity(epoch) | {"step": position.step}
            self._kept_within = True  # perhaps it is, even where the store says that it is not
            try:
                save_state(self._run.path(WITHIN_EPOCH), self._network, self._optimizer, progress, others)
            except OSError as error:  # the next one may be kept
                self._job.send(EpochNotKept(epoch, str(error)))

    def _share_buffers(self) -> None:
        """Give all workers rank 0's batch statistics, as the validated network must be the one that is kept."""
        if self._world_size > 1:
            for buffer in self._network.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _sum(self, counts: loop.EpochCounts) -> loop.EpochCounts:
        """Return the counts of all workers together."""
        if self._world_size == 1:
            return counts
        sums: Tensor = torch.from_numpy(counts.sums).to(self._arithmetic.device)
        torch.distributed.all_reduce(sums)
        return loop.EpochCounts(sums.cpu().numpy())

    def _keep(self) -> None:
        """Save the epoch.

        The state comes last but for what follows from it: a kill before repeats the epoch identically.
        """
        record = self._history[-1]
        best = schedule.best_epoch(self._history) == record["epoch"]
        if best and ("val_loss" in record or record["epoch"] == self._plan.num_epochs):
            checkpoint.save_model(self._run.path("checkpoint"), self._network, self._job.spec)
        if self._events:
            self._events.add(record)
        save_state(
            self._run.path(STATE),
            self._network,
            self._optimizer,
            {"epochs": self._history, "plan": self._plan.to_dict(), "kept": self._kept},
        )
        if self._kept_within:
            filesystem.delete(self._run.path(WITHIN_EPOCH))
            self._kept_within = False
        self._run.write_metrics(self._history)
        if not schedule.has_diverged(record):
            self._job.send(EpochDone(record, best))

    def close(self) -> None:
        """Close the event file."""
        if self._events:
            self._events.close()
