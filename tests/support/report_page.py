"""Reports and their pictures, read back as a browser and a person would."""

import html.parser
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from PIL import Image

from captcha_ray.metrics.calibration import Confidences
from captcha_ray.metrics.counts import Mistake, PredictionCounts
from captcha_ray.reporting import run_report
from captcha_ray.runs.directory import RunDirectory

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Tables as rows of cell texts, paragraphs, image sources and every tag; asserts that tags balance."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.sources: list[str] = []
        self.alts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "img":
            self.sources.append(dict(attrs)["src"] or "")
            self.alts.append(dict(attrs)["alt"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open:
            return
        self.texts.setdefault(self.open[-1], []).append(data)
        if self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def pairs(self) -> dict[str, str]:
        """All tables of two columns as one."""
        return {row[0]: row[1] for table in self.tables for row in table if len(row) == 2}

    def table(self, first: str) -> list[list[str]]:
        """The table whose first title is `first`."""
        return next(table for table in self.tables if table[0][0] == first)


def counts(charset: str, truths: list[str], predictions: list[str]) -> dict[str, Any]:
    return PredictionCounts.of(charset, truths, predictions, [0.5] * len(truths)).summary()


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "epoch": number, "train_loss": 2.0 / number, "val_loss": 2.5 / number, "train_char_accuracy": 0.5,
        "val_char_accuracy": 0.6, "val_exact_match": 0.3, "images_per_second": 1000.0, "data_wait_fraction": 0.25,
        "seconds": 30.0, "train_position_accuracy": [0.4, 0.5], "val_position_accuracy": [0.6, 0.7],
    } | changes  # fmt: skip


def mistake(
    truth: str, prediction: str, confidence: float = 0.5, shape: tuple[int, int, int] = (50, 200, 1)
) -> Mistake:
    return Mistake(f"corpus/{truth}.png", truth, prediction, confidence, np.full(shape, 128, np.uint8))


def write(folder: Path, results: dict[str, Any], rows: dict[str, list[Mistake]] | None = None) -> Page:
    uri = run_report.write(RunDirectory(str(folder)), results, rows or {})
    assert uri == f"{folder}/report.html"
    return Page(Path(uri).read_text(encoding="utf-8"))


def decode(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return image


def heights(line: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(line.get_ydata())]


GOOD = counts("ab", ["ab"] * 19 + ["ba"], ["ab"] * 19 + ["bb"])


def sure(*rows: tuple[float, bool]) -> dict[str, Any]:
    """Confidence and right of readings, as `results.json` has it."""
    return Confidences.of([confidence for confidence, _ in rows], [right for _, right in rows]).summary()


SURE = sure(*[(0.99999999, True)] * 5000, *[(0.6, True)] * 3000, *[(0.6, False)] * 2000)
