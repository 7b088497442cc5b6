"""Figures of merit against numbers worked by hand or published; counts add up however they are split."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captcha_ray.metrics.counts import OTHER, PredictionCounts, ratio, wilson_interval


def count(charset: str, pairs: list[tuple[str, str]], losses: list[float] | None = None) -> PredictionCounts:
    truths, predictions = [truth for truth, _ in pairs], [prediction for _, prediction in pairs]
    return PredictionCounts.of(charset, truths, predictions, losses or [0.0] * len(pairs))


def same(a: PredictionCounts, b: PredictionCounts) -> bool:
    return all(
        getattr(a, field.name) == getattr(b, field.name)
        if field.name in ("charset", "single_confusions")
        else np.allclose(getattr(a, field.name), getattr(b, field.name))
        for field in dataclasses.fields(PredictionCounts)
    )


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_agrees_with_published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 10_000), st.data())
@settings(deadline=None)
def test_an_interval_holds_its_proportion_and_stays_within_0_and_1(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    interval = wilson_interval(successes, trials)
    assert interval is not None
    assert 0 <= interval[0] <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= interval[1] <= 1


# Truth a a a a b b c, read  a a a b b c c: of 'a' 3 hits of 4, read 3 times; 'b' 1 of 2, read twice; 'c' 1 of 1, twice.
WORKED = count("abcd", list(zip("aaaabbc", "aaabbcc", strict=True)), [0.5] * 7)


def test_precision_recall_and_f1_agree_with_numbers_worked_by_hand() -> None:
    classes = WORKED.summary()["classes"]
    assert classes["a"] == {"precision": 1.0, "recall": 0.75, "f1": pytest.approx(6 / 7), "support": 4}
    assert classes["b"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert classes["c"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert classes["d"] == {"precision": None, "recall": None, "f1": None, "support": 0}


def test_averages_agree_with_numbers_worked_by_hand_and_leave_out_what_never_occurs() -> None:
    averages = WORKED.summary()["averages"]
    f1 = (6 / 7, 1 / 2, 2 / 3)
    assert averages["macro"] == pytest.approx({"precision": 2 / 3, "recall": 0.75, "f1": sum(f1) / 3})
    weighted = (4 * f1[0] + 2 * f1[1] + f1[2]) / 7
    assert averages["weighted"] == pytest.approx({"precision": 5.5 / 7, "recall": 5 / 7, "f1": weighted})


def test_a_class_that_occurs_and_is_never_read_counts_as_zero() -> None:
    summary = count("ab", [("a", "a"), ("b", "a")]).summary()
    assert summary["classes"]["b"] == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1}
    assert summary["averages"]["macro"] == pytest.approx({"precision": 0.25, "recall": 0.5, "f1": 1 / 3})


def test_accuracies_agree_with_numbers_worked_by_hand() -> None:
    summary = count("abc", [("abc", "abc"), ("abc", "abb"), ("bca", "cba")], [1.0, 2.0, 6.0]).summary()
    assert summary["num_images"] == 3
    assert summary["loss"] == 3.0
    assert summary["num_exact_match"] == 1
    assert summary["exact_match"] == pytest.approx(1 / 3)
    assert summary["exact_match_ci95"] == pytest.approx(wilson_interval(1, 3))
    assert summary["char_accuracy"] == pytest.approx(6 / 9)
    assert summary["position_accuracy"] == pytest.approx([2 / 3, 2 / 3, 2 / 3])


def test_the_confusion_matrix_has_truths_in_rows_and_predictions_in_columns() -> None:
    assert WORKED.summary()["confusion"] == {
        "labels": ["a", "b", "c", "d", OTHER],
        "counts": [[0, 0, 3], [0, 1, 1], [1, 1, 1], [1, 2, 1], [2, 2, 1]],
    }


def test_figures_of_three_thousand_characters_take_little_room() -> None:
    charset = "".join(chr(0x4E00 + k) for k in range(3000))
    counts = PredictionCounts.of(charset, list(charset[:100]), list(charset[:100]), [0.0] * 100)
    assert len(json.dumps(counts.summary())) < 1_000_000


@pytest.mark.parametrize(("truth", "prediction"), [("ab", "a"), ("ab", "abb"), ("ab", ""), ("a", "ab")])
def test_a_reading_of_another_length_is_wrong_as_a_string_and_right_where_it_agrees(
    truth: str, prediction: str
) -> None:
    found = count("ab", [(truth, prediction)])
    assert found.strings_correct == 0
    assert found.position_total.tolist() == [1] * len(truth)
    assert found.position_correct.tolist() == [int(prediction[i : i + 1] == c) for i, c in enumerate(truth)]


def test_characters_that_are_missing_or_unknown_go_to_the_last_row_and_column() -> None:
    found = count("ab", [("ab", "a"), ("xb", "xb"), ("xx", "a?")])
    assert found.confusion.tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 2]]
    assert found.position_correct.tolist() == [2, 1]
    assert found.strings_correct == 1


def test_a_character_too_many_is_one_edit_though_all_behind_it_stand_elsewhere() -> None:
    summary = PredictionCounts.of("abcd", ["abcd", "dcba"], ["aabcd", "dcba"], [0.0, 0.0]).summary()
    assert summary["char_error_rate"] == pytest.approx(1 / 8)
    assert summary["char_accuracy"] == pytest.approx(5 / 8)
    assert PredictionCounts.of("ab", ["a"], ["bbb"], [0.0]).summary()["char_error_rate"] == 3


def test_strings_that_differ_by_case_alone_are_counted_apart() -> None:
    summary = PredictionCounts.of("aAbB", ["aB", "ab", "bb"], ["Ab", "ab", "aa"], [0.0] * 3).summary()
    assert summary["exact_match"] == pytest.approx(1 / 3)
    assert summary["exact_match_ignoring_case"] == pytest.approx(2 / 3)


def test_the_only_wrong_character_of_a_string_is_counted_with_what_was_taken_for_it() -> None:
    pairs = [("abc", "abd"), ("cbc", "dbc"), ("abc", "ab"), ("abc", "abc"), ("abc", "bac"), ("abc", "bbc")]
    summary = count("abcd", pairs).summary()
    assert summary["single_confusions"] == [["c", "d", 2], ["a", "b", 1]]


def test_no_images_give_none_and_not_zero() -> None:
    summary = count("ab", []).summary()
    assert (summary["num_images"], summary["num_exact_match"], summary["position_accuracy"]) == (0, 0, [])
    for name in ("loss", "char_accuracy", "exact_match", "exact_match_ci95"):
        assert summary[name] is None, name
    assert set(summary["averages"]["macro"].values()) == {None}
    assert set(summary["averages"]["weighted"].values()) == {None}
    assert wilson_interval(0, 0) is None
    assert ratio(0, 0) is None


def test_a_loss_that_cannot_be_told_is_none_and_spoils_nothing_else() -> None:
    summary = count("ab", [("a", "a"), ("x", "a")], [0.5, math.nan]).summary()
    assert summary["loss"] is None
    assert summary["exact_match"] == 0.5


def test_a_summary_is_strict_json() -> None:
    for counts in (WORKED, count("ab", []), count("a", [("x", "a")], [math.nan]), count("a", [("a", "a")], [math.inf])):
        assert json.loads(json.dumps(counts.summary(), allow_nan=False)) == counts.summary()


PAIRS = st.lists(st.tuples(st.text("abx", max_size=4), st.text("abx", max_size=4)), max_size=12)


@given(PAIRS, st.lists(st.integers(0, 12), max_size=3))
@settings(deadline=None)
def test_counts_of_the_parts_add_up_to_the_whole(pairs: list[tuple[str, str]], cuts: list[int]) -> None:
    losses = [float(i) for i in range(len(pairs))]
    edges = [0, *sorted(cuts), 12]
    total = count("ab", [])
    for start, stop in itertools.pairwise(edges):
        total += count("ab", pairs[start:stop], losses[start:stop])
    assert same(total, count("ab", pairs, losses))


@given(PAIRS)
@settings(deadline=None)
def test_every_true_character_is_in_the_confusion_matrix_once(pairs: list[tuple[str, str]]) -> None:
    found = count("ab", pairs)
    assert found.confusion.sum() == found.position_total.sum() == sum(len(truth) for truth, _ in pairs)
    assert found.strings_correct == sum(truth == prediction for truth, prediction in pairs)


@given(PAIRS)
@settings(deadline=None)
def test_a_wrong_reading_lowers_every_accuracy(pairs: list[tuple[str, str]]) -> None:
    pairs = [*pairs, ("ab", "ab")]
    before = count("ab", pairs).summary()
    after = count("ab", [*pairs, ("ab", "ba")]).summary()
    assert after["exact_match"] < before["exact_match"]
    assert after["char_accuracy"] < before["char_accuracy"]


def test_adding_changes_neither_summand() -> None:
    a, b = count("ab", [("a", "a")]), count("ab", [("ab", "bb")])
    assert (a + b).num_images == 2
    assert same(a, count("ab", [("a", "a")]))
    assert same(b, count("ab", [("ab", "bb")]))


def test_counts_of_two_alphabets_do_not_add_up() -> None:
    with pytest.raises(AssertionError, match="two alphabets"):
        count("ab", []) + count("ba", [])


def test_confusions_of_equal_number_do_not_depend_on_what_was_counted_first() -> None:
    a, b = count("abcd", [("ab", "ad")]), count("abcd", [("ab", "cb")])
    assert (a + b).summary()["single_confusions"] == [["a", "c", 1], ["b", "d", 1]]
    assert (b + a).summary()["single_confusions"] == [["a", "c", 1], ["b", "d", 1]]
