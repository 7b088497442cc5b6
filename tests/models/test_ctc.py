"""Losses of columns, against values worked by hand."""

import itertools
import math

import pytest
import torch

from captcha_ray.models import ctc


def test_the_loss_is_that_of_all_alignments_of_the_text() -> None:
    torch.manual_seed(0)
    columns = torch.randn(2, 5, 4).log_softmax(2)
    targets, lengths = torch.tensor([[1, 1, 0], [2, 3, 3]]), torch.tensor([3, 1])
    found = ctc.ctc_losses(columns, targets, lengths)
    for image, target, length, loss in zip(columns, targets, lengths, found, strict=True):
        probability = 0.0
        for path in itertools.product(range(4), repeat=5):
            if [c for c, _ in itertools.groupby(path) if c != 3] == target[:length].tolist():
                probability += math.exp(sum(image[t, c].item() for t, c in enumerate(path)))
        assert loss.item() == pytest.approx(-math.log(probability), rel=1e-5)


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
