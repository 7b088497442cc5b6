"""Keep a run in a directory that explains itself after the shell history is gone.

    config.json  resolved_config.json  environment.json  manifest.json  metrics.jsonl  results.json  report.html
    figures/  checkpoint/model.{safetensors,json}  tensorboard/  resume{,_epoch}.safetensors  _SUCCESS

`config.json` is what was requested, `resolved_config.json` what the shards made of it. Cross-validation and learning
curve add `folds.parquet` and the trainings in `folds-K/` and `curve/`. Files of others are never deleted; `_SUCCESS` is
written last.
"""

import json
from typing import Any

import pyarrow as pa

from captcha_ray.errors import InputError
from captcha_ray.runs.environment import environment
from captcha_ray.storage import filesystem, parquet

STATE, WITHIN_EPOCH = "resume.safetensors", "resume_epoch.safetensors"
"""Files of what a training continues from after an epoch, and within one; there is no second one between epochs."""


class RunDirectory:
    """The files of one run below a folder or an `s3://` URI."""

    def __init__(self, uri: str) -> None:
        self.uri = filesystem.absolute(uri)

    def path(self, *parts: str) -> str:
        """Return the URI of a file in the run."""
        return filesystem.join(self.uri, *parts)

    def begin(
        self, config: dict[str, Any], manifest: dict[str, Any], *, resume: bool, may_differ: tuple[str, ...] = ()
    ) -> None:
        """Claim the directory as `create` does, or reopen it as `reopen` does if a run to resume is there.

        Args:
            config: Of the job, as JSON types.
            manifest: Of the shards, as JSON types.
            resume: Whether an unfinished run may be there.
            may_differ: Fields of the config that may differ from the unfinished run's.
        """
        if resume and filesystem.exists(self.path("config.json")):
            self.reopen(config, manifest, may_differ)
        else:
            self.create(config, manifest)

    def check_free(self) -> None:
        """Raise InputError if the directory holds a run or anything else."""
        if filesystem.exists(self.path("config.json")):
            raise InputError(f"{self.uri} already holds a run; continue it with --resume or name another --run")
        if not filesystem.is_empty(self.uri):
            raise InputError(f"{self.uri} is not empty and holds no run; name another --run")

    def create(self, config: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Claim the directory by writing `config.json`, the shards' `manifest.json` and `environment.json`.

        Raises InputError if it holds anything, or cannot be written.
        """
        self.check_free()
        try:
            filesystem.write(self.path("config.json"), to_json(config), exclusive=True)
        except FileExistsError:
            self.check_free()
            raise
        except OSError as error:
            raise InputError(f"{self.uri} cannot be written: {error.strerror or error}") from error
        self.write_json("manifest.json", manifest)
        self.write_json("environment.json", environment())

    def reopen(self, config: dict[str, Any], manifest: dict[str, Any], may_differ: tuple[str, ...]) -> None:
        """Mark a run as unfinished after checking that config and shards are those it was started with.

        Raises InputError naming the first field that differs, except for `may_differ`, or if the shards were made anew.
        """
        self.check_config(config, may_differ)
        if not filesystem.exists(self.path("environment.json")):  # the start was cut off; nothing was trained yet
            self.write_json("manifest.json", manifest)
            self.write_json("environment.json", environment())
        before = self.read_json("manifest.json")
        if any(before.get(name) != value for name, value in manifest.items() if name != "seconds"):
            raise InputError(f"the shards were made anew since {self.uri} was started; start another run on them")
        filesystem.delete(self.path("_SUCCESS"))

    def check_config(self, config: dict[str, Any], may_differ: tuple[str, ...]) -> None:
        """Raise InputError naming the first field, but for `may_differ`, that is not as the run was started with."""
        started = self.read_json("config.json")
        for name, value in config.items():
            was = started.get(name, value)  # a run may be older than a field
            if name not in may_differ and was != value:
                raise InputError(
                    f"{self.uri} was started with {name} {was!r}, not {value!r}; resume with the same flags, and name "
                    "this one if a recipe's default has changed since"
                )

    @property
    def finished(self) -> bool:
        """Return whether the run is complete."""
        return filesystem.exists(self.path("_SUCCESS"))

    @property
    def is_unfinished(self) -> bool:
        """Return whether a training was begun here that goes on, or was interrupted after its first epoch."""
        return not self.finished and filesystem.exists(self.path(STATE))

    def forget_state(self) -> None:
        """Delete what a training continues from, as it has ended for good."""
        for name in (STATE, WITHIN_EPOCH):
            filesystem.delete(self.path(name))

    def finish(self) -> None:
        """Mark the run as complete."""
        filesystem.write(self.path("_SUCCESS"), b"")

    @property
    def shards(self) -> str:
        """Return the URI of the shards the run was trained on; empty without a `config.json`."""
        return str(self.read_json("config.json")["shards"]) if filesystem.exists(self.path("config.json")) else ""

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file of the run."""
        filesystem.write(self.path(name), to_json(value))

    def read_json(self, name: str) -> Any:
        """Read one JSON file of the run. Raises InputError if it is absent or not JSON."""
        return read_json(self.path(name))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write one Parquet file of the run."""
        parquet.write(self.path(name), table)

    def read_table(self, name: str) -> pa.Table:
        """Read one Parquet file of the run."""
        return parquet.read(self.path(name))

    def write_metrics(self, epochs: list[dict[str, Any]]) -> None:
        """Write `metrics.jsonl`, a line per epoch."""
        filesystem.write(self.path("metrics.jsonl"), b"".join(json.dumps(e).encode() + b"\n" for e in epochs))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the epochs of `metrics.jsonl`; empty if there are none yet."""
        try:
            return [json.loads(line) for line in filesystem.read(self.path("metrics.jsonl")).splitlines()]
        except FileNotFoundError:
            return []


def read_json(uri: str) -> Any:
    """Read a JSON file. Raises InputError if it is absent, cannot be read or is not JSON."""
    try:
        return json.loads(filesystem.read(uri))
    except FileNotFoundError:
        raise InputError(f"{uri} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{uri} cannot be read as JSON: {error}") from error


def to_json(value: Any) -> bytes:
    """Return JSON for people: UTF-8, indented, ending in a line feed."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
