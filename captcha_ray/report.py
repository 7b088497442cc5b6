"""One page that tells how well a run reads: `report.html` and the pictures in `figures/`.

The page stands alone: pictures are inside it, it runs no script and asks no other server for anything. Everything
that came from data is escaped. Measures nothing itself; unknown values are shown as a dash.
"""

import base64
import html
import math
import shlex
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from captcha_ray import figures, storage
from captcha_ray.metrics import Mistake
from captcha_ray.runs import RunDirectory

UNKNOWN = "–"
"""Stands for a value that is not known."""

NO_MISTAKES = "No mistakes on this split."

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #d8dce2; --soft: #f4f6f8; --text: #1c2024; --faint: #5c6670; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a4048; --soft: #22262b; --text: #e6e8ea; --faint: #9aa4ae; --page: #16191c; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--page); }
h1 { line-height: 1.2; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 0.5rem; border-bottom: 1px solid var(--line); }
h3 { margin: 1.5rem 0 0.5rem; }
p.faint { color: var(--faint); margin: 0 0 1rem; overflow-wrap: anywhere; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.75rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th, tfoot th, tfoot td { background: var(--soft); }
td { overflow-wrap: anywhere; }
.numbers th + th, .numbers td + td { text-align: right; white-space: nowrap; }
img { display: block; max-width: 100%; height: auto; margin: 0.5rem 0; background: #fff; border-radius: 4px; }
summary { cursor: pointer; padding: 0.25rem 0; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="faint">$uri</p>
$body
</body>
</html>
""")


def write(run: RunDirectory, results: Mapping[str, Any], mistakes: Mapping[str, Sequence[Mistake]]) -> str:
    """Writes `report.html` and `figures/*.png` of a run; gives the URI of the page.

    results: `ReadingCounts.summary()` per split name, and anything else worth a line; "seconds" is how long it took.
    mistakes: per split name, worst first; kept in that order. A split without an entry keeps the picture it has.
    `config.json`, `environment.json` and `metrics.jsonl` are shown where the folder has them. Raises InputError where
    one is there and is not JSON, OSError where the folder cannot be written.
    """
    epochs = run.read_metrics()
    splits = {name: value for name, value in results.items() if isinstance(value, dict) and "num_images" in value}
    rest = {name: value for name, value in results.items() if name not in splits}
    parts = [_split(run, name, summary, mistakes.get(name)) for name, summary in splits.items()]
    if epochs:
        parts.append(_training(run, epochs))
    parts.append(_section("How long it took", _pairs(_durations(rest.pop("seconds", None), epochs))))
    if rest:
        parts.append(_section("Other results", _pairs(_flat(rest))))
    for title, name in (("Config", "config.json"), ("Environment", "environment.json")):
        if storage.exists(run.path(name)):
            parts.append(_section(title, _pairs(_flat(run.read_json(name)))))
    title = f"Report of {run.uri.rpartition('/')[2] or run.uri}"
    page = _PAGE.substitute(title=_escape(title), uri=_escape(run.uri), body="\n".join(parts))
    uri = run.path("report.html")
    storage.write(uri, page.encode())
    return uri


def _split(run: RunDirectory, name: str, summary: Mapping[str, Any], rows: Sequence[Mistake] | None) -> str:
    confusion = figures.confusion_matrix(**summary["confusion"])
    return _section(
        f"Split {name}",
        _pairs(_measures(summary)),
        "<h3>Mistakes</h3>",
        _mistakes(run, name, summary, rows),
        "<h3>Confusion of characters</h3>",
        _figure(run, f"confusion_{name}", f"Confusion matrix of split {name}: truth by reading", confusion),
        "<h3>Characters</h3>",
        _classes(summary),
    )


def _measures(summary: Mapping[str, Any]) -> dict[str, str]:
    exact = percent(summary["exact_match"])
    if summary["exact_match_ci95"] is not None:
        low, high = summary["exact_match_ci95"]
        exact += f" ({summary['num_exact_match']} of {summary['num_images']}; "
        exact += f"95% interval {percent(low)} to {percent(high)})"
    positions = enumerate(summary["position_accuracy"], start=1)
    return {
        "Images": str(summary["num_images"]),
        "Loss, nats per image": _number(summary["loss"], ".4f"),
        "Character accuracy": percent(summary["char_accuracy"]),
        "Whole-string accuracy": exact,
        **{f"Accuracy at position {position}": percent(value) for position, value in positions},
    }


def _classes(summary: Mapping[str, Any]) -> str:
    """Precision, recall, F1 and support per character, in the alphabet's order, and their averages."""
    ratios = ("precision", "recall", "f1")
    body = [
        [figures.visible(character), *(percent(row[name]) for name in ratios), str(row["support"])]
        for character, row in summary["classes"].items()
    ]
    support = str(sum(row["support"] for row in summary["classes"].values()))
    foot = [
        [title, *(percent(summary["averages"][name].get(key)) for key in ratios), support]
        for name, title in (("macro", "Macro average"), ("weighted", "Weighted average"))
    ]
    return _table(["Character", "Precision", "Recall", "F1", "Support"], body, foot, "numbers")


def _mistakes(run: RunDirectory, name: str, summary: Mapping[str, Any], rows: Sequence[Mistake] | None) -> str:
    total = summary["num_images"] - summary["num_exact_match"]
    picture = run.path("figures", f"mistakes_{name}.png")
    if rows is None and total and storage.exists(picture):
        figure = _figure(run, f"mistakes_{name}", f"Misread images of split {name}", storage.read(picture))
        return _paragraph(f"Mistakes: {total}.") + "\n" + figure
    if not rows:
        storage.delete(picture)
        return _paragraph(NO_MISTAKES if total == 0 else f"Mistakes: {total}. No picture of them was kept.")
    rows = rows[: figures.MAX_MISTAKES]
    table = _table(
        ["Number", "Truth", "Reading", "Confidence", "Image"],
        [
            [str(n), figures.visible(row.truth), figures.visible(row.reading), percent(row.confidence), row.uri]
            for n, row in enumerate(rows, start=1)
        ],
    )
    return "\n".join(
        [
            _paragraph(f"Mistakes: {total}. Shown: {len(rows)}, worst first."),
            _figure(run, f"mistakes_{name}", f"Misread images of split {name}", figures.mistakes(rows)),
            f"<details>\n<summary>The same as a table</summary>\n{table}\n</details>",
        ]
    )


def _training(run: RunDirectory, epochs: list[dict[str, Any]]) -> str:
    parts = [
        _figure(run, "loss", "Loss against the epoch", figures.loss_curves(epochs)),
        _figure(run, "accuracy", "Accuracy against the epoch", figures.accuracy_curves(epochs)),
    ]
    if figures.num_slots(epochs) > 1:
        alt = "Accuracy per position against the epoch; solid for validation, dashed for training"
        parts.append(_figure(run, "slots", alt, figures.slot_curves(epochs)))
    return _section("Training", *parts)


def _durations(seconds: float | None, epochs: list[dict[str, Any]]) -> dict[str, str]:
    """seconds: of training, with start-up, None where unknown."""
    rows = {"Training, with start-up": duration(seconds)}
    if epochs:
        rows["Epochs"] = str(len(epochs))
        rows["All epochs"] = duration(_total(epochs, "seconds"))
        rows["Images per second, mean of epochs"] = _number(_mean(epochs, "images_per_second"), ",.0f")
        rows["Share of time waiting for data, mean of epochs"] = percent(_mean(epochs, "data_wait_fraction"))
    return rows


def _total(epochs: list[dict[str, Any]], field: str) -> float | None:
    known = [epoch[field] for epoch in epochs if epoch.get(field) is not None]
    return sum(known) if known else None


def _mean(epochs: list[dict[str, Any]], field: str) -> float | None:
    known = [epoch[field] for epoch in epochs if epoch.get(field) is not None]
    return sum(known) / len(known) if known else None


def percent(value: float | None) -> str:
    """A ratio of 0 to 1 as a percentage with two decimals; a dash for None and nan."""
    return _number(value, ".2%")


def duration(seconds: float | None) -> str:
    """12.3 s below a minute, else h:mm:ss; a dash for None and nan."""
    if seconds is None or math.isnan(seconds) or round(seconds, 1) < 60:
        text = _number(seconds, ".1f")
        return text if text == UNKNOWN else f"{text} s"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None or math.isnan(value) else format(value, form)


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested mappings as one, keys joined by a space; values as text."""
    rows: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            rows.update(_flat(value, f"{above}{name} "))
        elif name == "command" and isinstance(value, list):
            rows[above + name] = shlex.join(map(str, value))
        else:
            rows[above + name] = _text(value)
    return rows


def _text(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value) or '""'


def _escape(text: str) -> str:
    """Text as HTML; half a surrogate pair, which no encoding has, as its escape."""
    return html.escape(text.encode("utf-8", "backslashreplace").decode())


def _section(title: str, *parts: str) -> str:
    return "\n".join(["<section>", f"<h2>{_escape(title)}</h2>", *parts, "</section>"])


def _paragraph(text: str) -> str:
    return f"<p>{_escape(text)}</p>"


def _figure(run: RunDirectory, name: str, alt: str, png: bytes) -> str:
    """Writes `figures/<name>.png`; gives the same picture as an element."""
    storage.write(run.path("figures", f"{name}.png"), png)
    return f'<img alt="{_escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _pairs(rows: Mapping[str, str]) -> str:
    """A table of names and values."""
    lines = [f'<tr><th scope="row">{_escape(name)}</th><td>{_escape(value)}</td></tr>' for name, value in rows.items()]
    return "\n".join(['<div class="wide"><table><tbody>', *lines, "</tbody></table></div>"])


def _table(head: list[str], body: Iterable[list[str]], foot: Sequence[list[str]] = (), kind: str = "texts") -> str:
    """A table with a row of titles; foot: rows set off below. kind: texts, or numbers from the second column on."""
    titles = "".join(f'<th scope="col">{_escape(title)}</th>' for title in head)
    lines = [f"<thead><tr>{titles}</tr></thead>", "<tbody>", *map(_row, body), "</tbody>"]
    if foot:
        lines += ["<tfoot>", *map(_row, foot), "</tfoot>"]
    return "\n".join([f'<div class="wide"><table class="{kind}">', *lines, "</table></div>"])


def _row(cells: list[str]) -> str:
    return "<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in cells) + "</tr>"
