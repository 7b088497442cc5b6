"""Data-parallel training: the worker loop and the `TorchTrainer` around it.

The driver reads the shards once into Ray's object store; each worker copies its rows from there and keeps them, so an
epoch waits for no disk and needs no CPU for reading. A worker's share of the training split must fit its memory.
Progress is kept in the run directory after every epoch; a restarted worker and `--resume` both continue from there.
Does not read corpora, does not evaluate the test split.
"""

import concurrent.futures
import contextlib
import dataclasses
import logging
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
import torch._dynamo  # the first optimizer would import it, when nothing else goes on meanwhile
import torch.distributed
from torch import Tensor, nn

from captcha_ray import checkpoint, console, learning, room, schema, storage
from captcha_ray.augment import Augment
from captcha_ray.charset import Charset
from captcha_ray.cluster import Cluster, here
from captcha_ray.config import FailedError, InputError, TrainConfig, check
from captcha_ray.console import TrainingProgress
from captcha_ray.lease import Lease
from captcha_ray.models import build_model
from captcha_ray.rules import settle
from captcha_ray.runs import EventLog, RunDirectory
from captcha_ray.spec import ModelSpec
from captcha_ray.telemetry import Telemetry

STATE = "resume.safetensors"
EVALUATION_BATCH_SIZE = 256
ANNOUNCE_INTERVAL_S = 0.25
RESIZE_S = 60.0
"""Seconds after which an elastic training that lacks workers looks for room for more. A change costs it the epoch that
it is at, and some seconds for new processes."""

START_TIMEOUT_S = 10.0
"""Seconds an elastic training waits for room for as many workers as it decided on. Ray looks at the nodes every
20 seconds, so it may have counted one that is gone; its own patience, of a minute, was most of a recovery."""

WAITING_S = 30.0
"""Seconds without a step, above which the driver says what workers wait for; again after twice as many."""

POLL_S = 1.0
"""Seconds between two looks at the metrics of workers elsewhere."""

RESUME_MAY_DIFFER = ("resume", "run", "num_workers", "cpus_per_worker", "use_gpu", "max_failures")
"""Fields that may change between the start of a run and its continuation."""

Announcement = tuple[str, tuple[Any, ...]]
"""Name and arguments of a method of TrainingProgress."""


@dataclasses.dataclass(frozen=True)
class WorkerJob:
    """What every worker is told. blocks: object references of Arrow tables, train and val. until: epoch to stop after,
    before the config's last one; None for none."""

    config: TrainConfig
    spec: ModelSpec
    blocks: dict[str, list[Any]]
    announce: Callable[[Announcement], Any]
    until: int | None = None


@dataclasses.dataclass(frozen=True)
class MoreImages:
    """What a training learns from beside its shards. rows: as `schema.shard_schema` has them. facts: for
    `results.json`."""

    rows: ray.data.Dataset
    num_images: int
    facts: dict[str, Any]


def model_spec(config: TrainConfig, manifest: schema.Manifest) -> ModelSpec:
    """The network for these shards. Raises InputError where they are not what the config or network reads."""
    image = manifest.image_spec
    for name in ("height", "width"):
        asked, found = getattr(config, name), getattr(image, name)
        check(
            asked in (0, found),
            f"the shards hold images of {image.width}x{image.height} pixels (width x height), but recipe "
            f"{config.recipe} reads {name} {asked}; preprocess to that size, or pass --{name} 0 to take theirs",
        )
    check(
        config.charset in ("", manifest.charset),
        f"the shards were made for charset {manifest.charset!r}, not {config.charset!r}",
    )
    spec = ModelSpec(
        network=config.network,
        image=image,
        charset=manifest.charset,
        slots=config.slots or manifest.max_length,
        variable=config.variable_length,
        dropout=config.dropout,
    )
    check(
        spec.holds(manifest.min_length, manifest.max_length),
        f"labels in the shards have {manifest.min_length} to {manifest.max_length} characters, but the network reads "
        f"{spec.reads} in every image; keep those by preprocessing with --length {spec.slots}, pass --slots 0 where "
        f"all have another length, or train column_cnn with --variable-length",
    )
    with torch.device("meta"):
        build_model(spec)
    return spec


