"""Build the parts of a page that stands alone: pictures are inside, it runs no script and asks no server.

Everything that came from data is escaped; unknown values are shown as a dash.
"""

import base64
import html
import math
import shlex
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from captcha_ray.runs.directory import RunDirectory
from captcha_ray.storage import filesystem

UNKNOWN = "–"
"""Stands for an unknown value."""

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


def text(value: Any) -> str:
    """Return a value for a person: numbers with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(run: RunDirectory, what: str, parts: Sequence[str]) -> str:
    """Write a run's `report.html` and return its URI. Raises OSError if it cannot be written."""
    title = f"{what} of {run.uri.rpartition('/')[2] or run.uri}"
    uri = run.path("report.html")
    filesystem.write(uri, _PAGE.substitute(title=escape(title), uri=escape(run.uri), body="\n".join(parts)).encode())
    return uri


def origins(run: RunDirectory) -> list[str]:
    """Return sections of the run's config, resolved config and environment. Raises InputError for what is not JSON."""
    names = ("config.json", "resolved_config.json", "environment.json")
    found = {name: flat(run.read_json(name)) for name in names if filesystem.exists(run.path(name))}
    if resolved := found.get("resolved_config.json"):
        requested = found.get("config.json", {})
        found["resolved_config.json"] = {
            name: value for name, value in resolved.items() if requested.get(name) != value
        }
    titles = ("Config", "What the shards made of it", "Environment")
    return [section(title, pairs(found[name])) for title, name in zip(titles, names, strict=True) if found.get(name)]


def percent(value: float | None) -> str:
    """Return a ratio of 0 to 1 as a percentage with two decimals; a dash for None and nan."""
    return number(value, ".2%")


def duration(seconds: float | None) -> str:
    """Return 12.3 s below a minute, else h:mm:ss; a dash for None and nan."""
    if seconds is None or math.isnan(seconds) or round(seconds, 1) < 60:
        text = number(seconds, ".1f")
        return text if text == UNKNOWN else f"{text} s"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def number(value: float | None, form: str) -> str:
    """Return the value in a format of `format`; a dash for None and nan."""
    return UNKNOWN if value is None or math.isnan(value) else format(value, form)


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Flatten nested mappings, keys joined by a space, values as text."""
    rows: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            rows.update(flat(value, f"{above}{name} "))
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


def escape(text: str) -> str:
    """Return text as HTML; half a surrogate pair, which no encoding has, as its escape."""
    return html.escape(text.encode("utf-8", "backslashreplace").decode())


def section(title: str, *parts: str) -> str:
    """Return parts under a heading; the title is escaped, the parts are HTML already."""
    return "\n".join(["<section>", f"<h2>{escape(title)}</h2>", *parts, "</section>"])


def paragraph(text: str) -> str:
    """Return text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def figure(run: RunDirectory, name: str, alt: str, png: bytes) -> str:
    """Write `figures/<name>.png` and return the same picture as an element."""
    filesystem.write(run.path("figures", f"{name}.png"), png)
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def pairs(rows: Mapping[str, str]) -> str:
    """Return a table of names and values."""
    lines = [f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows.items()]
    return "\n".join(['<div class="wide"><table><tbody>', *lines, "</tbody></table></div>"])


def table(head: list[str], body: Iterable[list[str]], foot: Sequence[list[str]] = (), kind: str = "texts") -> str:
    """Return a table with a row of titles.

    foot: rows set off below. kind: texts, or numbers from the second column on.
    """
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    lines = [f"<thead><tr>{titles}</tr></thead>", "<tbody>", *map(_row, body), "</tbody>"]
    if foot:
        lines += ["<tfoot>", *map(_row, foot), "</tfoot>"]
    return "\n".join([f'<div class="wide"><table class="{kind}">', *lines, "</table></div>"])


def _row(cells: list[str]) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
