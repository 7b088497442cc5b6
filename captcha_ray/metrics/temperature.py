"""Fit the temperature, a divisor of a network's logits, by which its confidence means what it says."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

MIN_CHARACTERS = 50
"""Least characters for fitting; they let confidence reach about 1 - 1 / their number."""

RANGE = (1 / 8, 8.0)
"""Least and greatest temperature."""

NUM_STEPS = 20
"""Steps of the search, which leave a 15,000th of the range."""


def fit(log_probabilities: Callable[[float], npt.NDArray[np.float32]], targets: npt.NDArray[np.int64]) -> float:
    """Return the temperature at which the targets are likeliest; 1 for fewer than `MIN_CHARACTERS` of them.

    C. Guo et al., "On Calibration of Modern Neural Networks" (2017). A share of 1 / (2 (characters + 1)) of the targets
    is spread over all classes, the estimate of R. Krichevsky and V. Trofimov, "The performance of universal encoding"
    (1981), for no mistake: otherwise the likeliest temperature of few images without mistakes would be 0.

    Args:
        log_probabilities: Returns the network's at a temperature, float32 (N, S, K).
        targets: int64 (N, S).
    """
    if targets.size < MIN_CHARACTERS:
        return 1.0
    spread = 0.5 / (targets.size + 1)

    def loss(log_temperature: float) -> float:
        log_p = log_probabilities(math.exp(log_temperature))
        of_target = np.take_along_axis(log_p, targets[:, :, None], 2).mean(dtype=np.float64)
        return -float((1 - spread) * of_target + spread * log_p.mean(dtype=np.float64))

    return round(math.exp(_minimum(loss, *map(math.log, RANGE))), 4)


def _minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the place of the minimum of a function with one valley, by golden-section search."""
    golden = (math.sqrt(5) - 1) / 2
    inner = [high - golden * (high - low), low + golden * (high - low)]
    values = [function(x) for x in inner]
    for _ in range(NUM_STEPS):
        if values[0] < values[1]:
            high = inner[1]
            inner = [high - golden * (high - low), inner[0]]
            values = [function(inner[0]), values[0]]
        else:
            low = inner[0]
            inner = [inner[1], low + golden * (high - low)]
            values = [values[1], function(inner[1])]
    return (low + high) / 2
