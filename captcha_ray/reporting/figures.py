"""Draw pictures of a training run and of its mistakes, as PNG bytes.

Uses matplotlib's objects on the Agg canvas: no pyplot, no display, no state shared between calls. Computes no accuracy,
reads and writes no file. Texts are drawn as they are, never as formulas; a character that the font lacks becomes a box.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from captcha_ray.metrics.counts import OTHER, Mistake
from captcha_ray.metrics.learning_curve import Curve

DPI = 110
"""Pixels per inch of every picture."""

MAX_MISTAKES = 30
"""Most pictures on a contact sheet."""

MAX_COUNTED_LABELS = 40
"""Most labels of a confusion matrix with counts in its cells; larger ones have colors only."""

_COLUMNS = 5
_CELL = 2.1
"""Width of a picture's place on a contact sheet, inches."""

_TEXT = 16
"""Characters of a text that fit above a picture on a contact sheet."""

Epochs = Sequence[Mapping[str, Any]]
"""Lines of `metrics.jsonl`, in order."""


def visible(text: str) -> str:
    """Return the text with signs for what cannot be seen: a space is ␣, a control character its escape."""
    return "".join("␣" if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def loss_curves(epochs: Epochs) -> bytes:
    """Draw `train_loss` and `val_loss` against the epoch. Values that are unknown or not finite leave gaps."""
    figure, axes = _curves("loss, nats per image")
    _line(axes, epochs, "train_loss", "training", color="tab:blue", linestyle="--")
    _line(axes, epochs, "val_loss", "validation", color="tab:orange")
    axes.set_ylim(0, 1.05 * max(_heights(axes), default=1.0) or 1.0)
    _legend(axes)
    return png(figure)


def accuracy_curves(epochs: Epochs) -> bytes:
    """Draw accuracy of characters in training and validation and of whole strings in validation, against the epoch."""
    figure, axes = _curves("accuracy")
    _line(axes, epochs, "train_char_accuracy", "characters, training", color="tab:blue", linestyle="--")
    _line(axes, epochs, "val_char_accuracy", "characters, validation", color="tab:orange")
    _line(axes, epochs, "val_exact_match", "whole strings, validation", color="tab:green")
    _percent(axes)
    _legend(axes)
    return png(figure)


def position_curves(epochs: Epochs) -> bytes:
    """Draw the accuracy per position against the epoch: solid for validation, dashed for training.

    Takes the lists `val_position_accuracy` and `train_position_accuracy`, which may be absent.
    """
    figure, axes = _curves("accuracy per position")
    handles: list[Line2D] = []
    positions = num_positions(epochs)
    for position in range(positions):
        color = f"C{position}" if positions <= 10 else colormaps["viridis"](position / (positions - 1))
        handles.append(Line2D([], [], color=color, label=f"position {position + 1}"))
        for field, style in (("val_position_accuracy", "-"), ("train_position_accuracy", "--")):
            rows = [{"epoch": e["epoch"], "value": _at(e.get(field), position)} for e in epochs]
            _line(axes, rows, "value", f"position {position + 1}", color=color, linestyle=style)
    handles.append(Line2D([], [], color="gray", linestyle="-", label="validation"))
    handles.append(Line2D([], [], color="gray", linestyle="--", label="training"))
    _percent(axes)
    axes.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=9,
        ncols=math.ceil(len(handles) / 14),
    )
    return png(figure)


def num_positions(epochs: Epochs) -> int:
    """Return the most positions that any epoch has an accuracy for; 0 if none has."""
    fields = ("val_position_accuracy", "train_position_accuracy")
    return max((len(e.get(field) or ()) for e in epochs for field in fields), default=0)