def fit(
    config: TrainConfig,
    manifest: schema.Manifest,
    train: ray.data.Dataset,
    val: ray.data.Dataset | None,
    cluster: Cluster,
    find_more: Callable[[TrainConfig], MoreImages] | None = None,
) -> dict[str, Any]:
    """Trains until the last epoch, or until patience runs out; afterwards the best network stands in `checkpoint/`.
    Returns what `results.json` says of the training.

    val: None where all labels are to be learned from; then the last epoch's network counts as the best. find_more:
    asked for images besides `train`, once the run's directory is claimed and the config found to fit.

    A single CPU worker of an embedded Ray trains in this process (Ray Train's local mode: no other machine is to be
    had, and starting a worker takes longer than the small corpora people try first). Raises InputError for shards,
    workers or run directories that do not fit, for a run that another job is at work on, and where the loss stops
    being a number; FailedError where workers are lost again and again.
    """
    started = time.perf_counter()
    run = RunDirectory(config.run)
    asked, config = config, _settled(config, manifest, run)
    _ = model_spec(config, manifest)
    room.await_room(config.workers[0], config.cpus_per_worker, config.use_gpu)
    check_batches(config, manifest)
    shards = storage.absolute(config.shards)
    unlabelled = storage.absolute(config.unlabelled) if config.unlabelled else ""
    asked, config = (
        dataclasses.replace(one, run=run.uri, shards=shards, unlabelled=unlabelled) for one in (asked, config)
    )
    run.begin(asked.to_dict(), manifest.to_dict(), resume=config.resume, may_differ=RESUME_MAY_DIFFER)
    with Lease(run.path("_lease.json")) as lease:
        facts = _fit(asked, config, manifest, train, val, cluster, find_more)
        lease.check()
    return facts | {"seconds": time.perf_counter() - started}


def _fit(
    asked: TrainConfig,
    config: TrainConfig,
    manifest: schema.Manifest,
    train: ray.data.Dataset,
    val: ray.data.Dataset | None,
    cluster: Cluster,
    find_more: Callable[[TrainConfig], MoreImages] | None,
) -> dict[str, Any]:
    """What `fit` does once the run's directory is its own. config: settled."""
    run, spec = RunDirectory(config.run), model_spec(config, manifest)
    facts: dict[str, Any] = {}
    more = find_more(asked) if find_more else None
    blocks = {"train": train.materialize().to_arrow_refs(), "val": val.materialize().to_arrow_refs() if val else []}
    if more:
        facts["unlabelled"] = more.facts
        blocks["train"] += more.rows.to_arrow_refs() if more.num_images else []
        images = manifest.num_images | {"train": manifest.num_images["train"] + more.num_images}
        manifest = dataclasses.replace(manifest, num_images=images)
        config = _settled(asked, manifest, run)
        check_batches(config, manifest)
    run.write_json("settled.json", config.to_dict())
    console.say(describe(config, spec, manifest))
    if done := len(run.read_metrics()):
        console.say(f"goes on after epoch {done}")
    local = cluster.embedded and config.workers[1] == 1 and not config.use_gpu
    telemetry = Telemetry("train", run.uri)
    with TrainingProgress(config.epochs) as progress:

        def show(message: Announcement) -> None:
            name, arguments = message
            getattr(progress, name)(*arguments)
            _measure(telemetry, config.epochs, *message)

        if local:
            _run_trainer(WorkerJob(config, spec, blocks, show), local=True)
        else:
            with _Relay(show, config) as relay:
                _run_trainer(WorkerJob(config, spec, blocks, relay.announcer()), local=False)
    epochs = run.read_metrics()
    if not epochs:
        raise InputError(
            f"{run.uri} holds no metrics here; on several machines --run must be a bucket or a shared folder"
        )
    if has_diverged(epochs[-1]):
        raise InputError(f"training diverged in epoch {len(epochs)}: the loss is not a number; lower --learning-rate")
    return facts | {"best_epoch": best_epoch(epochs), "num_epochs": len(epochs)}


