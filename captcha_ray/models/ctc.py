"""Compute probabilities of characters from those of columns, over all alignments.

Connectionist temporal classification (A. Graves et al., "Connectionist Temporal Classification", 2006): each column is
one of K characters or `blank`; equal neighbors are one character, blanks are none. Shape letters: N images, T columns,
K characters, S positions (at most `max_length`).
"""

import torch
from torch import Tensor

CHUNK = 128
"""Images at a time, so that what is kept for the backward pass stays within a few megabytes."""


def slot_probabilities(columns: Tensor, max_length: int, *, variable: bool) -> Tensor:
    """Return the probability of each character at each position, over all alignments.

    Args:
        columns: Log-probabilities (N, T, K + 1), the blank last.
        max_length: S.
        variable: An image holds 1 to S characters instead of exactly S.

    Returns:
        (N, S, K); if `variable`, (N, S, K + 1), whose last class means that the text ends before that position.
    """
    starts = range(0, len(columns), CHUNK)
    return torch.cat([_slot_probabilities(columns[start : start + CHUNK], max_length, variable) for start in starts])


def _slot_probabilities(columns: Tensor, max_length: int, variable: bool) -> Tensor:
    """Run the forward-backward algorithm in float64, scaled at every column.

    States are (s, c): s characters so far, the last of which is c and goes on; and (s, blank): s characters, the last
    of which has ended.
    """
    probabilities = columns.double().exp()
    chars, blank = probabilities[..., :-1].unbind(1), probabilities[..., -1:].unbind(1)  # T of (N, K) and of (N, 1)
    n, k = chars[0].shape
    ended, going = (
        columns.new_zeros((n, max_length + 1), dtype=torch.float64),
        columns.new_zeros((n, max_length + 1, k), dtype=torch.float64),
    )
    ended[:, 0] = 1
    entering, alphas = [], []
    for char, empty in zip(chars, blank, strict=True):
        enter, going, ended = _step(char, empty, going, ended)
        scale = ended.sum(1) + going.sum((1, 2))
        entering.append(enter / scale[:, None, None])
        going, ended = going / scale[:, None, None], ended / scale[:, None]
        alphas.append((going, ended))
    after_ended = torch.zeros_like(ended)
    after_ended[:, 1 if variable else max_length :] = 1
    after_going = after_ended[..., None].expand_as(going)
    found = torch.zeros_like(going)
    for t in range(len(chars) - 1, -1, -1):
        going, ended = alphas[t]
        total = (going * after_going).sum((1, 2)) + (ended * after_ended).sum(1)
        found += entering[t] * after_going / total[:, None, None]
        after_going, after_ended = _step_back(chars[t], blank[t], after_going, after_ended)
    found = found[:, 1:]
    if not variable:
        return found
    return torch.cat([found, (1 - found.sum(2, keepdim=True)).clamp(min=0)], 2)


def _step(char: Tensor, blank: Tensor, going: Tensor, ended: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Advance one column: return the masses that newly enter each (s, c), of (s, c), and of (s, blank)."""
    total = ended + going.sum(2)
    enter = torch.zeros_like(going)
    enter[:, 1:] = (total[:, :-1, None] - going[:, :-1]) * char[:, None]  # the same character needs a blank between
    return enter, enter + going * char[:, None], total * blank


def _step_back(char: Tensor, blank: Tensor, going: Tensor, ended: Tensor) -> tuple[Tensor, Tensor]:
    """Go back one column: return the probabilities of what follows from (s, c) and from (s, blank)."""
    going, ended = going * char[:, None], ended * blank
    entered = torch.zeros_like(going)
    entered[:, :-1] = going[:, 1:]
    total = entered.sum(2)
    return ended[..., None] + going + total[..., None] - entered, ended + total


def uniform_alignment_loss(columns: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Return the cross-entropy of the alignment in which characters share the width evenly, float32 (N,), nats.

    Columns in the middle half of a character's share target it; those between target blank and weigh a third. The mean
    over columns is multiplied by the number of characters.

    Args:
        columns: Log-probabilities (N, T, K + 1), the blank last.
        targets: int64 (N, S).
        lengths: int64 (N,), characters of each image.
    """
    num_columns, blank = columns.shape[1], columns.shape[2] - 1
    place = (torch.arange(num_columns, device=columns.device) + 0.5) / num_columns * lengths[:, None]  # (N, T)
    position = place.long()
    middle = (place - position - 0.5).abs() < 0.25
    said = torch.where(middle, targets.gather(1, position), blank)
    losses = -columns.gather(2, said[..., None]).squeeze(2)  # (N, T)
    return (losses * torch.where(middle, 1.0, 1 / 3)).mean(1) * lengths
