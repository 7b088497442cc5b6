"""Losses of columns of which each is a character or blank.

Connectionist temporal classification (A. Graves et al., "Connectionist Temporal Classification", 2006): each column is
one of K characters or `blank`; equal neighbors are one character, blanks are none. Shape letters: N images, T columns,
K characters, S positions (at most `max_length`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ctc_losses(columns: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Return minus the log-probability of each text over all its alignments, float32 (N,), nats.

    Args:
        columns: Log-probabilities (N, T, K + 1), the blank last.
        targets: int64 (N, S).
        lengths: int64 (N,), characters of each image; best on the CPU, where torch wants them.
    """
    steps = torch.full_like(lengths, columns.shape[1])
    return F.ctc_loss(columns.transpose(0, 1), targets, steps, lengths, columns.shape[2] - 1, reduction="none")


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
    share = lengths / num_columns
    place = torch.arange(0.5, num_columns, device=columns.device) * share[:, None]  # (N, T), in characters
    middle = (place.frac() - 0.5).abs() < 0.25
    said = torch.where(middle, targets.gather(1, place.long()), blank)
    return (columns.gather(2, said[..., None]).squeeze(2) * (middle * (-2 / 3) - 1 / 3)).sum(1) * share
