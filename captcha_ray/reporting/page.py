"""Build the blocks of a page, which `templates/report.html.jinja` turns into HTML.

Whatever came from data is escaped there; unknown values are shown as a dash.
"""

import base64
import functools
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from captcha_ray.runs.directory import RunDirectory
from captcha_ray.storage import filesystem

UNKNOWN = "–"
"""Stands for an unknown value."""

Block = dict[str, Any]
"""A part of a page as the template shows it: its "kind" and what it holds."""


def text(value: Any) -> str:
    """Return a value for a person: numbers with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("captcha_ray.reporting")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.jinja")


def write(run: RunDirectory, what: str, blocks: Sequence[Block]) -> str:
    """Write a run's `report.html` and return its URI. Raises OSError if it cannot be written."""
    title = f"{what} of {run.uri.rpartition('/')[2] or run.uri}"
    uri = run.path("report.html")
    page = _template().render(title=title, uri=run.uri, blocks=blocks)
    filesystem.write(uri, page.encode("utf-8", "backslashreplace"))  # names of files may hold half a surrogate pair
    return uri


def origins(run: RunDirectory) -> list[Block]:
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


def section(title: str, *blocks: Block) -> Block:
    """Return blocks under a title."""
    return {"kind": "section", "title": title, "blocks": blocks}


def heading(text: str) -> Block:
    """Return a heading within a section."""
    return {"kind": "heading", "text": text}


def paragraph(text: str) -> Block:
    """Return text as a paragraph."""
    return {"kind": "paragraph", "text": text}


def figure(run: RunDirectory, name: str, alt: str, png: bytes) -> Block:
    """Write `figures/<name>.png` and return the same picture as a block."""
    filesystem.write(run.path("figures", f"{name}.png"), png)
    return {"kind": "figure", "alt": alt, "source": f"data:image/png;base64,{base64.b64encode(png).decode()}"}


def pairs(rows: Mapping[str, str]) -> Block:
    """Return a table of names and values."""
    return {"kind": "pairs", "rows": rows}


def table(head: list[str], body: list[list[str]], foot: Sequence[list[str]] = (), *, numbers: bool = False) -> Block:
    """Return a table with a row of titles.

    foot: rows set off below. numbers: the second column and those behind it hold numbers.
    """
    columns = "numbers" if numbers else "texts"
    return {"kind": "table", "head": head, "body": body, "foot": foot, "columns": columns}


def details(summary: str, inner: Block) -> Block:
    """Return a block that is shown on request."""
    return {"kind": "details", "summary": summary, "inner": inner}
