"""Count how well texts are recognized. Counts add up with `+`; ratios are taken once, at the end.

A character is right if it stands at its own position. A prediction that is too long or too short is wrong as a string,
and right in the positions that agree.
"""

import collections
import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

OTHER = "∅"
"""Row and column of the confusion matrix for characters out of the charset and for missing ones."""

NUM_CONFUSIONS = 100
"""Confusions that a summary holds."""


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float] | None:
    """Return Wilson's score interval of a proportion, 95 % by default; None for no trials.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Args:
        successes: Of the trials.
        trials: Number of them.
        z: Quantile of the normal distribution.
    """
    if trials == 0:
        return None
    p = successes / trials
    denominator = 1 + z * z / trials
    center = p + z * z / (2 * trials)
    margin = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return max(0.0, (center - margin) / denominator), min(1.0, (center + margin) / denominator)


def ratio(numerator: float, denominator: float) -> float | None:
    """Return the quotient; None if the denominator is 0, as unknown is not zero."""
    return numerator / denominator if denominator else None


def guess_loss(counts: npt.NDArray[np.int64]) -> float:
    """Return the loss of guessing, nats per image: of always guessing by how often each class stands at each position.

    It is the sum of the positions' entropies (C. Shannon, 1948). counts: int64 (max_length, classes), of all images.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return float(-(shares * np.log(np.where(shares > 0, shares, 1))).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class Mistake:
    """A wrong prediction. confidence: 0 to 1. image: uint8 (H, W, C), C 1 for gray or 3 for RGB."""

    uri: str
    truth: str
    prediction: str
    confidence: float
    image: npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class PredictionCounts:
    """Counts of predictions against truths. Immutable; `a + b` counts both.

    single_confusions: truth and prediction of the only wrong character of strings of the right length. num_edits:
    characters to insert, delete or replace to make all truths of the predictions (Levenshtein distance).
    confusion: int64 (K + 1, K + 1), truth by prediction, K characters of the alphabet and `OTHER` last.
    position_correct, position_total: int64 (longest truth,).
    """

    charset: str
    num_images: int
    loss_sum: float
    strings_correct: int
    strings_correct_ignoring_case: int
    single_confusions: collections.Counter[tuple[str, str]]
    num_edits: int
    position_correct: npt.NDArray[np.int64]
    position_total: npt.NDArray[np.int64]
    confusion: npt.NDArray[np.int64]

    @classmethod
    def of(cls, charset: str, truths: list[str], predictions: list[str], losses: list[float]) -> "PredictionCounts":
        """Count N predictions.

        Args:
            charset: The network's alphabet.
            truths: N labels.
            predictions: N texts.
            losses: N losses in nats; nan if the network gives the truth no probability.
        """
        assert len(truths) == len(predictions) == len(losses)
        longest = max((len(t) for t in truths), default=0)
        position_correct, position_total = np.zeros((2, longest), np.int64)
        size = len(charset) + 1
        index = {c: i for i, c in enumerate(charset)}
        confusion = np.zeros((size, size), np.int64)
        for truth, prediction in zip(truths, predictions, strict=True):
            for position, character in enumerate(truth):
                read = prediction[position] if position < len(prediction) else None
                position_total[position] += 1
                position_correct[position] += read == character
                confusion[index.get(character, size - 1), index.get(read or "", size - 1)] += 1
        pairs = list(zip(truths, predictions, strict=True))
        return cls(
            charset,
            len(truths),
            float(sum(losses)),
            sum(t == p for t, p in pairs),
            sum(t.casefold() == p.casefold() for t, p in pairs),
            collections.Counter(found for t, p in pairs if (found := _single_confusion(t, p))),
            sum(Levenshtein.distance(t, p) for t, p in pairs),
            position_correct,
            position_total,
            confusion,
        )

    @property
    def num_out_of_charset(self) -> int:
        """Return the number of the truths' characters that are not in the alphabet."""
        return int(self.confusion[-1].sum())

    def __add__(self, other: "PredictionCounts") -> "PredictionCounts":
        assert self.charset == other.charset, "counts of two alphabets do not add up"
        return PredictionCounts(
            self.charset,
            self.num_images + other.num_images,
            self.loss_sum + other.loss_sum,
            self.strings_correct + other.strings_correct,
            self.strings_correct_ignoring_case + other.strings_correct_ignoring_case,
            self.single_confusions + other.single_confusions,
            self.num_edits + other.num_edits,
            _add_padded(self.position_correct, other.position_correct),
            _add_padded(self.position_total, other.position_total),
            self.confusion + other.confusion,
        )

    def _commonest_confusions(self) -> list[tuple[tuple[str, str], int]]:
        """Return pairs and numbers, equal ones by their characters: counts are added up in any order."""
        return sorted(self.single_confusions.items(), key=lambda item: (-item[1], item[0]))[:NUM_CONFUSIONS]

    def summary(self) -> dict[str, Any]:
        """Return ratios and tables as JSON types; None if nothing was counted.

        loss: nats per image, summed over its characters. classes: precision, recall, F1 and support per character.
        single_confusions: truth, prediction and number of the commonest `NUM_CONFUSIONS`, in strings of which nothing
        else is wrong. char_accuracy: of characters at their position. char_error_rate: edits per character of the
        truths, which may be above 1. averages: the same, unweighted (macro) and by support (weighted), over characters
        that occur.
        """
        loss = ratio(self.loss_sum, self.num_images)
        interval = wilson_interval(self.strings_correct, self.num_images)
        classes = self._classes()
        return {
            "num_images": self.num_images,
            "loss": loss if loss is not None and math.isfinite(loss) else None,
            "char_accuracy": ratio(int(self.position_correct.sum()), int(self.position_total.sum())),
            "char_error_rate": ratio(self.num_edits, int(self.position_total.sum())),
            "exact_match": ratio(self.strings_correct, self.num_images),
            "exact_match_ignoring_case": ratio(self.strings_correct_ignoring_case, self.num_images),
            "exact_match_ci95": None if interval is None else list(interval),
            "num_exact_match": self.strings_correct,
            "single_confusions": [[*pair, n] for pair, n in self._commonest_confusions()],
            "position_accuracy": [
                ratio(int(c), int(t)) for c, t in zip(self.position_correct, self.position_total, strict=True)
            ],
            "classes": classes,
            "averages": _averages(list(classes.values())),
            "confusion": {"labels": [*self.charset, OTHER], "counts": _nonzero(self.confusion)},
        }

    def _classes(self) -> dict[str, dict[str, float | int | None]]:
        table: dict[str, dict[str, float | int | None]] = {}
        for k, character in enumerate(self.charset):
            hits = int(self.confusion[k, k])
            support = int(self.confusion[k].sum())
            predicted = int(self.confusion[:, k].sum())
            table[character] = {
                "precision": ratio(hits, predicted),
                "recall": ratio(hits, support),
                "f1": ratio(2 * hits, support + predicted),
                "support": support,
            }
        return table


