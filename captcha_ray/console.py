"""What a person at the terminal sees: arguments in, progress and one-sentence errors out. Decides nothing.

Where the environment has `CAPTCHA_RAY_LOG=json`, every line is a JSON object instead, for a store of logs: `time`
(UTC), `level`, `job`, `run` or `out`, `ray_job`, `message`, and the numbers in it by their names.
"""

import contextlib
import datetime
import gc
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import rich.console
import rich.live
import rich.progress
import rich.table
import tyro

from captcha_ray import storage
from captcha_ray.config import AGAIN, FailedError, InputError
from captcha_ray.space import text

T = TypeVar("T")
OUT = rich.console.Console(highlight=False, soft_wrap=True)

STRUCTURED = os.environ.get("CAPTCHA_RAY_LOG") == "json"

_bound: dict[str, Any] = {}


def parse(config_type: type[T], default: T | None = None) -> T:
    """The job's config from the command line. Bad arguments end the process with status 2, `--help` with 0."""
    parsed: Any = tyro.cli(config_type, default=default, config=(tyro.conf.FlagCreatePairsOff,))
    bind(**{name: getattr(parsed, name) for name in ("run", "out") if getattr(parsed, name, "")})
    return parsed  # type: ignore[no-any-return]


def option(name: str, default: str) -> str:
    """The value of `--name` on the command line, before it is parsed in full: it decides the other flags' defaults."""
    found = default
    for argument, following in zip(sys.argv, [*sys.argv[1:], default], strict=True):
        flag, equals, value = argument.partition("=")
        if flag == f"--{name}":
            found = value if equals else following  # the last one wins, as it does in `parse`
    return found


def run(job: Callable[[], None]) -> None:
    """Runs a job and ends the process: 0 done, 2 bad input in one sentence, 1 failure, 130 interrupted, 143 asked to
    end."""
    bind(job=Path(sys.argv[0]).stem)
    try:
        with _terminable():
            job()
    except InputError as error:
        _fail(2, str(error))
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        _fail(128 + number, f"interrupted; what was finished is kept, {AGAIN}")
    except FailedError as error:
        _fail(1, str(error))
    except Exception as error:
        said = storage.full_disk(error)
        _fail(1, said or f"{type(error).__name__}: {error}", trace="" if said else traceback.format_exc())
    finally:
        if "duckdb" not in sys.modules:  # it prints a page about leaks when its types are not collected
            gc.freeze()  # the interpreter's last collection over torch's objects would take two seconds for nothing


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, actors and all: so `ray job stop`, Kubernetes and `kill` ask a job to end.

    KeyboardInterrupt's argument is the signal's number then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked: list[int] = []

    def end(number: int, frame: Any) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:  # Ray Train raises another one than ours
        raise KeyboardInterrupt(*asked) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(status: int, sentence: str, trace: str = "") -> None:
    """Ends the process. trace: for those who mend the code; before the sentence, or a field of a structured line."""
    if trace and not STRUCTURED:
        print(trace, end="", file=sys.stderr)
    _print_error("error", sentence, status=status, **({"trace": trace} if trace else {}))
    raise SystemExit(status)


def bind(**fields: Any) -> None:
    """Fields that every structured line from now on bears."""
    _bound.update(fields)


def say(line: str, **numbers: Any) -> None:
    """One line for the person, as it is. numbers: those in it, by their names, for a structured line."""
    if STRUCTURED:
        print(_structured("info", line, numbers), flush=True)
    else:
        OUT.print(line, markup=False)


def _print_error(level: str, sentence: str, **numbers: Any) -> None:
    line = _structured(level, sentence, numbers) if STRUCTURED else f"{level}: {sentence}"
    print(line, file=sys.stderr, flush=True)


def _structured(level: str, message: str, numbers: dict[str, Any]) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "level": level, **_bound, "message": message, **numbers}, ensure_ascii=False)


def _is_terminal() -> bool:
    return OUT.is_terminal and not STRUCTURED


