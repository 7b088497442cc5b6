"""The report is one page that stands alone and shows what was measured; its pictures can be decoded and read."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from captcha_ray.metrics import learning_curve
from captcha_ray.metrics.counts import OTHER, Mistake
from captcha_ray.reporting import figures, page, run_report
from captcha_ray.runs.directory import RunDirectory
from tests.support.report_page import GOOD, SURE, counts, decode, epoch, heights, mistake, sure, write


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


def test_advice_stands_before_all_figures_and_only_where_there_is_some(tmp_path: Path) -> None:
    write(tmp_path, {"test": GOOD, "warnings": [], "next_steps": ["case: <b>", "size: larger"]})
    text = (tmp_path / "report.html").read_text()
    assert text.index("<h2>What next?</h2>") < text.index("case: &lt;b&gt;") < text.index("size: larger")
    assert text.index("size: larger") < text.index("Split test")
    write(tmp_path, {"test": GOOD, "next_steps": []})
    assert "What next?" not in (tmp_path / "report.html").read_text()


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


def test_positions_are_drawn_for_more_than_one_position_only(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    run.write_metrics([epoch(1, train_position_accuracy=[0.5], val_position_accuracy=[0.5])])
    write(tmp_path, {})
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"loss.png", "accuracy.png"}


@pytest.mark.parametrize(("counts", "shown"), [
    ([[0, 0, 1], [1, 1, 1]], ["a", "b"]),
    ([[0, 0, 1], [0, 2, 1], [1, 1, 1]], ["a", "b", OTHER]),
    ([[0, 0, 1], [1, 1, 1], [2, 1, 1]], ["a", "b", OTHER]),
])  # fmt: skip
def test_the_label_for_other_characters_is_drawn_where_there_were_any(
    counts: list[list[int]], shown: list[str], figure: list[Figure]
) -> None:
    figures.confusion_matrix(["a", "b", OTHER], counts)
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
