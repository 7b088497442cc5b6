"""A run directory that explains itself after the shell history is gone.

    config.json  resolved_config.json  environment.json  manifest.json  metrics.jsonl  results.json  report.html
    figures/  checkpoint/model.{safetensors,json}  tensorboard/  resume.safetensors  _SUCCESS

`config.json` is what was asked for, `resolved_config.json` what the shards made of it. Experiments add
`folds.parquet` and the trainings in `folds-K/` and `curve/`.

Never deletes what it did not make; `_SUCCESS` is written last.
"""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captcha_ray.errors import InputError
from captcha_ray.runs.environment import environment
from captcha_ray.storage import filesystem


class RunDirectory:
    """Names and writes the files of one run below a folder or `s3://` URI."""

    def __init__(self, uri: str) -> None:
        self.uri = filesystem.absolute(uri)

    def path(self, *parts: str) -> str:
        """URI of a file in the run."""
        return filesystem.join(self.uri, *parts)

    def begin(
        self, config: dict[str, Any], manifest: dict[str, Any], *, resume: bool, may_differ: tuple[str, ...] = ()
    ) -> None:
        """Claims the directory as `create` does; to resume, as `reopen` does where a run was begun there."""
        if resume and filesystem.exists(self.path("config.json")):
            self.reopen(config, manifest, may_differ)
        else:
            self.create(config, manifest)

    def check_free(self) -> None:
        """Raises InputError where the directory holds a run or anything else."""
        if filesystem.exists(self.path("config.json")):
            raise InputError(f"{self.uri} already holds a run; continue it with --resume or name another --run")
        if not filesystem.is_empty(self.uri):
            raise InputError(f"{self.uri} is not empty and holds no run; name another --run")

    def create(self, config: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Claims the directory by writing `config.json`, the shards' `manifest.json` and `environment.json`.

        Raises InputError where it already holds a run or anything else, or cannot be written.
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
        if not filesystem.exists(self.path("environment.json")):  # the start was cut off; nothing was trained yet
            self.write_json("manifest.json", manifest)
            self.write_json("environment.json", environment())
        before = self.read_json("manifest.json")
        if any(before.get(name) != value for name, value in manifest.items() if name != "seconds"):
            raise InputError(f"the shards were made anew since {self.uri} was started; start another run on them")
        filesystem.delete(self.path("_SUCCESS"))

    @property
    def finished(self) -> bool:
        """Whether the run got to its end."""
        return filesystem.exists(self.path("_SUCCESS"))

    def finish(self) -> None:
        """Marks the run as complete."""
        filesystem.write(self.path("_SUCCESS"), b"")

    @property
    def shards(self) -> str:
        """URI of the shards the run was trained on; empty where there is no `config.json` to tell."""
        return str(self.read_json("config.json")["shards"]) if filesystem.exists(self.path("config.json")) else ""

    def write_json(self, name: str, value: Any) -> None:
        """Writes one JSON file of the run."""
        filesystem.write(self.path(name), to_json(value))

    def read_json(self, name: str) -> Any:
        """Reads one JSON file of the run. Raises InputError where it is absent or not JSON."""
        return read_json(self.path(name))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Writes one Parquet file of the run."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        filesystem.write(self.path(name), buffer.getvalue())

    def read_table(self, name: str) -> pa.Table:
        """Reads one Parquet file of the run."""
        return pq.read_table(io.BytesIO(filesystem.read(self.path(name))))

    def write_metrics(self, epochs: list[dict[str, Any]]) -> None:
        """Writes `metrics.jsonl`, a line per epoch."""
        filesystem.write(self.path("metrics.jsonl"), b"".join(json.dumps(e).encode() + b"\n" for e in epochs))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The epochs of `metrics.jsonl`; empty where there are none yet."""
        try:
            return [json.loads(line) for line in filesystem.read(self.path("metrics.jsonl")).splitlines()]
        except FileNotFoundError:
            return []


def read_json(uri: str) -> Any:
    """Reads a JSON file. Raises InputError where it is absent, cannot be read or is not JSON."""
    try:
        return json.loads(filesystem.read(uri))
    except FileNotFoundError:
        raise InputError(f"{uri} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{uri} cannot be read as JSON: {error}") from error


def to_json(value: Any) -> bytes:
    """JSON for people: UTF-8, indented, ending in a line feed."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
