"""The fitted curve: it finds the curve that numbers were drawn from, and answers in a sentence."""

import dataclasses
import math

import numpy as np
import pytest

from captcha_ray.metrics.learning_curve import Curve, Point, summary

TRUE = Curve(intercept=4.0, slope=1.2)
SIZES = (40, 80, 200, 400, 800)


def points(curve: Curve = TRUE, tested: int = 200_000, sizes: tuple[int, ...] = SIZES) -> list[Point]:
    return [Point(size, round(tested * curve.accuracy(size)), tested) for size in sizes]


def test_the_fit_finds_the_curve_behind_many_predictions() -> None:
    found = Curve.fit(points())
    assert found.intercept == pytest.approx(TRUE.intercept, abs=0.02)
    assert found.slope == pytest.approx(TRUE.slope, abs=0.005)


def test_images_for_an_accuracy_are_those_at_which_the_curve_has_it() -> None:
    for accuracy in (0.5, 0.9, 0.99, 0.999):
        assert TRUE.accuracy(TRUE.images_for(accuracy)) == pytest.approx(accuracy)
    assert Curve(1.0, -0.5).images_for(0.99) == math.inf
    assert Curve(1.0, 1e-9).images_for(0.99) == math.inf


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    truth, held = TRUE.images_for(0.99), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        drawn = [Point(n, int(rng.binomial(300, TRUE.accuracy(n))), 300) for n in SIZES]
        low, high = summary(drawn, seed)["images_for_goal_ci95"]
        held += low <= truth and (high is None or truth <= high)
    assert 51 <= held <= 60


def test_points_far_off_the_curve_widen_the_interval() -> None:
    near = points(tested=500)
    far = [
        dataclasses.replace(point, num_right=point.num_right + shift)
        for point, shift in zip(near, (60, -60, 40, -30, 5), strict=True)
    ]
    widths = []
    for some in (near, far):
        low, high = summary(some)["images_for_goal_ci95"]
        widths.append(math.log((high or 80_000) / low))
    assert widths[1] > 2 * widths[0]


def test_the_sentence_says_how_many_more() -> None:
    found = summary(points(tested=2000))
    needed = found["images_for_goal"]
    assert needed == pytest.approx(TRUE.images_for(0.99), rel=0.15)
    assert f"about {needed - 800:,} more images reach 99%: {needed:,} in all" in found["answer"]
    assert found["answer"].startswith(f"{TRUE.accuracy(800):.1%} of whole strings with 800 images")


def test_where_there_are_enough_the_sentence_says_so() -> None:
    found = summary(points(Curve(3.0, 2.0)))
    assert found["images_for_goal"] < 800
    assert found["answer"].endswith("which is at least 99%: more images are not needed for that")
    lucky = summary([Point(100, 0, 900), Point(200, 0, 900), Point(400, 0, 900), Point(800, 900, 900)])
    assert "more images are not needed" in lucky["answer"], "whatever the curve says"
    unlucky = summary([*points(Curve(3.0, 2.0))[:-1], Point(800, 168, 172)])
    assert "fewer than there are, and 172 test images cannot tell more" in unlucky["answer"]


def test_where_more_do_not_help_no_number_is_made_up() -> None:
    flat = [Point(size, 50, 100) for size in SIZES]
    found = summary(flat)
    assert found["images_for_goal"] is None
    assert "cannot be reached" in found["answer"]
    open_ended = summary([Point(100, 50, 60), Point(200, 53, 60), Point(400, 55, 60)])
    assert open_ended["images_for_goal"] > 400
    assert open_ended["images_for_goal_ci95"][1] is None
    assert " to more than 40,000 images in all: 60 test images are too few to tell" in open_ended["answer"]


def test_from_one_string_nothing_is_concluded() -> None:
    right = summary([Point(20, 1, 1), Point(40, 1, 1)])["answer"]
    assert right == (
        "100.0% of whole strings with 40 images (95 % interval 20.7% to 100.0%); whether 99% is reached, 1 test images "
        "are too few to tell"
    )
    wrong = summary([Point(20, 1, 1), Point(40, 0, 1)])["answer"]
    assert wrong.startswith("0.0% of whole strings with 40 images; 99% may take ")
    assert wrong.endswith(" to more than 4,000 images in all: 1 test images are too few to tell")


def test_no_errors_at_all_still_give_a_curve() -> None:
    found = summary([Point(40, 50, 100), Point(400, 100, 100), Point(800, 100, 100)])
    assert 40 < found["images_for_goal"] < 800
    assert np.isfinite(list(found["curve"].values())).all()


def test_one_number_of_images_is_no_curve() -> None:
    found = summary([Point(40, 50, 100)])
    assert found["curve"] is None
    assert summary([Point(40, 500, 500)])["answer"].endswith("not needed for that")
    assert found["answer"] == "50.0% of whole strings with 40 images; too few images for a curve"
    assert found["points"][0]["exact_match"] == 0.5


def test_a_goal_that_is_far_away_is_not_called_out_of_reach() -> None:
    far = summary([Point(100, 2833, 20000), Point(200, 4962, 20000), Point(400, 7952, 20000)])
    assert far["answer"].endswith("99% would take more than 40,000 images in all")
    never = summary([Point(100, 5000, 20000), Point(200, 4900, 20000), Point(400, 4800, 20000)])
    assert "99% cannot be reached" in never["answer"]
