"""Decide when a training warms up, holds its learning rate, starts over, decays the rate and ends.

Pure: no torch, no files. Each decision follows from the config, the plan so far and the lines of `metrics.jsonl`. The
plan is saved with the weights, so an interrupted training decides as an undisturbed one would have.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from captcha_ray.recipes.config import TrainConfig

# Figures without a source below were measured on the corpora of LOG.md, 2026-11-25.

WARMUP_STEPS = 200
"""Most steps of the warm-up of `warmup_stable_decay`; its share is `warmup_fraction`, as for `one_cycle`.

So 50 captchas get the 192 steps that `one_cycle` gives them; with 150, some of them stayed ten points below.
"""

PRIOR_STEPS, PRIOR_EPOCHS, PRIOR_SHARE = 100, 9.6, 0.1
"""The alignment prior has full weight for the least of so many steps, so many epochs and this share of planned steps.

After 30 steps of it, crowded or crossed characters are not found. After more epochs, few images are memorized.
"""

PRIOR_FADE = 10 / 3
"""The prior has faded to zero after this many times the steps of its full weight."""

RECOGNIZING_LOSS = 0.5
"""A network has left the plateau if its loss is below this share of the loss of guessing. No plateau was below 0.7."""

PATIENCE_STEPS, MIN_PROGRESS = 150, 0.02
"""A network is stuck if its loss falls by less than this share from one window of so many steps to the next.

