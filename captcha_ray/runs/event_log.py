"""Write TensorBoard event files of a run."""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from captcha_ray.runs.directory import RunDirectory
from captcha_ray.storage import filesystem


class EventLog:
    """TensorBoard event files of a run; those of a run in a bucket are copied there after every epoch."""

    def __init__(self, run: "RunDirectory") -> None:
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415 -- it imports torch, which takes seconds

        self._target = run.path("tensorboard")
        self._remote = filesystem.is_remote(run.uri)
        self._folder = tempfile.mkdtemp(prefix="captcha_ray-") if self._remote else self._target
        os.makedirs(self._folder, exist_ok=True)
        # Not SummaryWriter: its flush leaves out what its thread has not yet taken from its queue. The suffix tells
        # apart two files begun in one second.
        self._writer = EventsWriter(os.path.join(self._folder, "events"), f".{time.time_ns()}")

    def add(self, record: dict[str, Any]) -> None:
        """Write one epoch, a line of `metrics.jsonl`, to disk; lists become one curve per position."""
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
                filesystem.write(filesystem.join(self._target, path.name), path.read_bytes())

    def close(self) -> None:
        """End the file and remove temporary copies."""
        self._writer.close()
        if self._remote:
            shutil.rmtree(self._folder, ignore_errors=True)