def confusion_matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> bytes:
    """Draw truth (rows) by prediction (columns): color is the share of the row, the cell holds the count.

    The label `OTHER` is left out if it was neither there nor predicted. Zeros are blank, and so are all cells of more
    than `MAX_COUNTED_LABELS` labels. Color is the square root of the share, so that rare confusions can be seen.

    Args:
        labels: K texts.
        counts: Index of the truth, index of the prediction, and how often that was; pairs that are missing never were.
    """
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    for truth, prediction, count in counts:
        matrix[truth, prediction] = count
    if len(labels) > 1 and labels[-1] == OTHER and not matrix[-1].any() and not matrix[:, -1].any():
        labels, matrix = labels[:-1], matrix[:-1, :-1]
    num = len(labels)
    digits = len(str(matrix.max(initial=0)))
    cell = min(0.6 if num <= 10 else max(0.3, 0.07 * digits + 0.06) if num <= MAX_COUNTED_LABELS else 0.22, 22 / num)
    side = max(cell * num, 2.0)
    cell = side / num
    figure = Figure(figsize=(side + 1.7, side + 0.9), dpi=DPI)
    axes = _box(figure, 0.7, 0.6, side, side)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    bar = figure.colorbar(image, cax=_box(figure, side + 0.85, 0.6, 0.15, side))
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.ax.tick_params(labelsize=8)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    _name_cells(axes, labels, cell)
    if num <= MAX_COUNTED_LABELS:
        _write_counts(axes, matrix, share, min(11.0, cell * 72 * 0.85 / (0.64 * digits)))
    return png(figure)


def mistakes(rows: Sequence[Mistake]) -> bytes:
    """Draw the first `MAX_MISTAKES` wrong predictions, from left to right and then down.

    Above each picture stand its number, truth, prediction and confidence; long texts are cut with an ellipsis.
    """
    rows = rows[:MAX_MISTAKES]
    columns = max(1, min(_COLUMNS, len(rows)))
    lines = max(1, math.ceil(len(rows) / columns))
    aspect = float(np.median([row.image.shape[0] / row.image.shape[1] for row in rows])) if rows else 0.25
    tall = min(max((_CELL - 0.1) * aspect, 0.4), 1.6)
    step = tall + 0.52
    figure = Figure(figsize=(columns * _CELL + 0.1, lines * step + 0.1), dpi=DPI)
    for index, row in enumerate(rows):
        line, column = divmod(index, columns)
        axes = _box(figure, column * _CELL + 0.1, (lines - 1 - line) * step + 0.1, _CELL - 0.1, tall)
        axes.set_axis_off()
        _show(axes, row.image)
        title = (
            f"{index + 1:>2} truth {_cut(row.truth)}\n   pred. {_cut(row.prediction)}  {_confidence(row.confidence)}"
        )
        axes.set_title(title, loc="left", fontsize=8, family="monospace", parse_math=False, pad=3)
    return png(figure)