def _settled(config: TrainConfig, manifest: schema.Manifest, run: RunDirectory) -> TrainConfig:
    """The config with nothing left open; a run that is continued goes on as it was begun, whatever the rules now."""
    if not config.resume or not storage.exists(run.path("settled.json")):
        return settle(config, manifest)
    begun = TrainConfig.from_dict(run.read_json("settled.json"))
    return dataclasses.replace(begun, **{name: getattr(config, name) for name in RESUME_MAY_DIFFER})


def describe(config: TrainConfig, spec: ModelSpec, manifest: schema.Manifest) -> str:
    """What is to be trained, in a line for a person. config: settled."""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in build_model(spec).parameters())
    lengths = f"{spec.reads} of {len(spec.charset)} characters in {spec.image}"
    return (
        f"{spec.network} of {size:,} parameters for {lengths}: {config.epochs} epochs of "
        f"{manifest.num_images['train']:,} images in batches of up to {config.batch_size}"
    )


def check_batches(config: TrainConfig, manifest: schema.Manifest) -> None:
    """Raises InputError where a step would have fewer images than batch normalization needs."""
    images, workers = manifest.num_images["train"], config.workers[1]
    num_steps = math.ceil(math.ceil(images / workers) / config.batch_size)
    smallest = images // workers // max(num_steps, 1)
    check(
        smallest >= 2,
        f"{images} training images cut over {workers} workers in batches of {config.batch_size} leave fewer than the "
        f"2 images a step that batch normalization needs; use fewer workers or another --batch-size",
    )
    check(
        config.patience == 0 or manifest.num_images["val"] > 0,
        f"patience is {config.patience}, but the shards have no validation split to tell whether epochs get better",
    )


def _run_trainer(job: WorkerJob, local: bool) -> None:
    """Trains until the last epoch. Ray Train counts all losses of a training, however long it takes; here as many are
    allowed again whenever an epoch was finished. Raises FailedError where they are too many."""
    run = RunDirectory(job.config.run)
    while True:
        before = len(run.read_metrics())
        try:
            _run_trainer_once(job, local)
            return
        except ray.train.WorkerGroupError as error:
            for failure in error.worker_failures.values():
                cause = getattr(failure, "_base_exc", failure)
                if isinstance(cause, (InputError, FailedError, OSError)):
                    raise cause from None
            if job.config.max_failures and len(run.read_metrics()) > before:
                continue
            if any(hasattr(failure, "_base_exc") for failure in error.worker_failures.values()):
                raise  # of our code
            lost = next(iter(error.worker_failures.values()))
            raise FailedError(
                f"workers were lost more than {job.config.max_failures} times without an epoch between, the last one: "
                f"{_why_lost(lost)}; what was finished is kept, --resume goes on"
            ) from error


def _why_lost(failure: Exception) -> str:
    """The sentence that tells the most, of the page that Ray writes."""
    said = str(getattr(failure, "health_check_failure", failure))
    found = re.search(r"Worker exit detail: ([^.]+)", said)
    return found.group(1) if found else said.splitlines()[0]


def _run_trainer_once(job: WorkerJob, local: bool) -> None:
    config = job.config
    resources: dict[str, float] = {"CPU": config.cpus_per_worker, **({"GPU": 1} if config.use_gpu else {})}
    least, most = config.workers
    group: Any = most if least == most else (least, most)
    if least < most:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
    scaling = ray.train.ScalingConfig(
        num_workers=0 if local else group,
        use_gpu=config.use_gpu,
        resources_per_worker=None if local else resources,
        elastic_resize_monitor_interval_s=RESIZE_S,  # type: ignore[call-arg]
    )
    with tempfile.TemporaryDirectory(
        prefix="captcha_ray-"
    ) as unused:  # what is to be kept, the workers keep in the run
        run_config = ray.train.RunConfig(
            storage_path=unused,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
        )
        trainer = _Trainer(train_worker, train_loop_config={"job": job}, scaling_config=scaling, run_config=run_config)
        trainer.fit()


