"""Talk to the person at the terminal: parse arguments, print progress and one-sentence errors, set the exit status.

With `CAPTCHA_RAY_LOG=json` in the environment every line is a JSON object for a log store: `time` (UTC), `level`,
`job`, `run` or `out`, `ray_job`, `message`, and the numbers in it by their names.
"""

import contextlib
import datetime
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

import rich.console
import rich.live
import rich.progress
import rich.table
import tyro

from captcha_ray.errors import RESUME_HINT, InputError, JobError, full_disk

T = TypeVar("T")
OUT = rich.console.Console(highlight=False, soft_wrap=True)

STRUCTURED = os.environ.get("CAPTCHA_RAY_LOG") == "json"

_bound: dict[str, Any] = {}


def parse(config_type: type[T], default: T | None = None) -> T:
    """Return the job's config from the command line. Bad arguments end the process with status 2, `--help` with 0."""
    parsed: Any = tyro.cli(config_type, default=default, config=(tyro.conf.FlagCreatePairsOff,))
    bind(**{name: getattr(parsed, name) for name in ("run", "out") if getattr(parsed, name, "")})
    return parsed  # type: ignore[no-any-return]


def option(name: str, default: str) -> str:
    """Return `--name` of the command line before it is parsed, as it decides the defaults of other flags."""
    found = default
    for argument, following in zip(sys.argv, [*sys.argv[1:], default], strict=True):
        flag, equals, value = argument.partition("=")
        if flag == f"--{name}":
            found = value if equals else following  # the last one wins, as it does in `parse`
    return found


def run(job: Callable[[], None]) -> None:
    """Run a job and end the process.

    Its status is 0 if the job is done, 2 for bad input, 1 for a failure, 130 for Ctrl-C and 143 for SIGTERM.
    """
    bind(job=Path(sys.argv[0]).stem)
    _open_closed_streams()
    try:
        with terminable():
            job()
    except InputError as error:
        _fail(2, str(error))
    except KeyboardInterrupt as interrupt:
        number = signal.SIGTERM if interrupt.args == (signal.SIGTERM,) else signal.SIGINT
        _fail(128 + number, f"interrupted; what was finished is kept, {RESUME_HINT}")
    except JobError as error:
        _fail(1, str(error))
    except Exception as error:
        said = full_disk(error)
        _fail(1, said or f"{type(error).__name__}: {error}", trace="" if said else traceback.format_exc())
    finally:
        if "duckdb" not in sys.modules:  # it prints a page about leaks when its types are not collected
            gc.freeze()  # the interpreter's last collection over torch's objects would take two seconds for nothing


def _open_closed_streams() -> None:
    """Open what a shell has closed by `2>&-`: nobody reads it, but everybody may write to it."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_WRONLY)
            os.dup2(opened, number)
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115 -- as long as the process


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """End the block at SIGTERM as at Ctrl-C, actors included, as `ray job stop`, Kubernetes and `kill` request.

    KeyboardInterrupt's argument is the signal's number then. Blocks may be nested. Where a block starts Ray, whose own
    handler ends the process without a word, that handler is gone after the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    requested = False

    def end(number: int, frame: Any) -> None:
        nonlocal requested
        requested = True
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit as ended:  # Ray's handler
        if ended.code != signal.SIGTERM:
            raise
        raise KeyboardInterrupt(signal.SIGTERM) from None
    except KeyboardInterrupt:
        if requested:  # Ray Train raises another one than ours
            raise KeyboardInterrupt(signal.SIGTERM) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(status: int, sentence: str, trace: str = "") -> None:
    """End the process with a sentence. trace: for developers, printed before it, or a field of a structured line."""
    if trace and not STRUCTURED:
        print(trace, end="", file=sys.stderr)
    _print_error("error", sentence, status=status, **({"trace": trace} if trace else {}))
    raise SystemExit(status)


def bind(**fields: Any) -> None:
    """Set fields that every structured line from now on has."""
    _bound.update(fields)


def say(line: str, **numbers: Any) -> None:
    """Print one line. numbers: those in the line, by their names, for a structured line."""
    if STRUCTURED:
        print(_structured("info", line, numbers, sys.stdout), flush=True)
    else:
        OUT.print(_printable(line), markup=False)


def _printable(line: str) -> str:
    """Return the line with what the output's encoding lacks as escapes."""
    encoding = getattr(OUT.file, "encoding", None) or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def _print_error(level: str, sentence: str, **numbers: Any) -> None:
    line = _structured(level, sentence, numbers, sys.stderr) if STRUCTURED else f"{level}: {sentence}"
    print(line, file=sys.stderr, flush=True)  # Python escapes what this stream's encoding lacks


def _structured(level: str, message: str, numbers: dict[str, Any], stream: TextIO) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")
    values = {"time": now, "level": level, **_bound, "message": message, **numbers}
    return json.dumps(values, ensure_ascii=encoding != "utf8")


def is_terminal() -> bool:
    """Return whether the output is drawn at a terminal."""
    return OUT.is_terminal and not STRUCTURED


@contextlib.contextmanager
def progress(what: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """Show a bar with rate and time left; yield a function that takes the number of finished units and a note.

    Without a terminal (a log, `ray job logs`) a line is printed at most every ten seconds instead.

    Args:
        what: Name of the work.
        total: Number of units; None if unknown.
        unit: Plural of a unit.
    """
    started = last = time.monotonic()
    done = 0
    with bar() as shown:
        task = shown.add_task(what, total=total, unit=unit, note="")

        def advance(count: int, note: str = "") -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            rate = done / max(now - started, 1e-9)
            note = f", {note}" if note else ""
            shown.update(task, completed=done, note=f"{_rate(rate)} {unit}/s{note}")
            if not is_terminal() and now - last >= 10:
                last = now
                left = f", {time_left(total - done, rate)} left" if total is not None else ""
                of = f" of {total:,}" if total is not None else ""
                line = f"{what}: {done:,}{of} {unit}, {_rate(rate)} {unit}/s{note}{left}"
                say(line, done=done, total=total, per_second=rate)

        yield advance
    seconds = time.monotonic() - started
    rate = done / max(seconds, 1e-9)
    say(f"{what}: {done:,} {unit} in {seconds:.1f} s ({_rate(rate)} {unit}/s)", done=done, per_second=rate)


def bar() -> rich.progress.Progress:
    """Return a progress bar that is drawn only at a terminal."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TextColumn("{task.fields[note]}"),
        rich.progress.TimeRemainingColumn(),
        console=OUT,
        transient=True,
        disable=not is_terminal(),
    )


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.2g}"


def time_left(amount: float, rate: float) -> str:
    """Return how long an amount takes at a rate a second, as h:mm:ss."""
    if rate <= 0:
        return "unknown time"
    seconds = round(amount / rate)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def warn(sentence: str) -> None:
    """Print a warning on standard error."""
    _print_error("warning", sentence)