@contextlib.contextmanager
def progress(what: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """A bar with rate and time left; gives a function that takes how many more are done, and a word on them.

    total: None where nobody knows. Where output is not a terminal (a log, `ray job logs`), a line at most every ten
    seconds instead.
    """
    started = last = time.monotonic()
    done = 0
    with _bar() as bar:
        task = bar.add_task(what, total=total, unit=unit, note="")

        def advance(count: int, note: str = "") -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            rate = done / max(now - started, 1e-9)
            note = f", {note}" if note else ""
            bar.update(task, completed=done, note=f"{_rate(rate)} {unit}/s{note}")
            if not _is_terminal() and now - last >= 10:
                last = now
                left = f", {_left(total - done, rate)} left" if total is not None else ""
                of = f" of {total:,}" if total is not None else ""
                line = f"{what}: {done:,}{of} {unit}, {_rate(rate)} {unit}/s{note}{left}"
                say(line, done=done, total=total, per_second=rate)

        yield advance
    seconds = time.monotonic() - started
    rate = done / max(seconds, 1e-9)
    say(f"{what}: {done:,} {unit} in {seconds:.1f} s ({_rate(rate)} {unit}/s)", done=done, per_second=rate)


class TrainingProgress:
    """One bar for a whole training run and one line per finished epoch."""

    def __init__(self, num_epochs: int) -> None:
        self.num_epochs = num_epochs
        self._bar = _bar()
        self._task = self._bar.add_task("train", total=None, note="starting")
        self._started: tuple[float, float] | None = None
        self._num_workers = 0

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, num_epochs: int, num_workers: int) -> None:
        """Workers begin, so many epochs being done; again where some were lost, or more have come."""
        if before := self._num_workers:
            why = "more workers have come" if num_workers > before else "workers were lost"
            say(
                f"{why}: training goes on after epoch {num_epochs} with {num_workers}, it was {before}",
                num_epochs=num_epochs,
                num_workers=num_workers,
            )
        self._num_workers, self._started = num_workers, None  # what was waited for says nothing of what is left

    def plan(self, num_epochs: int, change: str) -> None:
        """Set the number of epochs planned. change: a sentence on what has changed it; may be empty."""
        self.num_epochs = num_epochs
        if self._started is not None:
            self._bar.update(self._task, total=num_epochs)
        if change:
            say(f"{change}; {num_epochs} epochs in all", num_epochs=num_epochs)

    def step(self, epoch: int, fraction: float, images_per_second: float) -> None:
        """epoch: from 1. fraction: of the epoch that is done, 0 to 1."""
        done = epoch - 1 + fraction
        if self._started is None:
            self._started = (time.monotonic(), done)
            self._bar.reset(self._task, total=self.num_epochs)
        self._bar.update(
            self._task, completed=done, note=f"epoch {epoch}/{self.num_epochs}  {images_per_second:,.0f} images/s"
        )

    def epoch(self, record: dict[str, Any], best: bool) -> None:
        """record: a line of `metrics.jsonl`."""
        self.step(record["epoch"], 1.0, record["images_per_second"])
        left = ""
        if self._started is not None and not _is_terminal():
            at, done = self._started
            rate = (record["epoch"] - done) / max(time.monotonic() - at, 1e-9)
            left = f"  {_left(self.num_epochs - record['epoch'], rate)} left"
        loss, characters = f"{record['train_loss']:.3f}", f"{record['train_char_accuracy']:.2%}"
        if "val_loss" in record:
            loss += f" val {record['val_loss']:.3f}"
            characters += f" val {record['val_char_accuracy']:.2%}  strings val {record['val_exact_match']:.2%}"
        say(
            f"epoch {record['epoch']:>3}/{self.num_epochs}  loss {loss}  characters {characters}"
            f"  {record['images_per_second']:,.0f} images/s{left}{'  best' if best and 'val_loss' in record else ''}",
            **record,
        )


