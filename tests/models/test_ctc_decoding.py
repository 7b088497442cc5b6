"""Probabilities of characters at their positions are those of the sum over all alignments."""

import itertools

import numpy as np
import pytest

from captcha_ray.models import ctc_decoding as slots


def log_softmax(outputs: np.ndarray) -> np.ndarray:
    shifted = outputs - outputs.max(-1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))).astype(np.float32)


def columns_of(n: int, num_columns: int, k: int, sharpness: float = 3.0) -> np.ndarray:
    """Return log-probabilities, float32 (N, T, K + 1)."""
    return log_softmax(np.random.default_rng(n).normal(size=(n, num_columns, k + 1)) * sharpness)


def by_enumeration(columns: np.ndarray, max_length: int, *, variable: bool) -> np.ndarray:
    """Return the slot probabilities of one image, (S, K) or (S, K + 1), by adding up every path."""
    num_columns, blank = columns.shape[0], columns.shape[1] - 1
    found, total = np.zeros((max_length, blank + 1)), 0.0
    for path in itertools.product(range(blank + 1), repeat=num_columns):
        text = [c for c, _ in itertools.groupby(path) if c != blank]
        if not (1 if variable else max_length) <= len(text) <= max_length:
            continue
        probability = float(np.exp(sum(columns[t, c] for t, c in enumerate(path))))
        total += probability
        for position in range(max_length):
            found[position, text[position] if position < len(text) else blank] += probability
    return (found if variable else found[:, :-1]) / total


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize(("num_columns", "k", "max_length"), [(4, 3, 2), (5, 2, 3), (3, 3, 1), (6, 2, 2)])
def test_slots_are_the_sum_over_all_paths(num_columns: int, k: int, max_length: int, variable: bool) -> None:
    columns = columns_of(3, num_columns, k)
    found = slots.slot_probabilities(columns, max_length, variable=variable)
    for image, expected in zip(found, columns, strict=True):
        np.testing.assert_allclose(image, by_enumeration(expected, max_length, variable=variable), atol=1e-6)


@pytest.mark.parametrize(("variable", "num_classes"), [(False, 3), (True, 4)])
def test_no_images_have_no_probabilities(variable: bool, num_classes: int) -> None:
    assert slots.slot_probabilities(np.zeros((0, 9, 4), np.float32), 2, variable=variable).shape == (0, 2, num_classes)


def test_what_columns_say_for_sure_is_recognized() -> None:
    said = np.array([0, 2, 2, 0, 0, 2, 1, 1])  # 2 is blank: "001" with a repeated 0 that a blank parts
    columns = log_softmax(np.eye(3)[said][None] * 20)
    exactly = slots.slot_probabilities(columns, 3, variable=False)
    assert exactly.argmax(2).tolist() == [[0, 0, 1]]
    up_to = slots.slot_probabilities(columns, 5, variable=True)
    assert up_to.argmax(2).tolist() == [[0, 0, 1, 2, 2]]
    assert min(exactly.max(2).min(), up_to.max(2).min()) > 0.99
    forced = slots.slot_probabilities(columns, 2, variable=False)  # one of three must go
    np.testing.assert_allclose(forced.sum(2), 1)


def test_logarithms_are_finite() -> None:
    columns = np.log(np.array([[[1, 0, 0], [0, 0, 1]]]).clip(1e-45)).astype(np.float32)
    found = slots.slot_log_probabilities(columns, 1, variable=False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[[0, np.log(1e-30)]]], atol=1e-6)


def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = columns_of(20, 12, 4)
    expected = slots.slot_probabilities(columns, 3, variable=True)
    monkeypatch.setattr(slots, "CHUNK_BYTES", 12 * 3 * 5 * 8 * 7)
    np.testing.assert_array_equal(slots.slot_probabilities(columns, 3, variable=True), expected)


def test_many_columns_stay_within_floats() -> None:
    """Two characters in 2,000 columns, of which each halves all masses five times: 1e-3000 without rescaling."""
    columns = np.full((1, 2000, 4), 1e-6)
    columns[:, :, 3] = 0.03
    columns[:, 700] = [0.9, 0.01, 0.01, 0.08]
    columns[:, 1500] = [0.01, 0.9, 0.01, 0.08]
    found = slots.slot_probabilities(np.log(columns).astype(np.float32), 2, variable=False)
    assert found[0, 0, 0] > 0.9
    assert found[0, 1, 1] > 0.9


def test_where_no_alignment_is_left_all_characters_are_equally_likely() -> None:
    columns = np.full((2, 400, 3), -400.0, np.float32)
    columns[:, 0::2, 0] = columns[:, 1::2, 1] = 0  # 400 characters where two are asked for
    columns[1, :, :] = log_softmax(np.zeros((400, 3)))
    found = slots.slot_probabilities(columns, 2, variable=False)
    np.testing.assert_array_equal(found[0], 0.5)
    assert np.isfinite(found).all()
