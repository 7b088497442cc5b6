"""Train a network data-parallel: on how many workers, and what happens if they are lost.

Progress is kept in the run directory, within epochs too; a restarted worker and `--resume` continue from there. Reads
no corpora, does not evaluate the test split.
"""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Generator
from typing import Any

import ray
import ray.data
import ray.exceptions
import ray.train
import torch

from captcha_ray import console
from captcha_ray.datasets import schema
from captcha_ray.datasets.shards import Shards
from captcha_ray.datasets.splits import Split
from captcha_ray.errors import InputError, JobError, check
from captcha_ray.models import fingerprint
from captcha_ray.models.networks import build_model
from captcha_ray.models.spec import BUILTIN, ModelSpec
from captcha_ray.models.transfer import check_source
from captcha_ray.recipes.auto_config import resolve, why_not_builtin
from captcha_ray.recipes.config import RESUME_MAY_DIFFER, Stream, TrainConfig
from captcha_ray.runs.directory import STATE, WITHIN_EPOCH, RunDirectory
from captcha_ray.runtime import capacity
from captcha_ray.runtime.progress_channel import ProgressChannel
from captcha_ray.runtime.ray_session import Cluster
from captcha_ray.runtime.ray_train import LOST_WORKER_ERROR, InterruptibleTrainer
from captcha_ray.runtime.telemetry import Telemetry
from captcha_ray.storage import filesystem, retries
from captcha_ray.storage.lock import Lease
from captcha_ray.storage.row_groups import RowGroup
from captcha_ray.text.visual_order import has_right_to_left
from captcha_ray.training.progress import Event, TrainingProgress, WaitingNotice, measure
from captcha_ray.training.schedule import best_epoch, has_diverged
from captcha_ray.training.state import State
from captcha_ray.training.worker import Worker, WorkerJob, train_worker

RESIZE_S = 60.0
"""Seconds after which an elastic training that lacks workers looks for capacity. A change costs the epoch it is at,
and some seconds for new processes.
"""

START_TIMEOUT_S = 10.0
"""Seconds that an elastic training waits for its workers. Ray looks at nodes every 20 seconds, so one may be gone; its
default, a minute, was most of a recovery.
"""

STREAM_ABOVE = 0.5
"""Share of Ray's object stores above which images are streamed; the workers' copies take as much memory again."""

POLL_S = 1.0
"""Seconds between two looks at the metrics of workers elsewhere."""


@dataclasses.dataclass(frozen=True)
class MoreImages:
    """Images to learn from beside the shards. rows: as in `schema.shard_schema`. facts: for `results.json`."""

    rows: ray.data.Dataset
    num_images: int
    facts: dict[str, Any]


def model_spec(config: TrainConfig, manifest: schema.Manifest) -> ModelSpec:
    """Return the network for these shards. Raises InputError if config, shards and network do not fit together."""
    image = manifest.image_spec
    for name in ("height", "width"):
        requested, found = getattr(config, name), getattr(image, name)
        check(
            requested in (0, found),
            f"the shards hold images of {image.width}x{image.height} pixels (width x height), but recipe "
            f"{config.recipe} needs {name} {requested}; preprocess to that size, or pass --{name} 0 to take theirs",
        )
    check(
        config.charset in ("", manifest.charset),
        f"the shards were made for charset {manifest.charset!r}, not {config.charset!r}",
    )
    spec = ModelSpec(
        network=config.network,
        image=image,
        charset=manifest.charset,
        max_length=config.max_length or manifest.max_length,
        variable=config.variable_length,
        filters=config.filters,
        head="light" if config.head == "auto" else config.head,  # auto: of a network that has none
        dropout=config.dropout,
        bidirectional=has_right_to_left(manifest.charset),
        aspect_ratios=manifest.aspect_ratios,
    )
    check(
        spec.fits(manifest.min_length, manifest.max_length),
        f"labels in the shards have {manifest.min_length} to {manifest.max_length} characters, but the network "
        f"recognizes {spec.length_range} in every image; keep those by preprocessing with --length {spec.max_length}, "
        f"pass --max-length 0 where all have another length, or train column_cnn with --variable-length",
    )
    with torch.device("meta"):
        build_model(spec)
    return spec


