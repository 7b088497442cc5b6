"""Probabilities of characters over all alignments, against adding up every path one by one."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from captcha_ray.models import ctc

SHARP = torch.tensor([0, 2, 2, 0, 0, 2, 1, 1])
"""What eight columns say; 2 is blank: "001" with a repeated 0 that a blank parts."""


def random_columns(seed: int, images: int = 3, columns: int = 6, classes: int = 4) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(images, columns, classes).log_softmax(2)


def one_by_one(columns: Tensor, max_length: int, lengths: range) -> Tensor:
    """(T, K + 1) -> (S, K + 1), by the definition: all paths, without repeats and then without blanks."""
    blank = columns.shape[1] - 1
    sums = torch.zeros(max_length, blank + 1, dtype=torch.float64)
    for path in itertools.product(range(blank + 1), repeat=len(columns)):
        text = [c for c, before in zip(path, (blank, *path), strict=False) if c not in (blank, before)]
        if len(text) in lengths:
            weight = math.exp(sum(columns[t, c].item() for t, c in enumerate(path)))
            for position in range(max_length):
                sums[position, text[position] if position < len(text) else blank] += weight
    return sums / sums[0].sum()


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize("max_length", [1, 2, 3])
def test_probabilities_are_those_of_all_paths(variable: bool, max_length: int) -> None:
    columns = random_columns(max_length)
    found = ctc.slot_probabilities(columns, max_length, variable=variable)
    assert found.shape == (3, max_length, 4 if variable else 3)
    for image, probabilities in zip(columns, found, strict=True):
        expected = one_by_one(image, max_length, range(1 if variable else max_length, max_length + 1))
        assert torch.allclose(probabilities, expected[:, : probabilities.shape[1]], atol=1e-6)


def test_what_columns_say_for_sure_is_read() -> None:
    columns = torch.nn.functional.one_hot(SHARP, 3).float()[None].mul(20).log_softmax(2)
    exactly = ctc.slot_probabilities(columns, 3, variable=False)
    assert exactly.argmax(2).tolist() == [[0, 0, 1]]
    up_to = ctc.slot_probabilities(columns, 5, variable=True)
    assert up_to.argmax(2).tolist() == [[0, 0, 1, 2, 2]]
    assert min(exactly.amax(2).min(), up_to.amax(2).min()) > 0.99
    forced = ctc.slot_probabilities(columns, 2, variable=False)  # one of three must go
    assert forced.sum(2).tolist() == [pytest.approx([1, 1])]
    assert torch.isfinite(forced).all()


def test_images_of_a_large_batch_are_read_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = random_columns(7, images=9)
    whole = ctc.slot_probabilities(columns, 2, variable=True)
    monkeypatch.setattr(ctc, "CHUNK", 4)
    assert torch.allclose(ctc.slot_probabilities(columns, 2, variable=True), whole)


def test_even_spacing_wants_each_character_in_the_middle_of_its_share() -> None:
    targets, lengths = torch.tensor([[0, 1], [1, 2]]), torch.tensor([2, 1])  # the second holds one character
    said = torch.tensor([[2, 0, 0, 2, 2, 1, 1, 2], [2, 2, 1, 1, 1, 1, 2, 2]])
    columns = torch.nn.functional.one_hot(said, 3).float().mul(20).log_softmax(2)
    assert ctc.uniform_alignment_loss(columns, targets, lengths).tolist() == pytest.approx([0, 0], abs=1e-4)
    shifted = ctc.uniform_alignment_loss(columns.roll(1, 1), targets, lengths)
    assert shifted.min() > 1
    blank = torch.tensor([0.0, 0.0, math.log(2)]).log_softmax(0).expand(1, 8, 3)
    loss = (0.5 * math.log(4) + 0.5 * math.log(2) / 3) * 2  # half the columns are characters, probability 1/4
    assert ctc.uniform_alignment_loss(blank, targets[:1], lengths[:1]).item() == pytest.approx(loss)
