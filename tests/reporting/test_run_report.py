"""The report is one page that stands alone and shows what was measured; its pictures can be decoded and read."""

import base64
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from captcha_ray.metrics import learning_curve
from captcha_ray.metrics.calibration import Confidences
from captcha_ray.metrics.counts import OTHER, Mistake, PredictionCounts
from captcha_ray.reporting import figures, page, run_report
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


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures behind the pictures, as they are drawn."""
    drawn: list[Figure] = []
    png = figures.png

    def keep(figure: Figure) -> bytes:
        drawn.append(figure)
        return png(figure)

    monkeypatch.setattr(figures, "png", keep)
    return drawn


GOOD = counts("ab", ["ab"] * 19 + ["ba"], ["ab"] * 19 + ["bb"])


def test_summary_shows_accuracies_with_the_wilson_interval_and_every_position(tmp_path: Path) -> None:
    pairs = write(tmp_path, {"test": GOOD}).pairs()
    assert pairs["Images"] == "20"
    assert pairs["Loss, nats per image"] == "0.5000"
    assert pairs["Character accuracy"] == "97.50%"
    # Wilson's interval of 19 in 20, worked out by hand.
    assert pairs["Whole-string accuracy"] == "95.00% (19 of 20; 95% interval 76.39% to 99.11%)"
    assert pairs["Accuracy at position 1"] == "100.00%"
    assert pairs["Accuracy at position 2"] == "95.00%"


def test_a_warning_stands_before_all_figures_and_only_where_there_is_one(tmp_path: Path) -> None:
    write(tmp_path, {"test": GOOD, "warnings": ["this network is of no use <b>", "next: try"]})
    text = (tmp_path / "report.html").read_text()
    assert text.index("<h2>Warning</h2>") < text.index("of no use &lt;b&gt;") < text.index("next: try")
    assert text.index("next: try") < text.index("Split test")
    write(tmp_path, {"test": GOOD, "warnings": []})
    assert "<h2>Warning</h2>" not in (tmp_path / "report.html").read_text()


def test_each_split_has_its_own_summary_in_the_order_given_and_other_keys_are_no_splits(tmp_path: Path) -> None:
    page = write(tmp_path, {"val": GOOD, "test": counts("ab", ["a"], ["a"]), "reader": {"batch": 7}, "note": "x"})
    assert page.texts["h2"][:2] == ["Split val", "Split test"]
    assert [row[1] for table in page.tables for row in table if row[0] == "Images"] == ["20", "1"]
    assert page.pairs()["reader batch"] == "7"
    assert page.pairs()["note"] == "x"
    assert not (tmp_path / "figures/confusion_reader.png").exists()


def test_class_table_keeps_the_order_of_the_alphabet_and_ends_with_the_averages(tmp_path: Path) -> None:
    table = write(tmp_path, {"test": counts("cab", ["aabc", "aabb"], ["aabc", "abbb"])}).table("Character")
    assert table == [
        ["Character", "Precision", "Recall", "F1", "Support"],
        ["c", "100.00%", "100.00%", "100.00%", "1"],
        ["a", "100.00%", "75.00%", "85.71%", "4"],
        ["b", "75.00%", "100.00%", "85.71%", "3"],
        ["Macro average", "91.67%", "91.67%", "90.48%", "8"],
        ["Weighted average", "90.62%", "87.50%", "87.50%", "8"],
    ]


def test_page_asks_no_server_and_runs_no_script(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    run.write_metrics([epoch(1), epoch(2)])
    page = write(tmp_path, {"test": GOOD}, {"test": [mistake("ba", "bb")]})
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    raw = re.sub(r'src="data:[^"]*"', "", (tmp_path / "report.html").read_text())
    assert not re.search(r"https?:|src=|href=|@import|url\(", raw)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


def test_pictures_in_the_page_are_those_in_the_folder(tmp_path: Path) -> None:
    RunDirectory(str(tmp_path)).write_metrics([epoch(1), epoch(2)])
    page = write(tmp_path, {"test": GOOD}, {"test": [mistake("ba", "bb")]})
    files = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert set(files) == {"loss.png", "accuracy.png", "positions.png", "confusion_test.png", "mistakes_test.png"}
    inside = [base64.b64decode(source.partition(",")[2]) for source in page.sources]
    assert sorted(inside) == sorted(files.values())
    assert all(page.alts)
    for png in files.values():
        assert all(100 <= side <= 2000 for side in decode(png).size)


def test_hostile_texts_are_escaped_wherever_they_come_from(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>&amp;'
    run = RunDirectory(str(tmp_path / "<b>run"))
    run.write_json("config.json", {"charset": evil, evil: 1})
    run.write_json("environment.json", {"command": ["x", evil]})
    summary = counts("<&", ["<&"], ["<<"])
    summary["classes"] = {**summary["classes"], evil: summary["classes"]["<"]}
    rows = [Mistake(f"/{evil}", evil, f"{evil}2", 0.5, np.zeros((8, 8, 1), np.uint8))]
    page = write(tmp_path / "<b>run", {"test": summary, "note": evil}, {"test": rows})
    assert "script" not in page.tags
    assert "b" not in page.tags
    pairs = page.pairs()
    assert pairs["charset"] == pairs["note"] == evil
    assert pairs[evil] == "1"
    assert evil in [row[0] for row in page.table("Character")]
    assert page.table("Number")[1][1:] == [evil, f"{evil}2", "50.00%", f"/{evil}"]
    assert page.texts["h1"] == ["Report of <b>run"]


def test_a_split_without_images_shows_dashes(tmp_path: Path) -> None:
    page = write(tmp_path, {"test": counts("ab", [], [])})
    pairs = page.pairs()
    assert pairs["Images"] == "0"
    assert {pairs[name] for name in ("Loss, nats per image", "Character accuracy", "Whole-string accuracy")} == {"–"}
    assert page.table("Character")[1] == ["a", "–", "–", "–", "0"]
    assert page.table("Character")[-1] == ["Weighted average", "–", "–", "–", "0"]
    assert "None" not in (tmp_path / "report.html").read_text()


def test_unknown_values_in_metrics_and_config_are_dashes_and_gaps(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    nothing = {key: None for key in epoch(1) if key != "epoch"}
    run.write_metrics([{"epoch": 1, **nothing}])
    run.write_json("config.json", {"seed": None, "recipe": "", "use_gpu": False})
    pairs = write(tmp_path, {"seconds": None}).pairs()
    assert pairs["Last session of the training, with start-up"] == pairs["All epochs"] == pairs["seed"] == "–"
    assert pairs["recipe"] == '""'
    assert pairs["use_gpu"] == "no"


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


def test_a_split_without_mistakes_says_so_and_drops_the_picture_of_an_earlier_report(tmp_path: Path) -> None:
    page = write(tmp_path, {"test": GOOD}, {"test": [mistake("ba", "bb")]})
    assert run_report.NO_MISTAKES not in page.texts["p"]
    assert (tmp_path / "figures/mistakes_test.png").exists()
    page = write(tmp_path, {"test": counts("ab", ["ab"], ["ab"])}, {"test": []})
    assert page.texts["p"].count("No mistakes on this split.") == 1
    assert not (tmp_path / "figures/mistakes_test.png").exists()


def test_mistakes_whose_pictures_were_not_kept_are_not_called_none(tmp_path: Path) -> None:
    page = write(tmp_path, {"test": GOOD})
    assert run_report.NO_MISTAKES not in page.texts["p"]
    assert "Mistakes: 1. No picture of them was kept." in page.texts["p"]


def test_mistakes_keep_their_order_in_the_picture_and_in_the_page(tmp_path: Path, figure: list[Figure]) -> None:
    rows = [mistake(truth, "ab", confidence) for truth, confidence in (("bb", 0.2), ("aa", 0.9), ("ba", 0.5))]
    page = write(tmp_path, {"test": GOOD}, {"test": rows})
    assert [row[:4] for row in page.table("Number")[1:]] == [
        ["1", "bb", "ab", "20.00%"], ["2", "aa", "ab", "90.00%"], ["3", "ba", "ab", "50.00%"],
    ]  # fmt: skip
    sheet = max(figure, key=lambda drawn: len(drawn.axes))
    titles = [axes.get_title(loc="left").split() for axes in sheet.axes]
    assert titles == [
        ["1", "truth", "bb", "pred.", "ab", "20.0%"],
        ["2", "truth", "aa", "pred.", "ab", "90.0%"],
        ["3", "truth", "ba", "pred.", "ab", "50.0%"],
    ]
    lefts = [axes.get_position().x0 for axes in sheet.axes]
    assert lefts == sorted(lefts)


def test_contact_sheet_holds_the_first_thirty_and_the_page_says_of_how_many(
    tmp_path: Path, figure: list[Figure]
) -> None:
    truths = [f"{n:02d}" for n in range(37)]
    summary = counts("0123456789x", truths, ["xx"] * 37)
    page = write(tmp_path, {"test": summary}, {"test": [mistake(truth, "xx") for truth in truths]})
    assert "Mistakes: 37. Shown: 30, worst first." in page.texts["p"]
    assert [row[1] for row in page.table("Number")[1:]] == truths[:30]
    assert len(max(figure, key=lambda drawn: len(drawn.axes)).axes) == 30
    figures.mistakes([mistake(truth, "xx") for truth in truths])
    assert len(figure[-1].axes) == 30


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
    decode(figures.confusion_matrix(labels, [[1, 2], [3, 4]]))
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


def test_positions_are_drawn_for_more_than_one_position_only(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    run.write_metrics([epoch(1, train_position_accuracy=[0.5], val_position_accuracy=[0.5])])
    write(tmp_path, {})
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"loss.png", "accuracy.png"}


@pytest.mark.parametrize("num", [2, 10, 40, 62])
def test_confusion_matrix_is_legible_for_alphabets_of_any_size(num: int, figure: list[Figure]) -> None:
    labels = [chr(0x41 + k) for k in range(num)]
    picture = decode(figures.confusion_matrix(labels, np.diag([99_999] * num).tolist()))
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
    figures.confusion_matrix(["a", "b"], [[8, 2], [0, 400]])
    axes = figure[0].axes[0]
    assert np.asarray(axes.images[0].get_array()).tolist() == [[0.8, 0.2], [0.0, 1.0]]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "8"), ((1, 0), "2"), ((1, 1), "400"),
    }  # fmt: skip


@pytest.mark.parametrize(("matrix", "shown"), [
    ([[1, 0, 0], [0, 1, 0], [0, 0, 0]], ["a", "b"]),
    ([[1, 0, 1], [0, 1, 0], [0, 0, 0]], ["a", "b", OTHER]),
    ([[1, 0, 0], [0, 1, 0], [0, 1, 0]], ["a", "b", OTHER]),
])  # fmt: skip
def test_the_label_for_other_characters_is_drawn_where_there_were_any(
    matrix: list[list[int]], shown: list[str], figure: list[Figure]
) -> None:
    figures.confusion_matrix(["a", "b", OTHER], matrix)
    assert [text.get_text() for text in figure[0].axes[0].get_yticklabels()] == shown


def test_of_what_the_shards_made_of_a_config_the_report_shows_the_difference(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    run.write_json("config.json", {"epochs": 0, "dropout": 0.125})
    run.write_json("resolved_config.json", {"epochs": 321, "dropout": 0.125})
    run.write_metrics([epoch(1)])
    write(tmp_path, {"test": GOOD})
    html = (tmp_path / "report.html").read_text()
    before, _, after = html.partition("What the shards made of it")
    assert "0.125" in before
    assert "321" not in before
    assert "321" in after
    assert "0.125" not in after
    run.write_json("resolved_config.json", {"epochs": 0, "dropout": 0.125})
    write(tmp_path, {"test": GOOD})
    assert "What the shards made of it" not in (tmp_path / "report.html").read_text()


def test_config_environment_and_duration_are_shown(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    run.write_json("config.json", {"learning_rate": 0.001, "splits": [0.5, 0.5]})
    run.write_json("environment.json", {"versions": {"torch": "2.9"}, "commit": None, "command": ["t.py", "a b"]})
    run.write_metrics([epoch(1), epoch(2, seconds=3600.0, images_per_second=2000.0)])
    pairs = write(tmp_path, {"test": GOOD, "seconds": 3700.4}).pairs()
    wanted = {"learning_rate": "0.001", "splits": "0.5, 0.5", "versions torch": "2.9", "commit": "–",
              "command": "t.py 'a b'", "Last session of the training, with start-up": "1:01:40",
              "Epochs": "2", "All epochs": "1:00:30",
              "Images per second, mean of epochs": "1,500",
              "Share of time waiting for data, mean of epochs": "25.00%"}  # fmt: skip
    assert {name: pairs[name] for name in wanted} == wanted


@pytest.mark.parametrize(("seconds", "text"), [
    (None, "–"), (float("nan"), "–"), (0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "0:01:00"), (86399.6, "24:00:00"),
])  # fmt: skip
def test_durations_read_as_seconds_or_hours(seconds: float | None, text: str) -> None:
    assert page.duration(seconds) == text


def test_a_bare_checkpoint_folder_gets_a_report_without_curves_and_config(tmp_path: Path) -> None:
    page = write(tmp_path, {"test": GOOD, "seconds": 2.0})
    assert page.texts["h2"] == ["Split test", "How long it took"]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"confusion_test.png"}


def test_results_read_back_from_json_give_the_same_page(tmp_path: Path) -> None:
    results = {"test": GOOD, "seconds": 3.5}
    write(tmp_path, results)
    first = (tmp_path / "report.html").read_bytes()
    write(tmp_path, json.loads(json.dumps(results)))
    assert (tmp_path / "report.html").read_bytes() == first


def test_the_picture_of_a_split_that_was_not_read_again_stays(tmp_path: Path) -> None:
    write(tmp_path, {"test": GOOD}, {"test": [mistake("ba", "bb")]})
    before = (tmp_path / "figures/mistakes_test.png").read_bytes()
    page = write(tmp_path, {"test": GOOD, "corpus": GOOD}, {"corpus": []})
    assert (tmp_path / "figures/mistakes_test.png").read_bytes() == before
    assert base64.b64encode(before).decode() in (tmp_path / "report.html").read_text()
    assert "Mistakes: 1." in page.texts["p"]


def sure(*rows: tuple[float, bool]) -> dict[str, Any]:
    """Confidence and right of readings, as `results.json` has it."""
    return Confidences.of([confidence for confidence, _ in rows], [right for _, right in rows]).summary()


SURE = sure(*[(0.99999999, True)] * 5000, *[(0.6, True)] * 3000, *[(0.6, False)] * 2000)


def test_the_threshold_is_told_so_that_it_can_be_asked_for(tmp_path: Path, figure: list[Figure]) -> None:
    pairs = write(tmp_path, {"test": {**GOOD, "confidence": SURE}}).pairs()
    said = pairs["--min-confidence for 99.9% precision"]
    assert said == (
        "0.999999, which 50.00% of the images reach; of these 5000, 100.00% are right (95% interval 99.92% to 100.00%)"
    )
    assert pairs["Expected calibration error"] == "0.00%"
    reliability, risk = figure[1:3]
    assert np.asarray(reliability.axes[0].collections[0].get_offsets()).tolist() == [
        [pytest.approx(0.6), 0.6],
        [pytest.approx(1), 1.0],
    ]
    curve = risk.axes[0].get_lines()[0]
    assert np.asarray(curve.get_xdata()).tolist() == [0.5, 1.0]
    assert heights(curve) == [0.0, 0.2]


def test_a_threshold_from_few_predictions_is_called_that(tmp_path: Path) -> None:
    few = {**GOOD, "confidence": sure(*[(0.9, True)] * 86)}
    said = write(tmp_path, {"test": few}).pairs()["--min-confidence for 99.9% precision"]
    assert said.startswith("0.900000, which 100.00% of the images reach; of these 86, 100.00% are right")
    assert said.endswith("; too few predictions to be sure of it")
    none = {**GOOD, "confidence": sure((0.9, False), (0.5, True))}
    pairs = write(tmp_path, {"test": none}).pairs()
    assert pairs["--min-confidence for 99.9% precision"] == "no confidence is high enough"


def test_folds_have_a_row_each_and_disputes_their_number(tmp_path: Path) -> None:
    keys = ("num_images", "num_exact_match", "exact_match", "exact_match_ci95", "char_accuracy")
    folds = [{"fold": f"fold-{k}"} | {key: GOOD[key] for key in keys} for k in range(2)]
    page = write(
        tmp_path,
        {"cross_validation": {**GOOD, "confidence": SURE, "folds": folds, "num_disputed": 7}},
        {"cross_validation": [mistake("ba", "bb", 0.999)]},
    )
    assert page.table("Fold")[1:] == [
        [f"fold-{k}", "20", "19", "95.00%", "76.39% to 99.11%", "97.50%"] for k in range(2)
    ]
    said = " ".join(page.texts["p"])
    assert "In place of 7 labels another text was predicted" in said
    assert "Cross-validation in 2 folds" in page.texts["h2"]
    assert "Disputed labels" in page.texts["h3"]


@pytest.mark.parametrize("sizes", [(40, 400), (40,)])
def test_a_learning_curve_has_its_points_and_its_answer(
    sizes: tuple[int, ...], tmp_path: Path, figure: list[Figure]
) -> None:
    curve = learning_curve.summary([learning_curve.Point(size, size // 5, 100) for size in sizes])
    page = write(tmp_path, {"learning_curve": curve, "test": GOOD})
    assert [row[:2] for row in page.table("Training images")[1:]] == [[str(size), f"{size // 5}.00%"] for size in sizes]
    assert f"{curve['answer']}." in page.texts["p"]
    axes = figure[-1].axes[0]
    points = axes.containers[0].lines[0]
    assert np.asarray(points.get_xdata()).tolist() == list(sizes)
    assert heights(points) == [size / 500 for size in sizes]
    assert len([line for line in axes.get_lines() if line.get_label() == "fitted"]) == (len(sizes) > 1)
