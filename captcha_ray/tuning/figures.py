"""Draw pictures of a search, as PNG bytes.

Not by `optuna.visualization`: it knows trials by number, not by time, learning curves not at all, and its axes of
choices and of logarithms overlap in a page's width.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from captcha_ray.reporting.figures import DPI, png
from captcha_ray.reporting.page import text
from captcha_ray.tuning.search_space import Parameter, Range, Space
from captcha_ray.tuning.trials import Trial

COLORS = colormaps["viridis"]

_COLUMNS = 3
"""Panels side by side."""


def best_so_far(trials: Sequence[Trial]) -> bytes:
    """Draw the best accuracy known at any time: a step at each trial that raises it, a dot for each trial's end."""
    ended = sorted((t for t in trials if t.outcome), key=lambda t: t.outcome.ended_s if t.outcome else 0.0)
    seconds = [trial.outcome.ended_s for trial in ended if trial.outcome]
    unit, name = (60, "minutes") if max(seconds, default=0) < 7200 else (3600, "hours")
    at = [s / unit for s in seconds]
    figure, axes = _axes(f"{name} of searching", "whole strings right in validation")
    _dots(axes, at, ended, at)
    best = list(itertools.accumulate((trial.accuracy for trial in ended), max))
    axes.step(at, best, where="post", color="tab:orange", linewidth=1.8, label="best so far")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=9)
    return png(figure)


def learning_curves(trials: Sequence[Trial], best: int) -> bytes:
    """Draw each trial's exact match in validation against the epoch; the best trial on top."""
    figure, axes = _axes("epoch", "whole strings right in validation")
    for trial in sorted(trials, key=lambda t: t.number == best):
        values = [math.nan if e["val_exact_match"] is None else e["val_exact_match"] for e in trial.epochs]
        style: dict[str, Any] = {"color": "0.65", "linewidth": 1.0}
        if trial.number == best:
            style = {"color": "tab:orange", "linewidth": 2.2, "label": f"trial {best}, the best"}
        marker = "o" if len(values) == 1 else ""
        axes.plot([e["epoch"] for e in trial.epochs], values, marker=marker, markersize=3, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False, fontsize=9)
    return png(figure)


def parameters(space: Space, trials: Sequence[Trial]) -> bytes:
    """Draw a panel per parameter: its value against the accuracy."""
    rows = math.ceil(len(space) / _COLUMNS)
    columns = min(len(space), _COLUMNS)
    figure = Figure(figsize=(3.4 * columns + 0.4, 2.9 * rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(space) :]:
        axes.set_axis_off()
    for axes, (name, parameter) in zip(panels.flat, space.items(), strict=False):
        positions = [_position(parameter, trial.values[name]) for trial in trials]
        _dots(axes, positions, trials, [trial.number for trial in trials])
        _style(axes, name, "whole strings right in validation")
        axes.label_outer()
        axes.set_xlabel(name)
        _ticks(axes, parameter)
        axes.tick_params(labelbottom=True)
    return png(figure)


def parallel_coordinates(space: Space, trials: Sequence[Trial], best: int) -> bytes:
    """Draw a line per trial across an axis per parameter, colored by its accuracy; the best is thick."""
    names = list(space)
    figure = Figure(figsize=(max(1.7 * len(names), 4) + 1.6, 4.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    scores = [trial.accuracy for trial in trials]
    low, high = min(scores, default=0.0), max(scores, default=1.0)
    for trial in sorted(trials, key=lambda t: (t.number == best, t.score)):
        heights = [_height(space[name], trial.values[name]) for name in names]
        shade = (trial.accuracy - low) / ((high - low) or 1.0)
        bad = trial.score < 0
        axes.plot(
            range(len(names)),
            heights,
            color="0.6" if bad else COLORS(shade),
            linestyle=":" if bad else "-",
            linewidth=2.8 if trial.number == best else 1.1,
            marker="o",
            markersize=4,
        )
    for index, name in enumerate(names):
        for height, mark in _marks(space[name]):
            axes.annotate(
                mark, (index, height), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center", color="0.3"
            )
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.yaxis.set_major_locator(NullLocator())
    axes.grid(axis="x", alpha=0.4)
    axes.set_xlim(-0.2, len(names) - 0.6)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    scale = _mappable(low, high)
    bar = figure.colorbar(scale, ax=axes, fraction=0.03, pad=0.02)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.set_label("whole strings right in validation", fontsize=9)
    return png(figure)


def importance(shares: Mapping[str, float]) -> bytes:
    """Draw a bar per parameter, the largest on top. shares: add up to 1."""
    names = sorted(shares, key=lambda name: shares[name])
    figure = Figure(figsize=(7.2, 0.6 + 0.4 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.barh(names, [shares[name] for name in names], color="tab:blue")
    _style(axes, "share of what tells good trials from the rest", "")
    axes.yaxis.set_major_formatter(lambda value, _: names[round(value)] if round(value) < len(names) else "")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlim(left=0)
    return png(figure)


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.0), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    _style(axes, x, y)
    return figure, axes


def _style(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _dots(axes: Axes, at: Sequence[float], trials: Sequence[Trial], order: Sequence[float]) -> None:
    """Draw a dot a trial, darker the earlier, and crosses for failed ones."""
    good = [k for k, trial in enumerate(trials) if trial.score >= 0]
    bad = [k for k, trial in enumerate(trials) if trial.score < 0]
    axes.scatter(
        [at[k] for k in good],
        [trials[k].accuracy for k in good],
        c=[order[k] for k in good],
        cmap=COLORS,
        s=26,
        zorder=3,
    )
    axes.scatter([at[k] for k in bad], [0.0] * len(bad), marker="x", color="tab:red", s=30, zorder=3)


def _position(parameter: Parameter, value: Any) -> float:
    """Return where a value is on its axis, in data coordinates."""
    return float(value) if isinstance(parameter, Range) else float(parameter.values.index(value))


def _height(parameter: Parameter, value: Any) -> float:
    """Return a value's height, 0 to 1 between the parameter's ends."""
    if isinstance(parameter, Range):
        low, high = parameter.low, parameter.high
        if parameter.log:
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return float((value - low) / (high - low))
    return parameter.values.index(value) / max(len(parameter.values) - 1, 1)


def _marks(parameter: Parameter) -> list[tuple[float, str]]:
    """Return heights with a text: the ends of a range, all values of a choice."""
    return [(_height(parameter, v), text(v)) for v in parameter.ends()]


def _ticks(axes: Axes, parameter: Parameter) -> None:
    if isinstance(parameter, Range):
        if parameter.log:
            axes.set_xscale("log")
        span = (parameter.low, parameter.high)
        margin = 0.05 * (span[1] - span[0])
        axes.set_xlim(*((span[0] / 1.3, span[1] * 1.3) if parameter.log else (span[0] - margin, span[1] + margin)))
    else:
        names = [mark for _, mark in _marks(parameter)]
        axes.set_xticks(range(len(names)), names, fontsize=9)
        axes.set_xlim(-0.5, len(names) - 0.5)


def _mappable(low: float, high: float) -> Any:
    return ScalarMappable(Normalize(low, high if high > low else low + 1e-9), COLORS)
