"""The pictures of a report show what was measured, legibly and with any text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from captcha_ray.metrics.counts import Mistake
from captcha_ray.reporting import figures
from captcha_ray.runs.directory import RunDirectory
from tests.support.report_page import GOOD, decode, epoch, heights, write


@pytest.mark.parametrize("draw", [figures.loss_curves, figures.accuracy_curves, figures.position_curves])
def test_curves_leave_gaps_where_values_are_unknown_or_not_finite(draw: Any, figure: list[Figure]) -> None:
    bad = {
        "train_loss": None,
        "val_loss": float("inf"),
        "train_char_accuracy": None,
        "val_exact_match": float("nan"),
        "train_position_accuracy": None,
        "val_position_accuracy": [0.5, None],
    }
    draw([epoch(1), epoch(2, **bad), epoch(3)])
    lines = figure[0].axes[0].get_lines()
    assert sum(np.isnan(heights(line)[1]) for line in lines) >= 2
    assert np.isfinite(figure[0].axes[0].get_ylim()).all()


def test_contact_sheet_shows_gray_and_color_pixels_as_they_are(figure: list[Figure]) -> None:
    gray = np.full((20, 80, 1), 77, np.uint8)
    color = np.zeros((20, 80, 3), np.uint8) + np.array([200, 30, 40], np.uint8)
    sheet = decode(figures.mistakes([Mistake("g", "a", "b", 0.5, gray), Mistake("c", "a", "b", 0.5, color)]))
    pixels = np.asarray(sheet.convert("RGB"))
    for index, wanted in enumerate(((77, 77, 77), (200, 30, 40))):
        box = figure[0].axes[index].get_position()
        x, y = round((box.x0 + box.x1) / 2 * sheet.width), round((1 - (box.y0 + box.y1) / 2) * sheet.height)
        assert tuple(pixels[y, x]) == wanted


@pytest.mark.parametrize("text", ["", "$\\frac$", "a_b^c$", "中文", "x\ny\t\0", "\ud800", "long " * 30, " "])
def test_any_text_can_be_drawn_as_it_is(text: str, tmp_path: Path, figure: list[Figure]) -> None:
    labels = [text, "b"]
    decode(figures.confusion_matrix(labels, [[0, 0, 1], [0, 1, 2], [1, 0, 3], [1, 1, 4]]))
    row = Mistake(f"{text}.png", text, text, 0.5, np.zeros((60, 18, 3), np.uint8))
    page = write(tmp_path, {"test": GOOD}, {"test": [row]})
    assert page.table("Number")[1][1] == figures.visible(text)
    title = figure[-1].axes[0].get_title(loc="left")
    assert len(title.splitlines()) == 2
    assert max(map(len, title.splitlines())) <= 34


def test_invisible_characters_get_a_sign() -> None:
    assert figures.visible("a b\n\u200bé中") == "a␣b\\n\\u200bé中"


def test_a_single_epoch_can_be_seen(tmp_path: Path, figure: list[Figure]) -> None:
    RunDirectory(str(tmp_path)).write_metrics([epoch(1)])
    write(tmp_path, {})
    assert len(figure) == 3
    for name, drawn in zip(("loss", "accuracy", "positions"), figure, strict=True):
        pixels = np.asarray(decode((tmp_path / f"figures/{name}.png").read_bytes()).convert("RGB"))
        axes = drawn.axes[0]
        for line in axes.get_lines():
            x, y = axes.transData.transform((1, heights(line)[0]))
            found = pixels[pixels.shape[0] - 1 - int(y), int(x)]
            assert to_hex(found / 255) == to_hex(line.get_color())


def test_curves_draw_each_field_against_its_epoch(figure: list[Figure]) -> None:
    epochs = [epoch(3, val_exact_match=0.1), epoch(4, val_exact_match=0.2)]
    figures.loss_curves(epochs)
    figures.accuracy_curves(epochs)
    drawn = [
        {line.get_label(): (np.asarray(line.get_xdata()).tolist(), heights(line)) for line in f.axes[0].get_lines()}
        for f in figure
    ]
    assert drawn[0] == {"training": ([3, 4], [2 / 3, 0.5]), "validation": ([3, 4], [2.5 / 3, 0.625])}
    assert drawn[1] == {
        "characters, training": ([3, 4], [0.5, 0.5]),
        "characters, validation": ([3, 4], [0.6, 0.6]),
        "whole strings, validation": ([3, 4], [0.1, 0.2]),
    }


def test_position_curves_are_solid_for_validation_and_dashed_for_training_in_one_color_a_position(
    figure: list[Figure],
) -> None:
    figures.position_curves([epoch(1), epoch(2)])
    lines = figure[0].axes[0].get_lines()
    assert [(line.get_linestyle(), heights(line)) for line in lines] == [
        ("-", [0.6, 0.6]), ("--", [0.4, 0.4]), ("-", [0.7, 0.7]), ("--", [0.5, 0.5]),
    ]  # fmt: skip
    colors = [line.get_color() for line in lines]
    assert colors[0] == colors[1] != colors[2] == colors[3]


@pytest.mark.parametrize("num", [2, 10, 40, 62])
def test_confusion_matrix_is_legible_for_alphabets_of_any_size(num: int, figure: list[Figure]) -> None:
    labels = [chr(0x41 + k) for k in range(num)]
    picture = decode(figures.confusion_matrix(labels, [[k, k, 99_999] for k in range(num)]))
    axes = figure[0].axes[0]
    cell = axes.get_window_extent().width / num
    assert cell >= 20
    assert max(picture.size) <= 2500
    assert [text.get_text() for text in axes.get_xticklabels()] == labels
    for text in axes.get_yticklabels():
        assert float(text.get_fontsize()) >= 7
        assert text.get_window_extent().height < 1.3 * cell
    counted = [text for text in axes.texts if text.get_text() == "99999"]
    assert len(counted) == (num if num <= figures.MAX_COUNTED_LABELS else 0)
    assert all(text.get_window_extent().width < cell and float(text.get_fontsize()) >= 6 for text in counted)


def test_confusion_matrix_colors_the_share_of_the_row_and_writes_the_count(figure: list[Figure]) -> None:
    figures.confusion_matrix(["a", "b"], [[0, 0, 8], [0, 1, 2], [1, 1, 400]])
    axes = figure[0].axes[0]
    assert np.asarray(axes.images[0].get_array()).tolist() == [[0.8, 0.2], [0.0, 1.0]]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "8"), ((1, 0), "2"), ((1, 1), "400"),
    }  # fmt: skip
