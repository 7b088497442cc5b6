"""Decode columns to characters: the probability of each at each position, over all alignments, for every engine.

In NumPy, which takes a quarter of torch's time for it. Shape letters as in `ctc`: N images, T columns, K characters,
S positions (at most `max_length`), the slots.
"""

import numpy as np
import numpy.typing as npt

CHUNK_BYTES = 16 << 20
"""Most bytes of what is kept of each column. More images at a time take less time each, until the cache is full."""

RESCALE = 8
"""Columns from one division of all masses by their sum to the next, without which long images would leave float64."""

MIN_PROBABILITY = 1e-30
"""Least probability of a character, whose logarithm must be finite."""


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return log-probabilities of classes, the last of three axes."""
    shifted: npt.NDArray[np.float32] = logits - logits.max(2, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(2, keepdims=True))
    return shifted


def slot_log_probabilities(
    columns: npt.NDArray[np.float32], max_length: int, *, variable: bool
) -> npt.NDArray[np.float32]:
    """Return the logarithms of `slot_probabilities`, float32, but at least that of `MIN_PROBABILITY`."""
    found = slot_probabilities(columns, max_length, variable=variable)
    logarithms: npt.NDArray[np.float32] = np.log(found.clip(MIN_PROBABILITY)).astype(np.float32)
    return logarithms


def slot_probabilities(columns: npt.NDArray[np.float32], max_length: int, *, variable: bool) -> npt.NDArray[np.float64]:
    """Return the probability of each character at each position, over all alignments.

    Args:
        columns: Log-probabilities, float32 (N, T, K + 1), the blank last.
        max_length: S.
        variable: An image holds 1 to S characters instead of exactly S.

    Returns:
        (N, S, K); if `variable`, (N, S, K + 1), whose last class means that the text ends before that position. Where
            no alignment has a probability that float64 holds, all characters are equally likely.
    """
    _, num_columns, num_classes = columns.shape
    size = max(CHUNK_BYTES // (8 * num_columns * max_length * num_classes), 1)
    starts = range(0, len(columns), size)
    if not len(columns):
        return np.zeros((0, max_length, num_classes if variable else num_classes - 1))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.concatenate([_of_chunk(columns[start : start + size], max_length, variable) for start in starts])


def _of_chunk(columns: npt.NDArray[np.float32], max_length: int, variable: bool) -> npt.NDArray[np.float64]:
    """Run the forward-backward algorithm in float64.

    States are (s, c): s characters so far, the last of which is c and goes on; and (s, blank): s characters, the last
    of which has ended. Images are the last axis, so that each operation runs along all of them.
    """
    n, num_columns, k = len(columns), columns.shape[1], columns.shape[2] - 1
    probabilities = np.exp(columns.transpose(1, 2, 0), dtype=np.float64, order="C")  # (T, K + 1, N)
    chars, blanks = probabilities[:, :k], probabilities[:, k]
    going, ended = np.zeros((max_length + 1, k, n)), np.zeros((max_length + 1, n))
    ended[0] = 1
    entering = np.empty((num_columns, max_length, k, n))
    scales = {}
    for t in range(num_columns):
        total = going.sum(1) + ended
        np.subtract(total[:-1, None], going[:-1], out=entering[t])  # the same character needs a blank between
        entering[t] *= chars[t]
        going[1:] *= chars[t]
        going[1:] += entering[t]
        np.multiply(total, blanks[t], out=ended)
        if t % RESCALE == RESCALE - 1:
            scales[t] = 1 / (ended.sum(0) + going.sum((0, 1)))
            going *= scales[t]
            ended *= scales[t]
    shortest = 1 if variable else max_length
    after_ended = np.zeros_like(ended)
    after_ended[shortest:] = 1 / (ended[shortest:].sum(0) + going[shortest:].sum((0, 1)))
    after_going = np.repeat(after_ended[:, None], k, 1)
    found, product = np.zeros((max_length, k, n)), np.empty((max_length, k, n))
    for t in range(num_columns - 1, -1, -1):
        if t in scales:
            after_going *= scales[t]
            after_ended *= scales[t]
        found += np.multiply(entering[t], after_going[1:], out=product)
        after_going *= chars[t]
        after_ended *= blanks[t]
        entered = after_going[1:].sum(1)
        after_going[:-1] -= after_going[1:]
        after_ended[:-1] += entered
        after_going += after_ended[:, None]
    found[:, :, ~np.isfinite(found).all((0, 1))] = 1 / k
    found = found.transpose(2, 0, 1)
    return np.concatenate([found, (1 - found.sum(2, keepdims=True)).clip(0)], 2) if variable else found
