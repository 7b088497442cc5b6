"""A run directory that explains itself after the shell history is gone.

    config.json  settled.json  environment.json  manifest.json  metrics.jsonl  results.json  report.html  figures/
    checkpoint/model.{safetensors,json}  tensorboard/  resume.safetensors  _SUCCESS

`config.json` is what was asked for, `settled.json` what the shards made of it. Studies add `folds.parquet` and the
trainings in `folds-K/` and `curve/`.

Never deletes what it did not make; `_SUCCESS` is written last.
"""

import dataclasses
import functools
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captcha_ray import recipes, storage
from captcha_ray.config import InputError, TrainConfig, check

PACKAGES = ("captcha_ray", "ray", "torch", "numpy", "pillow", "pyarrow", "obstore", "safetensors", "optuna")


class EventLog:
    """TensorBoard event files of a run; those of a run in a bucket are copied there after every epoch."""

    def __init__(self, run: "RunDirectory") -> None:
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415 -- it imports torch, which takes seconds

        self._target = run.path("tensorboard")
        self._remote = storage.is_remote(run.uri)
        self._folder = tempfile.mkdtemp(prefix="captcha_ray-") if self._remote else self._target
        os.makedirs(self._folder, exist_ok=True)
        # Not SummaryWriter: its flush leaves out what its thread has not yet taken from its queue. The suffix tells
        # apart two files begun in one second.
        self._writer = EventsWriter(os.path.join(self._folder, "events"), f".{time.time_ns()}")

    def add(self, record: dict[str, Any]) -> None:
        """One epoch, a line of `metrics.jsonl`; lists become one curve per position. On disk when it returns."""
        from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboardX.summary import scalar  # noqa: PLC0415

        for name, value in record.items():
            if name != "epoch":
                values = (
                    {f"{name}/{i + 1}": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
                )
                for tag, number in values.items():
                    if number is not None:
                        event = Event(wall_time=time.time(), step=record["epoch"], summary=scalar(tag, number))
                        self._writer.write_event(event)
        self._writer.flush()
        if self._remote:
            for path in Path(self._folder).iterdir():
                storage.write(storage.join(self._target, path.name), path.read_bytes())

    def close(self) -> None:
        """Ends the file; temporary copies are removed."""
        self._writer.close()
        if self._remote:
            shutil.rmtree(self._folder, ignore_errors=True)


class RunDirectory:
    """Names and writes the files of one run below a folder or `s3://` URI."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.absolute(uri)

    def path(self, *parts: str) -> str:
        """URI of a file in the run."""
        return storage.join(self.uri, *parts)

    def begin(
        self, config: dict[str, Any], manifest: dict[str, Any], *, resume: bool, may_differ: tuple[str, ...] = ()
    ) -> None:
        """Claims the directory as `create` does; to resume, as `reopen` does where a run was begun there."""
        if resume and storage.exists(self.path("config.json")):
            self.reopen(config, manifest, may_differ)
        else:
            self.create(config, manifest)

    def check_free(self) -> None:
        """Raises InputError where the directory holds a run or anything else."""
        if storage.exists(self.path("config.json")):
            raise InputError(f"{self.uri} already holds a run; continue it with --resume or name another --run")
        if not storage.is_empty(self.uri):
            raise InputError(f"{self.uri} is not empty and holds no run; name another --run")

    def create(self, config: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Claims the directory by writing `config.json`, the shards' `manifest.json` and `environment.json`.

        Raises InputError where it already holds a run or anything else, or cannot be written.
        """
        self.check_free()
        try:
            storage.write(self.path("config.json"), to_json(config), exclusive=True)
        except FileExistsError:
            self.check_free()
            raise
        except OSError as error:
            raise InputError(f"{self.uri} cannot be written: {error.strerror or error}") from error
        self.write_json("manifest.json", manifest)
        self.write_json("environment.json", environment())

    def reopen(self, config: dict[str, Any], manifest: dict[str, Any], may_differ: tuple[str, ...]) -> None:
        """Checks that the run was started with the same config, but for the fields that may differ, and on the same
        shards; it counts as unfinished from now on.

        Raises InputError naming the first field that differs, or where the shards were made anew since.
        """
        started = self.read_json("config.json")
        for name, value in config.items():
            if (
                name not in may_differ and started.get(name, value) != value
            ):  # absent: from before there was such a field
                was = started.get(name)
                raise InputError(
                    f"{self.uri} was started with {name} {was!r}, not {value!r}; resume with the same flags"
                )
        if not storage.exists(self.path("environment.json")):  # the start was cut off; nothing was trained yet
            self.write_json("manifest.json", manifest)
            self.write_json("environment.json", environment())
        before = self.read_json("manifest.json")
        if any(before.get(name) != value for name, value in manifest.items() if name != "seconds"):
            raise InputError(f"the shards were made anew since {self.uri} was started; start another run on them")
        storage.delete(self.path("_SUCCESS"))

    @property
    def finished(self) -> bool:
        """Whether the run got to its end."""
        return storage.exists(self.path("_SUCCESS"))

    def finish(self) -> None:
        """Marks the run as complete."""
        storage.write(self.path("_SUCCESS"), b"")

    @property
    def shards(self) -> str:
        """URI of the shards the run was trained on; empty where there is no `config.json` to tell."""
        return str(self.read_json("config.json")["shards"]) if storage.exists(self.path("config.json")) else ""

    def write_json(self, name: str, value: Any) -> None:
        """Writes one JSON file of the run."""
        storage.write(self.path(name), to_json(value))

    def read_json(self, name: str) -> Any:
        """Reads one JSON file of the run. Raises InputError where it is absent or not JSON."""
        return read_json(self.path(name))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Writes one Parquet file of the run."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        storage.write(self.path(name), buffer.getvalue())

    def read_table(self, name: str) -> pa.Table:
        """Reads one Parquet file of the run."""
        return pq.read_table(io.BytesIO(storage.read(self.path(name))))

    def write_metrics(self, epochs: list[dict[str, Any]]) -> None:
        """Writes `metrics.jsonl`, a line per epoch."""
        storage.write(self.path("metrics.jsonl"), b"".join(json.dumps(e).encode() + b"\n" for e in epochs))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The epochs of `metrics.jsonl`; empty where there are none yet."""
        try:
            return [json.loads(line) for line in storage.read(self.path("metrics.jsonl")).splitlines()]
        except FileNotFoundError:
            return []


def read_json(uri: str) -> Any:
    """Reads a JSON file. Raises InputError where it is absent, cannot be read or is not JSON."""
    try:
        return json.loads(storage.read(uri))
    except FileNotFoundError:
        raise InputError(f"{uri} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{uri} cannot be read as JSON: {error}") from error


def load_recipe(name: str) -> TrainConfig:
    """The recipe of that name, or the config in a JSON file, such as a search's `best.json`.

    Raises InputError where there is no such recipe or file, or the file holds no training config.
    """
    if not name.endswith(".json"):
        return recipes.get(name)
    values = read_json(storage.absolute(name))
    check(isinstance(values, dict), f"{name} holds no config of a training")
    return dataclasses.replace(TrainConfig.from_dict(values), recipe=name, resume=False)


def to_json(value: Any) -> bytes:
    """JSON for people: UTF-8, indented, ending in a line feed."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def versions() -> dict[str, str]:
    """Versions of this package and of those its results depend on; packages that are absent are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str | None:
    """The commit this package stands at, with `-dirty` where files differ; outside a checkout what
    CAPTCHA_RAY_COMMIT says, as in an image, or None."""
    if not (Path(__file__).parents[1] / ".git").exists():
        return os.environ.get("CAPTCHA_RAY_COMMIT") or None
    # GIT_DIR and the like, which git sets for hooks, lead to another repository than this package's.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=ours)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def environment() -> dict[str, Any]:
    """What a result depends on beside its config: versions, commit, command and hardware of this machine."""
    return {
        "versions": versions(),
        "commit": commit(),
        "command": sys.argv,
        "platform": platform.platform(),
        "processor": _processor(),
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    """Models of the NVIDIA GPUs whose driver is loaded here."""
    lines = [
        line
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in path.read_text().splitlines()
    ]
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]


def provenance(**sizes: int) -> list[str]:
    """Lines that belong above any measured figure: command, commit, machine, versions, sizes."""
    where = environment()
    return [
        f"command: {' '.join(where['command'])}   commit: {where['commit']}",
        f"machine: {where['processor']}, {where['num_cpus']} CPUs, {where['platform']}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in where["versions"].items()),
        "sizes: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()),
    ]


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