class _Trainer(ray.train.torch.TorchTrainer):
    """Leaves Ctrl-C to Python: Ray Train's own handler ends the process with status 1 and without a word."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


@ray.remote(num_cpus=0)
class _Mailbox:
    """Carries announcements from a worker on another machine to the driver."""

    def __init__(self) -> None:
        self._messages: list[Announcement] = []

    def put(self, message: Announcement) -> None:
        self._messages.append(message)

    def take(self) -> list[Announcement]:
        messages, self._messages = self._messages, []
        return messages


class _Relay:
    """Shows on the driver's terminal what rank 0 announces, and what is waited for while it announces nothing."""

    def __init__(self, show: Callable[[Announcement], Any], config: TrainConfig) -> None:
        self._show, self._config = show, config
        self._mailbox: Any = _Mailbox.options(scheduling_strategy=here()).remote()  # type: ignore[attr-defined]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def announcer(self) -> Callable[[Announcement], Any]:
        """A function for rank 0; it travels to any machine."""
        mailbox = self._mailbox

        def announce(message: Announcement) -> None:
            mailbox.put.remote(message)

        return announce

    def __enter__(self) -> "_Relay":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        ray.kill(self._mailbox)

    def _watch(self) -> None:
        heard, patience = time.monotonic(), WAITING_S
        while not self._done.wait(ANNOUNCE_INTERVAL_S):
            silent = time.monotonic() - heard
            if self._show_all():
                heard, patience = time.monotonic(), WAITING_S
            elif silent > patience:
                patience *= 2
                have = room.describe(self._config.cpus_per_worker, self._config.use_gpu)
                console.say(
                    f"no step for {silent:.0f} s: {self._config.workers[0]} workers start, or wait for nodes; {have}"
                )
        self._show_all()

    def _show_all(self) -> int:
        """Returns how many there were."""
        messages = ray.get(self._mailbox.take.remote())
        for message in messages:
            self._show(message)
        return len(messages)


def _measure(telemetry: Telemetry, num_epochs: int, name: str, arguments: tuple[Any, ...]) -> None:
    """Tells Prometheus what an announcement says."""
    if name == "step":
        epoch, fraction, images_per_second = arguments
        telemetry.set("captcha_progress", (epoch - 1 + fraction) / num_epochs)
        telemetry.set("captcha_images_per_second", images_per_second)
        return
    record = arguments[0]
    telemetry.set("captcha_progress", record["epoch"] / num_epochs)
    telemetry.set("captcha_images_per_second", record["images_per_second"])
    telemetry.set("captcha_data_wait_fraction", record["data_wait_fraction"])
    telemetry.set("captcha_train_loss", record["train_loss"])
    telemetry.set("captcha_val_exact_match", record.get("val_exact_match"))
    telemetry.set("captcha_workers", record["num_workers"])


def epochs(job: WorkerJob, device: torch.device) -> Generator[dict[str, Any]]:
    """Trains, and gives each epoch's line of `metrics.jsonl`; those of before an interruption come first.

    A single worker trains in this process on the device, several on Ray Train. Raises InputError where the metrics of
    several workers cannot be read here.
    """
    if job.config.workers[1] == 1:
        with contextlib.closing(Worker(job, 0, 1, device)) as worker:
            yield from worker.epochs
            while worker.wants_epoch:
                yield worker.run_epoch()
        return
    run = RunDirectory(job.config.run)
    known = 0
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        trained = pool.submit(_run_trainer, job, local=False)
        while True:
            ended = trained.done()
            kept = run.read_metrics()
            yield from kept[known:]
            known = len(kept)
            if ended:
                break
            concurrent.futures.wait([trained], POLL_S)
    trained.result()
    check(known > 0, f"{run.uri} holds no metrics here; on several machines --run must be a bucket or a shared folder")