def calibration(bins: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the accuracy against the mean confidence of each bin; on the diagonal, confidence means what it says.

    bins: confidence, accuracy and num_images of each; a dot's area grows with the logarithm of its images.
    """
    figure, axes = _axes("confidence", "whole strings right")
    axes.plot([0, 1], [0, 1], color="gray", linestyle=":")
    sizes = [12 * (1 + math.log2(1 + one["num_images"])) for one in bins]
    axes.scatter([one["confidence"] for one in bins], [one["accuracy"] for one in bins], sizes, color="tab:blue")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlim(-0.02, 1.02)
    _percent(axes)
    return png(figure)


def risk_coverage(points: Sequence[Mapping[str, float]]) -> bytes:
    """Draw the share of wrong predictions against the share of images, for all thresholds on the confidence."""
    figure, axes = _axes("coverage: images at least as sure", "risk: share of these that is wrong")
    axes.plot([point["coverage"] for point in points], [point["risk"] for point in points], color="tab:orange")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.1 * max([point["risk"] for point in points] + [0.001]))
    return png(figure)


def learning_curve(curve: Mapping[str, Any]) -> bytes:
    """Draw `learning_curve.summary`: points with their intervals, the fitted curve, and the goal."""
    figure, axes = _axes("training images", "whole strings right")
    points = curve["points"]
    images, read = [point["num_images"] for point in points], [point["exact_match"] for point in points]
    below = [max(r - point["exact_match_ci95"][0], 0) for r, point in zip(read, points, strict=True)]
    above = [max(point["exact_match_ci95"][1] - r, 0) for r, point in zip(read, points, strict=True)]
    axes.errorbar(images, read, [below, above], fmt="o", color="tab:blue", capsize=3, label="measured, 95 % interval")
    if curve["curve"]:
        fitted = Curve(**curve["curve"])
        x = np.geomspace(min(images), max(*images, min(curve["images_for_goal"] or 0, 10 * max(images))), 100)
        axes.plot(x, [fitted.accuracy(value) for value in x], color="tab:orange", label="fitted")
    axes.axhline(curve["goal"], color="gray", linestyle=":", label=f"{curve['goal']:.0%}")
    axes.set_xscale("log")
    _percent(axes)
    _legend(axes)
    return png(figure)


def _curves(what: str) -> tuple[Figure, Axes]:
    figure, axes = _axes("epoch", what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, axes


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.0), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(axes: Axes, epochs: Epochs, field: str, label: str, **style: Any) -> None:
    """Add one field as a line with a marker per epoch; nothing if it is unknown in all epochs."""
    values = [e[field] if e.get(field) is not None and math.isfinite(e[field]) else math.nan for e in epochs]
    if all(math.isnan(value) for value in values):
        return
    axes.plot(
        [e["epoch"] for e in epochs],
        values,
        label=label,
        marker="o",
        linewidth=1.5,
        markersize=4 if len(epochs) <= 30 else 2,
        **style,
    )


def _percent(axes: Axes) -> None:
    """Set a percent axis from below the lowest value to a little above 100 %."""
    span = max(1 - min(_heights(axes), default=0.0), 0.02)
    axes.set_ylim(1 - 1.05 * span, 1 + 0.05 * span)
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _heights(axes: Axes) -> list[float]:
    """Return all known values that are drawn."""
    return [float(y) for line in axes.get_lines() for y in np.asarray(line.get_ydata()) if not math.isnan(y)]


def _legend(axes: Axes) -> None:
    if axes.get_lines():
        axes.legend(frameon=False, fontsize=9)


def _at(values: Sequence[float | None] | None, index: int) -> float | None:
    return values[index] if values is not None and index < len(values) else None


def _box(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Return axes at a place in inches from the lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _name_cells(axes: Axes, labels: Sequence[str], cell: float) -> None:
    """Write the labels on both axes, every n-th if they would touch. cell: side of a cell, inches."""
    size = min(11.0, max(cell * 72 * 0.72, 6.0))
    places = range(0, len(labels), math.ceil(size / (cell * 72)))
    names = [visible(labels[place]) for place in places]
    turned = 90 if any(len(name) > 1 for name in names) else 0
    axes.set_xticks(places, names, fontsize=size, rotation=turned, parse_math=False)
    axes.set_yticks(places, names, fontsize=size, parse_math=False)
    axes.tick_params(length=0)


def _write_counts(axes: Axes, counts: npt.NDArray[np.int64], share: npt.NDArray[np.float64], size: float) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if share[row, column] > 0.4 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=color)


def _show(axes: Axes, image: npt.NDArray[np.uint8]) -> None:
    gray = image.shape[2] == 1
    axes.imshow(image[:, :, 0] if gray else image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_anchor("SW")


def _cut(text: str) -> str:
    seen = visible(text) or "(empty)"
    return seen if len(seen) <= _TEXT else f"{seen[: _TEXT - 1]}…"


def _confidence(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file; a character that the font lacks becomes a box."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasAgg(figure).print_figure(buffer, dpi=DPI, format="png", metadata={"Software": None})
    return buffer.getvalue()