class SearchProgress:
    """A table of the trials that run and of the best one, redrawn in place, and one line per trial that has ended.

    num_epochs: of a trial in full. expected_epochs: of all trials. names: of the searched parameters.
    """

    def __init__(self, num_trials: int, num_epochs: int, expected_epochs: int, names: Sequence[str]) -> None:
        self._num_trials, self._num_epochs, self._names = num_trials, num_epochs, list(names)
        self._expected_epochs = expected_epochs
        self._epochs: dict[int, int] = {}
        self._ended: set[int] = set()
        self._running: dict[int, tuple[dict[str, Any], int, float]] = {}
        self._best: tuple[int, dict[str, Any], int, float] | None = None
        self._score = -math.inf
        self._known_epochs = 0
        self._note = ""
        self._started = time.monotonic()
        self._live = rich.live.Live(get_renderable=self._draw, console=OUT, transient=True, refresh_per_second=4)

    def __enter__(self) -> "SearchProgress":
        if _is_terminal():
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if _is_terminal():
            self._live.stop()

    def begin(self, number: int, values: dict[str, Any], epochs: int, accuracy: float) -> None:
        """A trial starts, or goes on after so many epochs, the best of which had that accuracy."""
        self._running[number] = (values, epochs, accuracy)
        self._know(number, epochs)

    def epoch(self, number: int, epoch: int, accuracy: float) -> None:
        """A trial has done an epoch. accuracy: in validation, of its best epoch."""
        if epoch <= self._running[number][1]:
            return  # one it has repeated after an interruption
        self._running[number] = (self._running[number][0], epoch, accuracy)
        self._epochs[number] = epoch

    def end(
        self, number: int, values: dict[str, Any], epochs: int, accuracy: float, score: float, how: str = ""
    ) -> None:
        """A trial is over. score: what trials are ranked by. how: its status and a reason; empty: known from before."""
        self._running.pop(number, None)
        self._ended.add(number)
        if first := score > self._score:
            self._best, self._score = (number, values, epochs, accuracy), score
        if how:
            say(
                f"trial {number:>3}  {accuracy:7.2%} after {epochs:>3} epochs, {how}  {_values(values)}"
                f"{'  best' if first else ''}  ({len(self._ended)}/{self._num_trials}{self._left()})",
                trial=number,
                accuracy=accuracy,
                epochs=epochs,
                values=values,
            )
        else:
            self._know(number, epochs)

    def compared(self, name: str, accuracy: float, done: int, total: int) -> None:
        """A training in full at the end has read that share of the validation images."""
        self._note = f"comparison: {done} of {total} trainings in full"
        say(f"final {name:<9} {accuracy:7.2%}  ({done}/{total})", name=name, accuracy=accuracy)

    def _know(self, number: int, epochs: int) -> None:
        """Epochs of an earlier session do not count for the speed of this one."""
        if number not in self._epochs:
            self._epochs[number] = epochs
            self._known_epochs += epochs

    def _left(self) -> str:
        done = sum(self._epochs.values())
        rate = (done - self._known_epochs) / max(time.monotonic() - self._started, 1e-9)
        return f", {_left(self._expected_epochs - done, rate)} left" if done < self._expected_epochs else ""

    def _draw(self) -> rich.table.Table:
        table = rich.table.Table("trial", "epoch", "strings val", *self._names, caption=self._note or None)
        rows = [(str(number), *row) for number, row in sorted(self._running.items())]
        if self._best:
            rows.append((f"best: {self._best[0]}", *self._best[1:]))
        for name, values, epoch, accuracy in rows:
            cells = (text(values[parameter]) for parameter in self._names)
            table.add_row(name, f"{epoch}/{self._num_epochs}", f"{accuracy:.2%}", *cells)
        return table


def _values(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={text(value)}" for name, value in values.items())


def _bar() -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TextColumn("{task.fields[note]}"),
        rich.progress.TimeRemainingColumn(),
        console=OUT,
        transient=True,
        disable=not _is_terminal(),
    )


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.2g}"


def _left(amount: float, rate: float) -> str:
    if rate <= 0:
        return "unknown time"
    seconds = round(amount / rate)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def warn(sentence: str) -> None:
    """A sentence on standard error; the job goes on."""
    _print_error("warning", sentence)