The slowest network that left the plateau by itself, with 50 labels, fell by 6 % in a third of such a window.
"""

GOOD_ENOUGH = 0.3
"""A stuck network that recognizes this share of strings is not started over: it is as good as it gets."""

MAX_ATTEMPTS, PRIOR_GROWTH = 3, 3
"""Most attempts of a training, and how many times longer the prior lasts from one attempt to the next."""

DECAY = 0.7
"""Least share of the planned epochs in which the learning rate decays, however late the decay begins."""

EXTEND_BELOW, EXTEND_GAIN = 0.95, 0.01
"""A training is extended by a cycle if it recognizes less than this share of validation strings, and once more after
each cycle that has added this much."""

EXTEND_SHARE, EXTEND_RATE = 0.5, 0.5
"""Length of such a cycle, of the planned epochs, and the learning rate that it starts with, of the peak."""


class Change(enum.StrEnum):
    """Change of a plan by the last epoch, as a sentence for the terminal."""

    NONE = ""
    RECOGNIZES = "the network recognizes text; the learning rate decays from here"
    LIMIT = (
        "the network does not recognize text yet, but there is no time for another attempt; "
        "the learning rate decays from here"
    )
    RESTART = (
        "the network does not recognize text and its loss no longer falls; "
        "training starts over with new weights and a longer alignment prior"
    )
    EXTEND = "validation still improves; training goes on at half the learning rate"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Course of a training as it stands after some epochs.

    Attributes:
        config: Resolved config of the training.
        steps: Optimizer steps of an epoch.
        guess_loss: Loss of guessing, nats per image, see `counts.guess_loss`.
        num_epochs: Epochs of the whole training if nothing else happens.
        attempt: Number of the attempt, from 0.
        begun: Epochs that were done when the attempt began.
        decays_from: Epochs that were done when the learning rate began to decay; None while it is held.
        rate: Learning rate that the decay starts with, as a share of the peak.
        change: What led to this plan.
    """

    config: TrainConfig
    steps: int
    guess_loss: float
    num_epochs: int
    attempt: int = 0
    begun: int = 0
    decays_from: int | None = None
    rate: float = 1.0
    change: Change = Change.NONE

    @classmethod
    def first(cls, config: TrainConfig, steps: int, guess_loss: float) -> Self:
        """Plan a training that has not begun; arguments as in the class."""
        plan = cls(config, steps, guess_loss, config.epochs)
        return dataclasses.replace(plan, decays_from=0) if plan._latest_decay <= 0 else plan

    def to_dict(self) -> dict[str, Any]:
        """Return the decisions so far as JSON types, for `restored`."""
        return {name: getattr(self, name) for name in ("num_epochs", "attempt", "begun", "decays_from", "rate")}

    def restored(self, decided: Mapping[str, Any]) -> Self:
        """Return this plan with the decisions of an interrupted training, as `to_dict` gave them."""
        return dataclasses.replace(self, **decided)

    def wants_epoch(self, epochs: Sequence[dict[str, Any]], until: int | None) -> bool:
        """Return whether another epoch follows: it is not the last, the loss has not diverged, patience is left.

        epochs: all lines of `metrics.jsonl`. until: epoch to stop after, or None.
        """
        patience, judged = self.config.patience, epochs[self.begun :]  # of this attempt
        spent = patience > 0 and bool(judged) and not self.holds_rate and epochs_without_gain(judged) >= patience
        diverged = bool(epochs) and has_diverged(epochs[-1])
        return len(epochs) < min(until or self.num_epochs, self.num_epochs) and not diverged and not spent

    def after(self, epochs: Sequence[Mapping[str, Any]]) -> Self:
        """Return the plan after one more epoch. epochs: all lines of `metrics.jsonl`, that epoch's last."""
        plan = dataclasses.replace(self, change=Change.NONE)
        done = len(epochs)
        if self.config.schedule != "warmup_stable_decay" or epochs[-1]["train_loss"] is None:
            return plan
        if self.decays_from is not None:
            return plan._extended(epochs) if done == self.num_epochs else plan
        recognizes = (
            epochs[-1]["train_loss"] < RECOGNIZING_LOSS * self.guess_loss or _exact_match(epochs[-1]) >= EXTEND_BELOW
        )
        stuck = self._is_stuck(epochs)
        if recognizes or (stuck and _exact_match(epochs[-1]) >= GOOD_ENOUGH):
            return plan._decay(done, Change.RECOGNIZES)
        if stuck:
            restarted = dataclasses.replace(plan, attempt=self.attempt + 1, begun=done, change=Change.RESTART)
            restarted = restarted._planned_for(done + math.ceil(restarted._prior_steps * PRIOR_FADE / self.steps))
            has_time = restarted._latest_decay > done + restarted._prior_steps * PRIOR_FADE / self.steps
            return restarted if has_time and restarted.attempt < MAX_ATTEMPTS else plan._decay(done, Change.LIMIT)
        if done >= self._latest_decay:
            return plan._decay(done, Change.LIMIT)
        return plan._planned_for(done + 1)

    @property
    def holds_rate(self) -> bool:
        """Return whether the learning rate is still held, as the network does not recognize text yet."""
        return self.config.schedule == "warmup_stable_decay" and self.decays_from is None

    def learning_rate(self, done: float) -> float:
        """Return the learning rate after so many epochs, which may be a fraction. It depends on the plan alone."""
        config = self.config
        if config.schedule == "constant":
            return config.learning_rate
        if config.schedule == "one_cycle":
            return config.learning_rate * _one_cycle(done / config.epochs, config.warmup_fraction)
        warmup = min(WARMUP_STEPS / self.steps, config.warmup_fraction * config.epochs)
        since = done - self.begun
        if since < warmup:
            share = 0.04 + 0.96 * since / warmup
        elif self.decays_from is None:
            share = 1.0
        else:  # a network that recognizes text early warms up to the end, as with `one_cycle`
            start = max(self.decays_from, self.begun + warmup)
            share = _cosine((done - start) / (self.num_epochs - start)) if done > start else 1.0
        return config.learning_rate * self.rate * share

    def prior(self, done: float) -> float:
        """Return the weight of the alignment prior in the loss, 0 to 1, after so many epochs."""
        whole = self._prior_steps
        if not whole:
            return 0.0
        step: float = (done - self.begun) * self.steps
        return min(max((PRIOR_FADE * whole - step) / ((PRIOR_FADE - 1) * whole), 0.0), 1.0)

    @property
    def _prior_steps(self) -> float:
        """Return the steps of this attempt in which the prior has full weight: none if it began with weights."""
        if self.config.init and not self.attempt:
            return 0.0
        planned = PRIOR_SHARE * self.config.epochs * self.steps
        longer: int = PRIOR_GROWTH ** (self.attempt - bool(self.config.init))
        return min(PRIOR_STEPS, PRIOR_EPOCHS * self.steps, planned) * longer

    @property
    def _limit(self) -> int:
        return self.config.max_epochs or self.config.epochs

    @property
    def _decay_epochs(self) -> int:
        return math.ceil(DECAY * self.config.epochs)

    @property
    def _latest_decay(self) -> int:
        return self._limit - self._decay_epochs

    def _planned_for(self, decays_from: int) -> Self:
        """Set the number of epochs for a decay that begins after so many."""
        num_epochs = min(max(self.config.epochs, decays_from + self._decay_epochs), self._limit)
        return dataclasses.replace(self, num_epochs=num_epochs)

    def _decay(self, done: int, change: Change) -> Self:
        return dataclasses.replace(self._planned_for(done), decays_from=done, change=change)

    def _is_stuck(self, epochs: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether the prior has faded and the loss has hardly fallen since."""
        window = math.ceil(PATIENCE_STEPS / self.steps)
        free = len(epochs) - self.begun - math.ceil(PRIOR_FADE * self._prior_steps / self.steps)
        if free < 2 * window:
            return False
        losses: list[float] = [epoch["train_loss"] for epoch in epochs[-2 * window :]]
        return sum(losses[window:]) > (1 - MIN_PROGRESS) * sum(losses[:window])

    def _extended(self, epochs: Sequence[Mapping[str, Any]]) -> Self:
        """Add a cycle if validation still improves and the limit allows it."""
        done = len(epochs)
        length = math.ceil(EXTEND_SHARE * self.config.epochs)
        if "val_exact_match" not in epochs[-1] or done + length > self._limit:
            return self
        assert self.decays_from is not None
        matches = [epoch["val_exact_match"] or 0.0 for epoch in epochs]
        best, before = max(matches), max(matches[: self.decays_from], default=0.0)
        if best >= EXTEND_BELOW or best < before + EXTEND_GAIN:
            return self
        return dataclasses.replace(
            self, decays_from=done, num_epochs=done + length, rate=EXTEND_RATE, change=Change.EXTEND
        )


def _exact_match(epoch: Mapping[str, Any]) -> float:
    """Return the share of whole strings that are right in validation, or in training if there is no validation."""
    share: float | None = epoch.get("val_exact_match", epoch.get("train_exact_match"))
    return share or 0.0


def _one_cycle(fraction: float, warmup: float) -> float:
    """Return the share of the peak after a fraction of all steps: linear warm-up, then cosine to zero.

    After L. Smith and N. Topin, "Super-Convergence", 2018, with a cosine as in PyTorch's `OneCycleLR`.
    """
    return 0.04 + 0.96 * fraction / warmup if fraction < warmup else _cosine((fraction - warmup) / (1 - warmup))


def _cosine(fraction: float) -> float:
    """Return the share that falls from 1 to 0 as the fraction rises from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


def best_epoch(epochs: Sequence[dict[str, Any]]) -> int:
    """Return the number of the epoch with most validation strings right, then most characters, then the last.

    The last one is preferred because the learning rate was lower there. Without validation all are equal.
    """
    return int(max(epochs, key=lambda epoch: (*_read(epoch), epoch["epoch"]))["epoch"])


def epochs_without_gain(epochs: Sequence[dict[str, Any]]) -> int:
    """Count the epochs since validation last improved: more strings, or as many and more characters or less loss."""

    def rank(epoch: dict[str, Any]) -> tuple[float, float, float]:
        loss = epoch.get("val_loss")
        return (*_read(epoch), -math.inf if loss is None else -loss)

    return int(epochs[-1]["epoch"] - max(epochs, key=rank)["epoch"])  # of equals `max` gives the first


def _read(epoch: dict[str, Any]) -> tuple[float, float]:
    """Return the shares of validation strings and characters that are right.

    They are 0 without validation, and -1 if a loss is not a number.
    """
    if has_diverged(epoch):
        return -1.0, -1.0
    return epoch.get("val_exact_match") or 0.0, epoch.get("val_char_accuracy") or 0.0


def has_diverged(epoch: dict[str, Any]) -> bool:
    """Return whether a loss of the epoch is not a number."""
    return epoch["train_loss"] is None or epoch.get("val_loss", 0.0) is None


def finite(value: Any) -> Any:
    """Return the value, with None for numbers that JSON cannot hold."""
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