def _single_confusion(truth: str, prediction: str) -> tuple[str, str] | None:
    """Return the only characters in which two texts of one length differ; None if that is not how they differ."""
    differ = [pair for pair in zip(truth, prediction, strict=False) if pair[0] != pair[1]]
    return differ[0] if len(differ) == 1 and len(truth) == len(prediction) else None


def _averages(rows: list[dict[str, float | int | None]]) -> dict[str, dict[str, float | None]]:
    """Return macro and weighted averages over the classes that occur; a class never predicted has precision 0."""
    rows = [row for row in rows if row["support"]]
    support = [row["support"] or 0 for row in rows]
    table: dict[str, dict[str, float | None]] = {"macro": {}, "weighted": {}}
    for name in ("precision", "recall", "f1"):
        values = [row[name] or 0.0 for row in rows]
        table["macro"][name] = ratio(sum(values), len(rows))
        table["weighted"][name] = ratio(sum(v * s for v, s in zip(values, support, strict=True)), sum(support))
    return table


def _add_padded(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    total = np.zeros(max(len(a), len(b)), np.int64)
    total[: len(a)] += a
    total[: len(b)] += b
    return total


def _nonzero(matrix: npt.NDArray[np.int64]) -> list[list[int]]:
    """Return row, column and value of what is not zero; most of a large alphabet's confusions are."""
    rows, columns = matrix.nonzero()
    return np.stack([rows, columns, matrix[rows, columns]], 1).tolist()  # type: ignore[no-any-return]