def fit(
    config: TrainConfig,
    shards: Shards,
    cluster: Cluster,
    find_more: Callable[[TrainConfig], MoreImages] | None = None,
) -> dict[str, Any]:
    """Train until the last epoch, or until patience runs out; the best network is then in `checkpoint/`.

    A single CPU worker of an embedded Ray trains in this process (Ray Train's local mode): there is no other machine,
    and starting a worker takes longer than a small training.

    Args:
        config: As requested.
        shards: To learn from; without a validation split the last epoch's network is kept.
        cluster: Where to train.
        find_more: Called for images besides the shards', once the run's directory is claimed and the config fits.

    Returns:
        What `results.json` says about the training.

    Raises:
        InputError: Shards, workers or the run directory do not fit, another job is at work on the run, or the loss
            stops being a number.
        JobError: Workers are lost again and again.
    """
    started = time.perf_counter()
    config, run, manifest = config.absolute(), RunDirectory(config.run), shards.manifest
    resolved = _check_and_begin(config, manifest, run)
    facts: dict[str, Any] = {}
    with Lease(run.path("_lease.json")) as lease:
        more = find_more(config) if find_more else None
        blocks: dict[str, list[Any]] = {"train": [], "val": []}
        streamed: dict[str, list[RowGroup]] = {}
        splits: list[Split] = ["train", "val"] if manifest.num_images["val"] else ["train"]
        stream: Stream = "always" if is_streamed(resolved, manifest) else "never"
        if stream == "always":
            streamed = {split: shards.row_groups(split) for split in splits}
        else:
            blocks |= {split: shards.read(split).materialize().to_arrow_refs() for split in splits}
        if more:
            facts["unlabeled"] = more.facts
            blocks["train"] += more.rows.to_arrow_refs() if more.num_images else []
            images = manifest.num_images | {"train": manifest.num_images["train"] + more.num_images}
            manifest = dataclasses.replace(manifest, num_images=images)
            # Batch size and epochs follow from all images, which are known only now; what never fits was refused.
            resolved = _resolved(config, manifest, run)
            check_batches(resolved, manifest)
        _train(dataclasses.replace(resolved, stream=stream), manifest, blocks, streamed, cluster)
        lease.check()
    return facts | _outcome(run) | {"seconds": time.perf_counter() - started}


def _check_and_begin(config: TrainConfig, manifest: schema.Manifest, run: RunDirectory) -> TrainConfig:
    """Raise InputError for what never fits, wait for capacity, write what the run is, and return the resolved config.

    config: as requested.
    """
    resolved = _resolved(config, manifest, run)
    spec = model_spec(resolved, manifest)
    if resolved.init and not filesystem.exists(run.path(STATE)):
        check_source(spec, resolved.init)
    wanted = config.init == BUILTIN and not config.from_scratch
    if wanted and (why := why_not_builtin(config, manifest.charset)):
        console.say(f"begins with random weights, as the built-in ones do not fit: {why}")
    check_batches(resolved, manifest)
    if not config.resume:
        run.check_free()
    init = fingerprint.shared(resolved.init)
    where = {"shards": config.shards, "unlabeled": config.unlabeled, "init": init, "run": config.run}
    capacity.wait_for_capacity(resolved.workers[0], resolved.cpus_per_worker, resolved.use_gpu, **where)
    run.begin(config.to_dict(), manifest.to_dict(), resume=config.resume, may_differ=RESUME_MAY_DIFFER)
    return resolved


def _outcome(run: RunDirectory) -> dict[str, Any]:
    """Return what the epochs came to. Raises InputError if the loss is not a number, or metrics are not here."""
    epochs = run.read_metrics()
    if not epochs:
        raise InputError(
            f"{run.uri} holds no metrics here; on several machines --run must be a bucket or a shared folder"
        )
    if has_diverged(epochs[-1]):
        raise InputError(f"training diverged in epoch {len(epochs)}: the loss is not a number; lower --learning-rate")
    attempts = epochs[-1].get("attempt", 0) + 1
    return {"best_epoch": best_epoch(epochs), "num_epochs": len(epochs), "num_attempts": attempts}


def is_streamed(config: TrainConfig, manifest: schema.Manifest) -> bool:
    """Return whether workers read images from the shards in every epoch, and say so where that was not asked for."""
    if config.stream != "auto" or config.unlabeled:
        return config.stream == "always"
    num_bytes = (manifest.num_images["train"] + manifest.num_images["val"]) * math.prod(manifest.image_spec.shape)
    stores = capacity.object_store_bytes()
    room = min(sum(stores), config.workers[0] * min(stores))  # each worker's copy lies on its node
    if num_bytes <= STREAM_ABOVE * room:
        return False
    console.say(
        f"images are read from the shards in every epoch: they have {num_bytes / 1e9:.1f} GB, and Ray's object stores "
        f"beside the workers {room / 1e9:.1f} GB (--stream never holds them in memory)"
    )
    return True


def _train(
    config: TrainConfig,
    manifest: schema.Manifest,
    blocks: dict[str, list[Any]],
    streamed: dict[str, list[RowGroup]],
    cluster: Cluster,
) -> None:
    """Train all epochs that are left, and show and measure them. config: resolved."""
    spec, run = model_spec(config, manifest), RunDirectory(config.run)
    run.write_json("resolved_config.json", config.to_dict())
    console.say(describe(config, spec, manifest))
    if done := len(run.read_metrics()):
        console.say(f"goes on after epoch {done}")
    telemetry = Telemetry("train", config.run)
    with TrainingProgress(config.epochs) as progress:

        def show(event: Event) -> None:
            progress.show(event)
            measure(telemetry, progress.num_epochs, event)

        if cluster.embedded and config.workers[1] == 1 and not config.use_gpu:
            with capacity.gpus_hidden():
                _run_trainer(WorkerJob(config, spec, blocks, show, streamed=streamed), local=True)
        else:
            with ProgressChannel(show, WaitingNotice(config)) as channel:
                send = channel.sender()
                job = WorkerJob(config, spec, blocks, send, streamed=streamed, flush=send.flush)
                _run_trainer(job, local=False)
    filesystem.delete(run.path(WITHIN_EPOCH))  # a kill may have come between the last epoch's end and its removal


