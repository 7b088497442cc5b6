"""Calibration error, risk and coverage, and the threshold for a precision, against values worked out by hand."""

import numpy as np
import pytest

from captcha_ray.metrics.calibration import NUM_POINTS, Confidences


def test_the_calibration_error_is_the_gap_of_each_bin_weighted_by_its_predictions() -> None:
    # three of confidence .95 of which two are right, one of .1 that is wrong
    found = Confidences.of([0.95, 0.95, 0.95, 0.1], [True, True, False, False])
    assert found.calibration_error() == pytest.approx(3 / 4 * (0.95 - 2 / 3) + 1 / 4 * 0.1)
    low, high = found.bins()
    assert (low["num_images"], low["accuracy"], low["confidence"]) == (1, 0.0, pytest.approx(0.1))
    assert (high["low"], high["high"], high["num_images"]) == (14 / 15, 1.0, 3)


def test_gaps_of_one_bin_cancel_and_those_of_two_do_not() -> None:
    assert Confidences.of([0.5] * 4, [True, True, False, False]).calibration_error() == pytest.approx(0)
    assert Confidences.of([0.9, 0.1], [False, True]).calibration_error() == pytest.approx(0.9)


def test_a_confidence_of_one_belongs_to_the_last_bin() -> None:
    assert [one["high"] for one in Confidences.of([1.0, 0.0], [True, True]).bins()] == [1 / 15, 1.0]


def test_predictions_that_gaps_are_drawn_for_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 100_000)
    right = rng.uniform(size=100_000) < confidence
    calibrated = Confidences(confidence, right).calibration_error()
    overconfident = Confidences(np.sqrt(confidence), right).calibration_error()
    assert calibrated is not None
    assert overconfident is not None
    assert calibrated < 0.01
    assert overconfident == pytest.approx(1 / 6, abs=0.01)  # the mean of sqrt(x) - x


def test_the_threshold_is_the_lowest_that_is_precise_enough() -> None:
    confidence = [0.9, 0.8, 0.7, 0.6, 0.5]
    right = [True, True, False, True, True]
    found = Confidences.of(confidence, right).threshold(0.8)
    assert found is not None
    assert (found["confidence"], found["coverage"], found["precision"]) == (0.5, 1.0, 0.8)
    found = Confidences.of(confidence, right).threshold(0.9)
    assert found is not None
    assert (found["confidence"], found["num_images"], found["precision"]) == (0.8, 2, 1.0)
    assert found["precision_ci95"][0] < 0.5 < found["precision_ci95"][1] == 1.0


def test_predictions_of_the_same_confidence_are_taken_or_left_together() -> None:
    found = Confidences.of([0.9, 0.9, 0.9, 0.2], [True, False, True, True])
    assert found.threshold(0.99) is None
    assert found.risk_coverage() == [
        {"threshold": 0.9, "coverage": 0.75, "risk": pytest.approx(1 / 3)},
        {"threshold": 0.2, "coverage": 1.0, "risk": 0.25},
    ]


def test_where_the_surest_reading_is_wrong_there_may_be_no_threshold() -> None:
    assert Confidences.of([0.9, 0.5], [False, True]).threshold() is None
    assert Confidences.of([], []).threshold() is None
    assert Confidences.of([], []).summary() == {
        "calibration_error": None, "bins": [], "threshold": None, "risk_coverage": [],
    }  # fmt: skip


def test_a_long_curve_keeps_its_ends_and_not_all_between() -> None:
    rng = np.random.default_rng(1)
    found = Confidences(rng.uniform(size=5000), rng.uniform(size=5000) < 0.5)
    points = found.risk_coverage()
    assert len(points) == NUM_POINTS
    assert points[-1]["coverage"] == 1.0
    assert points[-1]["risk"] == pytest.approx(1 - found.right.mean())
    assert points[0]["threshold"] == found.confidence.max()


def test_the_order_of_predictions_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    confidence, right = rng.random(1000), rng.random(1000) < 0.5
    expected = Confidences.of(confidence.tolist(), right.tolist()).summary()
    for _ in range(5):
        order = rng.permutation(1000)
        assert Confidences.of(confidence[order].tolist(), right[order].tolist()).summary() == expected