def train_worker(arguments: dict[str, Any]) -> None:
    """The loop of one worker, under Ray Train. arguments: {"job": WorkerJob}."""
    job: WorkerJob = arguments["job"]
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train's would say each epoch's metrics on the terminal
    learning.keep_freed_memory()
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if job.config.use_gpu else torch.device("cpu")
    with contextlib.closing(Worker(job, context.get_world_rank(), context.get_world_size(), device)) as worker:
        while worker.wants_epoch:
            record = worker.run_epoch()
            ray.train.report({k: v for k, v in record.items() if isinstance(v, (int, float))})


class Worker:
    """State of one worker between epochs. Every epoch's random numbers follow from (seed, epoch, rank) alone, so a run
    that is continued with as many workers draws what an undisturbed one would have drawn."""

    def __init__(self, job: WorkerJob, rank: int, world_size: int, device: torch.device) -> None:
        config = job.config
        self._job, self._rank, self._world_size = job, rank, world_size
        self._arithmetic = learning.Arithmetic.choose(device, config.precision)
        step_images = config.batch_size * config.workers[1]  # as many with fewer workers: the learning rate fits them
        self._train = self._feed("train", -(-step_images // world_size))
        self._val = self._feed("val", EVALUATION_BATCH_SIZE) if job.blocks["val"] else None
        torch.manual_seed(learning.derive_seed(config.seed))
        self._network = build_model(job.spec).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = learning.build_optimizer(config, self._network)
        self._run = RunDirectory(config.run)
        self._history: list[dict[str, Any]] = []
        if storage.exists(self._run.path(STATE)):
            self._history = checkpoint.load_state(self._run.path(STATE), self._network, self._optimizer)["epochs"]
            if rank == 0:  # the last try may have ended between state and metrics
                self._run.write_metrics(self._history)
        self._events = EventLog(self._run) if rank == 0 else None
        self._parallel: nn.Module | None = None
        if world_size > 1:
            self._parallel = ray.train.torch.prepare_model(self._network, move_to_device=False)
        self._augment = Augment.of(config)
        self._announced = 0.0

    def _feed(self, split: str, batch_size: int) -> learning.EpochFeed:
        """This worker's rows: every world_size-th of the split. Copied out of the object store, but for a single
        worker's single block, which several trainings on one machine share."""
        image, charset = self._job.spec.image, Charset(self._job.spec.charset)
        images: list[npt.NDArray[np.uint8]] = []
        texts: list[str] = []
        offset = 0
        for block in self._job.blocks[split]:
            table: pa.Table = ray.get(block)
            mine = slice((self._rank - offset) % self._world_size, None, self._world_size)
            images.append(schema.unpack_images(table["image"], image)[mine])
            texts += table["text"].to_pylist()[mine]
            offset += len(table)
        counts = [len(range(rank, offset, self._world_size)) for rank in range(self._world_size)]
        return learning.EpochFeed(
            images[0] if len(images) == self._world_size == 1 else np.concatenate(images),
            charset.encode(texts, self._job.spec.slots, variable=self._job.spec.variable),
            counts,
            self._rank,
            batch_size,
        )

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """Lines of `metrics.jsonl` so far, those of before an interruption too."""
        return list(self._history)

    @property
    def wants_epoch(self) -> bool:
        """Whether there is an epoch to do: not past the last, not diverged, patience not spent."""
        done, last = len(self._history), self._job.until or self._job.config.epochs
        diverged = done > 0 and has_diverged(self._history[-1])
        patience = self._job.config.patience
        spent = patience > 0 and done > 0 and done - best_epoch(self._history) >= patience
        return done < last and not diverged and not spent

    def run_epoch(self) -> dict[str, Any]:
        """Trains and validates one epoch; rank 0 keeps it on disk. Returns its line of `metrics.jsonl`."""
        config = self._job.config
        started = time.perf_counter()
        number = len(self._history) + 1
        steps = self._train.num_steps

        def learning_rate(step: int) -> float:
            return learning.learning_rate_at(config, (number - 1 + step / steps) / config.epochs)

        counts, waited_s = learning.train_epoch(
            self._network,
            self._optimizer,
            self._train.epoch(learning.derive_seed(config.seed, number, self._rank, 0)),
            self._arithmetic,
            parallel=self._parallel,
            augment=self._augment,
            seed=learning.derive_seed(config.seed, number, self._rank, 1),
            world_size=self._world_size,
            learning_rate=learning_rate,
            label_smoothing=config.label_smoothing,
            guidance=lambda step: learning.guidance_at((number - 1 + step / steps) / config.epochs),
            on_step=self._announcer(number, started),
        )
        train = self._sum(counts)
        train_s = time.perf_counter() - started
        self._share_buffers()
        val: dict[str, Any] = {}
        if self._val:
            counts = learning.evaluate(self._network, self._val.epoch(None), self._arithmetic)
            val = self._sum(counts).ratios("val")
        record = {
            "epoch": number,
            **train.ratios("train"),
            **val,
            "images_per_second": train.num_images / train_s,
            "data_wait_fraction": waited_s / train_s,
            "learning_rate": learning_rate(steps),
            "num_workers": self._world_size,
            "seconds": time.perf_counter() - started,
        }
        self._history.append({name: _finite(value) for name, value in record.items()})
        if self._rank == 0:
            self._keep()
        return self._history[-1]

    def _announcer(self, epoch: int, started: float) -> Callable[[int, int], None]:
        done = 0

        def on_step(step: int, images: int) -> None:
            nonlocal done
            done += images
            now = time.perf_counter()
            if self._rank == 0 and now - self._announced >= ANNOUNCE_INTERVAL_S:
                self._announced = now
                self._job.announce(("step", (epoch, (step + 1) / self._train.num_steps, done / (now - started))))

        return on_step

    def _share_buffers(self) -> None:
        """Gives all workers rank 0's batch statistics: what is validated must be the network that is kept."""
        if self._world_size > 1:
            for buffer in self._network.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _sum(self, counts: learning.EpochCounts) -> learning.EpochCounts:
        """The counts of all workers together."""
        if self._world_size == 1:
            return counts
        sums: Tensor = torch.from_numpy(counts.sums).to(self._arithmetic.device)
        torch.distributed.all_reduce(sums)
        return learning.EpochCounts(sums.cpu().numpy())

    def _keep(self) -> None:
        """The state last but for what follows from it: a kill before repeats the epoch, which gives the same again."""
        record = self._history[-1]
        best = best_epoch(self._history) == record["epoch"]
        if best and ("val_loss" in record or record["epoch"] == self._job.config.epochs):
            checkpoint.save_model(self._run.path("checkpoint"), self._network, self._job.spec)
        if self._events:
            self._events.add(record)
        checkpoint.save_state(self._run.path(STATE), self._network, self._optimizer, {"epochs": self._history})
        self._run.write_metrics(self._history)
        if not has_diverged(record):
            self._job.announce(("epoch", (record, best)))

    def close(self) -> None:
        """Ends the event file."""
        if self._events:
            self._events.close()


def best_epoch(epochs: list[dict[str, Any]]) -> int:
    """Number of the epoch with the highest validation whole-string accuracy; of equals the one of lower loss; the last
    where there is no validation."""

    def rank(epoch: dict[str, Any]) -> tuple[float, float, int]:
        if "val_loss" not in epoch:
            return 0.0, 0.0, epoch["epoch"]
        loss = math.inf if epoch["val_loss"] is None else epoch["val_loss"]
        return epoch["val_exact_match"] or 0.0, -loss, -epoch["epoch"]

    return int(max(epochs, key=rank)["epoch"])


def has_diverged(epoch: dict[str, Any]) -> bool:
    """Whether a loss of the epoch is not a number."""
    return epoch["train_loss"] is None or epoch.get("val_loss", 0.0) is None


def _finite(value: Any) -> Any:
    """The value, with None for numbers that JSON has no word for."""
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