def _resolved(config: TrainConfig, manifest: schema.Manifest, run: RunDirectory) -> TrainConfig:
    """Return the config with nothing left open; a run that is continued keeps what it was begun with."""
    if not config.resume or not filesystem.exists(run.path("resolved_config.json")):
        return resolve(config, manifest)
    earlier = {"head": "light"}  # of runs that were begun before there was a choice
    begun = TrainConfig.from_dict(earlier | run.read_json("resolved_config.json"))
    changed = {name: getattr(config, name) for name in RESUME_MAY_DIFFER}
    if config.stream == "auto":  # what it was when the run began: there may be more memory now
        del changed["stream"]
    return dataclasses.replace(begun, **changed)


def describe(config: TrainConfig, spec: ModelSpec, manifest: schema.Manifest) -> str:
    """Describe the training in a line for a person. config: resolved."""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in build_model(spec).parameters())
    longest = f" (up to {config.max_epochs} where that helps)" if config.max_epochs > config.epochs else ""
    lengths = f"{spec.length_range} of {len(spec.charset)} characters in {spec.image}"
    begins = f", begun with the weights of {config.init}," if config.init else ""
    return (
        f"{spec.network} of {size:,} parameters{begins} for {lengths}: {config.epochs} epochs{longest} of "
        f"{manifest.num_images['train']:,} images in batches of up to {config.batch_size}"
    )


def check_batches(config: TrainConfig, manifest: schema.Manifest) -> None:
    """Raise InputError if batch normalization gets too few images a step, or patience has no validation."""
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
    """Train until the last epoch. Raises JobError if workers are lost too often without progress between.

    Ray Train counts all losses of a training; here as many are allowed again once more is kept than before.
    """
    run = RunDirectory(job.config.run)
    while True:
        before = _how_far(run)
        try:
            _run_trainer_once(job, local)
            return
        except ray.train.WorkerGroupError as error:
            failures = list(error.worker_failures.values())
            told = [failure for failure in failures if isinstance(failure, (InputError, JobError, OSError))]
            final = any(isinstance(failure, (InputError, JobError)) for failure in told)
            if job.config.max_failures and not final and _how_far(run) > before:
                continue
            if told:
                raise told[0] from None
            lost = [
                failure for failure in failures if isinstance(failure, (LOST_WORKER_ERROR, ray.exceptions.RayError))
            ]
            if not lost:
                raise  # of our code, with its trace; the others of a worker that is lost fail as well
            raise JobError(
                f"workers were lost more than {job.config.max_failures} times without progress between, the last one: "
                f"{_why_lost(lost[0])}; what was finished is kept, --resume goes on"
            ) from error


def _how_far(run: RunDirectory) -> tuple[int, int]:
    """Return the number of epochs that are kept, and of steps that are kept of the next."""
    within, done = State.read_if_there(run.path(WITHIN_EPOCH)), len(run.read_metrics())
    return done, within.progress["step"] if within and within.progress.get("epoch") == done + 1 else 0


def _why_lost(failure: Exception) -> str:
    """Return the most telling sentence of Ray's page about a lost worker."""
    said = str(getattr(failure, "health_check_failure", failure))
    found = re.search(r"Worker exit detail: ([^.]+)", said)
    return found.group(1) if found else said.splitlines()[0]


def _run_trainer_once(job: WorkerJob, local: bool) -> None:
    config = job.config
    resources = {"CPU": capacity.cpu_request(config.cpus_per_worker), **({"GPU": 1} if config.use_gpu else {})}
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
        trainer = InterruptibleTrainer(
            train_worker,
            # Ray gives a process threads by the whole CPUs it has, and a little of the last one is left to others.
            train_loop_config={"job": job, "num_threads": 0 if local else config.cpus_per_worker},
            scaling_config=scaling,
            run_config=run_config,
        )
        trainer.fit()


def epochs(job: WorkerJob, device: torch.device) -> Generator[dict[str, Any]]:
    """Train and yield the lines of `metrics.jsonl`; those of before an interruption come first.

    A single worker trains in this process on the device, several on Ray Train. Raises InputError if the metrics of
    several workers cannot be read here.
    """
    if job.config.workers[1] == 1:
        with retries.patience(), contextlib.closing(Worker(job, 0, 1, device)) as worker:
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
