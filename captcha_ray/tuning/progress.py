"""Show a search on the terminal."""

import math
import time
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.live
import rich.progress
import rich.table

from captcha_ray import console
from captcha_ray.reporting.page import text


class SearchProgress:
    """A table of the trials that run and of the best one, redrawn in place, and one line per trial that has ended.

    num_epochs: of a trial in full. expected_epochs: of all trials. names: of the searched parameters. most_s: seconds
    that there are for all of it.
    """

    most_s = math.inf

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
        self._live = rich.live.Live(
            get_renderable=self._draw, console=console.OUT, transient=True, refresh_per_second=4
        )

    def __enter__(self) -> "SearchProgress":
        if console.is_terminal():
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if console.is_terminal():
            self._live.stop()

    def begin_no_more(self, num_trials: int, expected_epochs: int) -> None:
        """Say that there is no time for new trials. expected_epochs: of all trials, which are so many now."""
        self._num_trials, self._expected_epochs, self.most_s = num_trials, expected_epochs, math.inf
        console.say(f"there is no time for more trials; the best of these {num_trials} are trained to the end")

    @property
    def done_epochs(self) -> int:
        """Return the epochs that all trials have done."""
        return sum(self._epochs.values())

    def begin(self, number: int, values: dict[str, Any], epochs: int, accuracy: float) -> None:
        """Note that a trial starts, or goes on after so many epochs with that best accuracy."""
        self._running[number] = (values, epochs, accuracy)
        self._know(number, epochs)

    def epoch(self, number: int, epoch: int, accuracy: float) -> None:
        """Note a trial's finished epoch. accuracy: in validation, of its best epoch."""
        if epoch <= self._running[number][1]:
            return  # one it has repeated after an interruption
        self._running[number] = (self._running[number][0], epoch, accuracy)
        self._epochs[number] = epoch

    def end(
        self, number: int, values: dict[str, Any], epochs: int, accuracy: float, score: float, how: str = ""
    ) -> None:
        """Print how a trial ended.

        score: what trials are ranked by. how: its status and a reason; empty if known from before.
        """
        self._running.pop(number, None)
        self._ended.add(number)
        if first := score > self._score:
            self._best, self._score = (number, values, epochs, accuracy), score
        if how:
            console.say(
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
        """Print the accuracy in validation of a training of the final comparison."""
        self._note = f"comparison: {done} of {total} trainings in full"
        console.say(f"final {name:<9} {accuracy:7.2%}  ({done}/{total})", name=name, accuracy=accuracy)

    def _know(self, number: int, epochs: int) -> None:
        """Count a trial's epochs; those of an earlier session do not count for the speed of this one."""
        if number not in self._epochs:
            self._epochs[number] = epochs
            self._known_epochs += epochs

    def _left(self) -> str:
        done, passed = self.done_epochs, time.monotonic() - self._started
        left = self._expected_epochs - done
        if left <= 0:
            return ""
        rate = (done - self._known_epochs) / max(passed, 1e-9)
        return f", {console.time_left(left, max(rate, left / max(self.most_s - passed, 1)))} left"

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
