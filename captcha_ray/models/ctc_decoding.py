"""Decode columns to texts: the probability of each character given those before it, over all alignments.

In NumPy, which takes a quarter of torch's time for it. Shape letters as in `ctc`: N images, T columns, K characters,
S positions (at most `max_length`).
"""

import numpy as np
import numpy.typing as npt

CHUNK_BYTES = 128 << 20
"""Most bytes of what is kept of each column. More images at a time take less time each, long texts above all."""

RESCALE = 8
"""Columns from one division of all masses by their sum to the next, without which long images would leave float64."""

MIN_PROBABILITY = 1e-30
"""Least probability of a character, whose logarithm must be finite."""

Columns = npt.NDArray[np.float64]
"""One number per column and image (T, N), or (T, ..., N); images are last, so that an operation runs along all."""


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return log-probabilities of classes, the last of three axes."""
    shifted: npt.NDArray[np.float32] = logits - logits.max(2, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(2, keepdims=True))
    return shifted


def text_log_probabilities(
    columns: npt.NDArray[np.float32], max_length: int, *, variable: bool, texts: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float32]:
    """Return the logarithms of `text_probabilities`, float32, but at least that of `MIN_PROBABILITY`."""
    found = text_probabilities(columns, max_length, variable=variable, texts=texts)
    logarithms: npt.NDArray[np.float32] = np.log(found.clip(MIN_PROBABILITY)).astype(np.float32)
    return logarithms


def text_probabilities(
    columns: npt.NDArray[np.float32], max_length: int, *, variable: bool, texts: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float64]:
    """Return the probability of each character at each position, given the characters before it.

    The product of a text's characters is its probability, over all alignments, among the texts whose lengths are
    allowed; if all of these are less likely than others by 1e-15, rounding drowns them. Without `texts`, the likeliest
    class of each position is what comes before the next: the prefix search of A. Graves et al., "Connectionist Temporal
    Classification" (2006), that keeps one prefix.

    Args:
        columns: Log-probabilities, float32 (N, T, K + 1), the blank last.
        max_length: S.
        variable: An image holds 1 to S characters instead of exactly S.
        texts: int64 (N, S), the classes that come before others; K from the end of a text on. None for the likeliest.

    Returns:
        (N, S, K); if `variable`, (N, S, K + 1), whose last class means that the text ends before that position. Where
            no alignment has a probability that float64 holds, all classes are equally likely.
    """
    _, num_columns, num_classes = columns.shape
    size = max(CHUNK_BYTES // (8 * num_columns * max_length * num_classes), 1)
    found = np.empty((len(columns), max_length, num_classes if variable else num_classes - 1))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for start in range(0, len(columns), size):
            part = slice(start, start + size)
            found[part] = _of_chunk(columns[part], max_length, variable, None if texts is None else texts[part])
    return found


def _of_chunk(
    columns: npt.NDArray[np.float32], max_length: int, variable: bool, texts: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.float64]:
    """Follow one prefix of each image from position to position. Returns and arguments as above."""
    n, num_columns, num_classes = columns.shape
    k, images, rows = num_classes - 1, np.arange(n), np.arange(num_columns)[:, None]
    probabilities = np.exp(columns.transpose(1, 2, 0), dtype=np.float64, order="C")  # (T, K + 1, N)
    entering = _masses_from_entering(probabilities, max_length, variable)
    found = np.zeros((max_length, k + variable, n))
    blanks, last, over = probabilities[:, k], np.zeros(n, np.int64), np.zeros(n, np.bool_)
    going, ended = np.zeros((num_columns + 1, n)), np.ones((num_columns + 1, n))
    np.cumprod(blanks, 0, out=ended[1:])
    for position in range(max_length):
        classes = found[position]
        masses = classes[:k]
        np.einsum("tn,tkn->kn", going[:-1] + ended[:-1], entering[:, position], out=masses)
        # The same character once more needs a blank between.
        masses[last, images] = np.einsum("tn,tn->n", ended[:-1], entering[rows, position, last, images])
        np.maximum(masses, 0, out=masses)  # by rounding some are below
        if variable and position:
            classes[k] = going[-1] + ended[-1]
            classes[:, over] = 0
            classes[k, over] = 1
        classes /= classes.sum(0)
        classes[:, ~np.isfinite(classes).all(0)] = 1 / len(classes)
        chosen = classes.argmax(0) if texts is None else texts[:, position]
        over = chosen == k
        chosen = np.where(over, last, chosen)
        own = probabilities[rows, chosen, images]
        going, ended = _masses_until(own * (ended[:-1] + np.where(chosen == last, 0, going[:-1])), own, blanks)
        last = chosen
    return found.transpose(2, 0, 1)


def _masses_from_entering(probabilities: Columns, max_length: int, variable: bool) -> Columns:
    """Return the mass of all paths that go on from the column where a character is entered, that column included.

    The backward algorithm. States are (s, c): s characters so far, the last of which is c and goes on; and s: as many
    characters, the last of which has ended.

    Args:
        probabilities: (T, K + 1, N). Those of every `RESCALE`-th column are multiplied by what masses are divided by.
        max_length: S.
        variable: As above.

    Returns:
        (T, S, K, N): entering the character K as number S + 1, counted from 1.
    """
    num_columns, num_classes, n = probabilities.shape
    chars, blanks = probabilities[:, :-1], probabilities[:, -1]
    ended = np.zeros((max_length + 1, n))
    ended[1 if variable else max_length :] = 1
    going = np.repeat(ended[:, None], num_classes - 1, 1)
    entering = np.empty((num_columns, max_length, num_classes - 1, n))
    for t in range(num_columns - 1, -1, -1):
        if t % RESCALE == 0:
            probabilities[t] /= ended.sum(0)
        np.multiply(chars[t], going[1:], out=entering[t])
        going *= chars[t]
        ended *= blanks[t]
        ended[:-1] += entering[t].sum(1)
        going[:-1] -= entering[t]
        going += ended[:, None]
    return entering


def _masses_until(entered: Columns, own: Columns, blanks: Columns) -> tuple[Columns, Columns]:
    """Return the masses of paths until each column whose text is a prefix: its last character goes on, has ended.

    Args:
        entered: (T, N), masses of the paths that enter its last character at a column.
        own: (T, N), probabilities of its last character.
        blanks: The same of the blank.

    Returns:
        Two arrays (T + 1, N), the first row before any column.
    """
    going, ended = np.zeros((2, len(own) + 1, own.shape[1]))
    for t in range(len(own)):
        np.multiply(going[t], own[t], out=going[t + 1])
        going[t + 1] += entered[t]
        np.add(going[t], ended[t], out=ended[t + 1])
        ended[t + 1] *= blanks[t]
    return going, ended
