"""Compare the probability of each character with the sum over all paths that have the characters before it."""

import itertools

import numpy as np
import pytest

from captcha_ray.models import ctc_decoding as decoding


def log_softmax(outputs: np.ndarray) -> np.ndarray:
    shifted = outputs - outputs.max(-1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))).astype(np.float32)


def columns_of(n: int, num_columns: int, k: int, sharpness: float = 3.0) -> np.ndarray:
    """Return log-probabilities, float32 (N, T, K + 1)."""
    return log_softmax(np.random.default_rng(n).normal(size=(n, num_columns, k + 1)) * sharpness)


def probabilities_of_texts(columns: np.ndarray, max_length: int, *, variable: bool) -> dict[tuple[int, ...], float]:
    """Return the probability of each text of one image, among those of lengths that are allowed: all paths added up."""
    num_columns, blank = columns.shape[0], columns.shape[1] - 1
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(blank + 1), repeat=num_columns):
        text = tuple(c for c, _ in itertools.groupby(path) if c != blank)
        if (1 if variable else max_length) <= len(text) <= max_length:
            found[text] = found.get(text, 0.0) + float(np.exp(sum(columns[t, c] for t, c in enumerate(path))))
    total = sum(found.values())
    return {text: probability / total for text, probability in found.items()}


def after_prefix(
    texts: dict[tuple[int, ...], float], prefix: tuple[int, ...], num_characters: int, *, variable: bool
) -> np.ndarray:
    """Return the probability of each class after a prefix, which may have ended."""
    found = np.zeros(num_characters + variable)
    if num_characters in prefix:
        found[num_characters] = 1
        return found
    for text, probability in texts.items():
        if text[: len(prefix)] == prefix:
            found[text[len(prefix)] if len(prefix) < len(text) else num_characters] += probability
    return found / found.sum()


CASES = pytest.mark.parametrize(
    ("num_columns", "k", "max_length", "variable"),
    [(*sizes, variable) for sizes in [(4, 3, 2), (5, 2, 3), (3, 3, 1), (6, 2, 2)] for variable in (False, True)],
)


@CASES
def test_a_character_has_its_probability_given_the_likeliest_before_it(
    num_columns: int, k: int, max_length: int, variable: bool
) -> None:
    columns = columns_of(3, num_columns, k)
    for image, found in zip(columns, decoding.text_probabilities(columns, max_length, variable=variable), strict=True):
        texts, prefix = probabilities_of_texts(image, max_length, variable=variable), ()
        for classes in found:
            np.testing.assert_allclose(classes, after_prefix(texts, prefix, k, variable=variable), atol=1e-6)
            prefix = (*prefix, int(classes.argmax()))


@CASES
def test_the_characters_of_a_given_text_have_its_probability_as_their_product(
    num_columns: int, k: int, max_length: int, variable: bool
) -> None:
    (image,) = columns_of(1, num_columns, k)
    expected = probabilities_of_texts(image, max_length, variable=variable)
    lengths = range(1 if variable else max_length, max_length + 1)
    texts = [text for length in lengths for text in itertools.product(range(k), repeat=length)]
    targets = np.array([[*text, *[k] * (max_length - len(text))] for text in texts])
    columns = np.repeat(image[None], len(texts), 0)
    found = decoding.text_probabilities(columns, max_length, variable=variable, texts=targets)
    products = np.take_along_axis(found, targets[:, :, None], 2).prod((1, 2))
    possible = [text in expected for text in texts]
    np.testing.assert_allclose(products[possible], [expected[text] for text in texts if text in expected], atol=1e-6)
    assert products[possible].sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(products[np.logical_not(possible)], 0, atol=1e-12)


def test_a_text_is_one_that_the_columns_hold() -> None:
    """Take columns of which the likeliest character of each position alone would give a text of probability zero."""
    a, b, c, d, e, f, blank = range(7)
    said = np.full((1, 4, 7), 1e-9)
    said[0, 0, [a, blank]] = 0.4, 0.6
    said[0, 1, b] = said[0, 2, c] = 1
    said[0, 3, [blank, d, e, f]] = 0.4, 0.2, 0.2, 0.2  # abc .16, bcd, bce and bcf .12 each: third characters c, d, e, f
    found = decoding.text_probabilities(np.log(said).astype(np.float32), 3, variable=False)
    assert found.argmax(2).tolist() == [[b, c, d]]
    assert found.max(2).prod() == pytest.approx(0.12 / 0.52, abs=1e-5)


@pytest.mark.parametrize(("variable", "num_classes"), [(False, 3), (True, 4)])
def test_no_images_have_no_probabilities(variable: bool, num_classes: int) -> None:
    found = decoding.text_probabilities(np.zeros((0, 9, 4), np.float32), 2, variable=variable)
    assert found.shape == (0, 2, num_classes)


def test_what_columns_say_for_sure_is_recognized() -> None:
    said = np.array([0, 2, 2, 0, 0, 2, 1, 1])  # 2 is blank: "001" with a repeated 0 that a blank parts
    columns = log_softmax(np.eye(3)[said][None] * 20)
    exactly = decoding.text_probabilities(columns, 3, variable=False)
    assert exactly.argmax(2).tolist() == [[0, 0, 1]]
    up_to = decoding.text_probabilities(columns, 5, variable=True)
    assert up_to.argmax(2).tolist() == [[0, 0, 1, 2, 2]]
    assert min(exactly.max(2).min(), up_to.max(2).min()) > 0.99
    forced = decoding.text_probabilities(columns, 2, variable=False)  # one of three must go
    np.testing.assert_allclose(forced.sum(2), 1)


def test_logarithms_are_finite() -> None:
    columns = np.log(np.array([[[1, 0, 0], [0, 0, 1]]]).clip(1e-45)).astype(np.float32)
    found = decoding.text_log_probabilities(columns, 1, variable=False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[[0, np.log(1e-30)]]], atol=1e-6)


def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = columns_of(20, 12, 4)
    expected = decoding.text_probabilities(columns, 3, variable=True)
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 12 * 3 * 5 * 8 * 7)
    np.testing.assert_array_equal(decoding.text_probabilities(columns, 3, variable=True), expected)


def test_many_columns_stay_within_floats() -> None:
    """Two characters in 2,000 columns, of which each halves all masses five times: 1e-3000 without rescaling."""
    columns = np.full((1, 2000, 4), 1e-6)
    columns[:, :, 3] = 0.03
    columns[:, 700] = [0.9, 0.01, 0.01, 0.08]
    columns[:, 1500] = [0.01, 0.9, 0.01, 0.08]
    found = decoding.text_probabilities(np.log(columns).astype(np.float32), 2, variable=False)
    assert found[0, 0, 0] > 0.9
    assert found[0, 1, 1] > 0.9


def test_where_no_alignment_is_left_all_characters_are_equally_likely() -> None:
    columns = np.full((2, 400, 3), -400.0, np.float32)
    columns[:, 0::2, 0] = columns[:, 1::2, 1] = 0  # 400 characters where two are asked for
    columns[1, :, :] = log_softmax(np.zeros((400, 3)))
    found = decoding.text_probabilities(columns, 2, variable=False)
    np.testing.assert_array_equal(found[0], 0.5)
    assert np.isfinite(found).all()
