"""When a training warms up, holds its learning rate, begins anew, decays it and ends. Knows no torch and no files.

Each decision follows from the config, the plan so far and the lines of `metrics.jsonl`. The plan is kept with the
weights, so that a training that was cut off decides as an undisturbed one would have.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from captcha_ray.training.config import TrainConfig

WARMUP_STEPS = 150
"""The most steps that `warmup_stable_decay` warms up for: 15 % of the thousand that few images are trained for."""

PRIOR_STEPS, PRIOR_EPOCHS, PRIOR_SHARE = 100, 10, 0.1
"""The alignment prior is whole for the least of so many steps, so many epochs, and this share of the planned steps. In
30 steps, crowded or crossed characters are not found; in more than ten epochs, few images are learned by heart."""

PRIOR_FADE = 3
"""The prior is gone after this many times the steps that it is whole for."""

READS = 0.5
"""A network reads once its loss is below this share of the loss of guessing: no plateau was seen below .7."""

PATIENCE_STEPS, MIN_PROGRESS = 150, 0.02
"""A network is stuck where its loss fell by less than this share from so many steps to the next as many. The slowest
that found its way by itself, with 50 labels, fell by 6 % in a third of that."""

SURELY_READS = 0.3
"""A network that is stuck but reads this share of the strings is not begun anew: it is as good as it gets."""

MAX_ATTEMPTS, GROWTH = 3, 3
"""How often a training begins in all, and how many times longer the prior lasts from one beginning to the next."""

DECAY = 0.7
"""The least share of the planned epochs for which the learning rate falls, however late it begins to."""

AGAIN_BELOW, AGAIN_GAIN = 0.95, 0.01
"""Below this share of validation strings another cycle follows, and further ones while each adds this much to it."""

AGAIN_SHARE, AGAIN_RATE = 0.5, 0.5
"""Length of such a cycle, of the planned epochs, and the learning rate it begins with, of the peak."""


class Change(enum.StrEnum):
    """Name what the last epoch has changed in a plan."""

    NONE = ""
    READS = "the network reads; the learning rate falls from here"
    LIMIT = "the network does not read yet, but there is no time for another attempt; the learning rate falls from here"
    ANEW = "the network does not read and its loss no longer falls; training begins anew, with a longer alignment prior"
    AGAIN = "validation still gets better; training goes on at half the learning rate"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The course of a training as it stands after some epochs.

    steps: of an epoch. guess_loss: nats per image, as `counts.guess_loss` has it. attempt: from 0. begun: epochs that
    were done when the attempt began. decays_from: epochs that were done when the learning rate began to fall; None
    while it is held. num_epochs: of the whole training, were nothing else to happen. rate: what the decay begins with,
    of the peak. change: what led to this plan.
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
        """Plan a training that has not begun. config: resolved."""
        plan = cls(config, steps, guess_loss, config.epochs)
        return dataclasses.replace(plan, decays_from=0) if plan._latest_decay <= 0 else plan

    def to_dict(self) -> dict[str, Any]:
        """Return what `restored` takes: what has been decided so far, as JSON types."""
        return {name: getattr(self, name) for name in ("num_epochs", "attempt", "begun", "decays_from", "rate")}

    def restored(self, decided: Mapping[str, Any]) -> Self:
        """Return this plan with what `to_dict` gave of a training that was cut off."""
        return dataclasses.replace(self, **decided)

    def after(self, epochs: Sequence[Mapping[str, Any]]) -> Self:
        """Follow one more epoch. epochs: all lines of `metrics.jsonl`, one more than when this plan was made."""
        plan = dataclasses.replace(self, change=Change.NONE)
        done = len(epochs)
        if self.config.schedule != "warmup_stable_decay" or epochs[-1]["train_loss"] is None:
            return plan
        if self.decays_from is not None:
            return plan._go_on(epochs) if done == self.num_epochs else plan
        reads = epochs[-1]["train_loss"] < READS * self.guess_loss or _strings(epochs[-1]) >= AGAIN_BELOW
        stuck = self._is_stuck(epochs)
        if reads or (stuck and _strings(epochs[-1]) >= SURELY_READS):
            return plan._decay(done, Change.READS)
        if stuck:
            again = dataclasses.replace(plan, attempt=self.attempt + 1, begun=done, change=Change.ANEW)
            again = again._planned_for(done + math.ceil(again._prior_steps * PRIOR_FADE / self.steps))
            has_capacity = again._latest_decay > done + again._prior_steps * PRIOR_FADE / self.steps
            return again if has_capacity and again.attempt < MAX_ATTEMPTS else plan._decay(done, Change.LIMIT)
        if done >= self._latest_decay:
            return plan._decay(done, Change.LIMIT)
        return plan._planned_for(done + 1)

    @property
    def holds(self) -> bool:
        """Whether the learning rate is held, until the network reads."""
        return self.config.schedule == "warmup_stable_decay" and self.decays_from is None

    def learning_rate(self, done: float) -> float:
        """Return the step size after so many epochs, which may be a fraction: a function of the plan alone."""
        config = self.config
        if config.schedule == "constant":
            return config.learning_rate
        if config.schedule == "one_cycle":
            return config.learning_rate * _one_cycle(done / config.epochs, config.warmup_fraction)
        warmup = min(WARMUP_STEPS, config.warmup_fraction * config.epochs * self.steps)
        step = (done - self.begun) * self.steps
        share = self.rate * min(0.04 + 0.96 * step / warmup if warmup else 1.0, 1.0)
        if self.decays_from is not None:
            share *= _cosine((done - self.decays_from) / (self.num_epochs - self.decays_from))
        return config.learning_rate * share

    def prior(self, done: float) -> float:
        """Return the share of the loss, 0 to 1, that says where characters stand, after so many epochs."""
        whole = self._prior_steps
        step: float = (done - self.begun) * self.steps
        return min(max((PRIOR_FADE * whole - step) / ((PRIOR_FADE - 1) * whole), 0.0), 1.0)

    @property
    def _prior_steps(self) -> float:
        """Return the steps of this attempt for which the prior is whole."""
        planned = PRIOR_SHARE * self.config.epochs * self.steps
        longer: int = GROWTH**self.attempt
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
        """Set the number of epochs, were the learning rate to fall after that many."""
        num_epochs = min(max(self.config.epochs, decays_from + self._decay_epochs), self._limit)
        return dataclasses.replace(self, num_epochs=num_epochs)

    def _decay(self, done: int, change: Change) -> Self:
        return dataclasses.replace(self._planned_for(done), decays_from=done, change=change)

    def _is_stuck(self, epochs: Sequence[Mapping[str, Any]]) -> bool:
        """Tell whether the prior is over and the loss has hardly fallen since."""
        window = math.ceil(PATIENCE_STEPS / self.steps)
        free = len(epochs) - self.begun - math.ceil(PRIOR_FADE * self._prior_steps / self.steps)
        if free < 2 * window:
            return False
        losses: list[float] = [epoch["train_loss"] for epoch in epochs[-2 * window :]]
        return sum(losses[window:]) > (1 - MIN_PROGRESS) * sum(losses[:window])

    def _go_on(self, epochs: Sequence[Mapping[str, Any]]) -> Self:
        """Add a cycle where validation promises something of it and the limit allows it."""
        done = len(epochs)
        length = math.ceil(AGAIN_SHARE * self.config.epochs)
        if "val_exact_match" not in epochs[-1] or done + length > self._limit:
            return self
        assert self.decays_from is not None
        strings = [epoch["val_exact_match"] or 0.0 for epoch in epochs]
        best, before = max(strings), max(strings[: self.decays_from], default=0.0)
        if best >= AGAIN_BELOW or best < before + AGAIN_GAIN:
            return self
        return dataclasses.replace(
            self, decays_from=done, num_epochs=done + length, rate=AGAIN_RATE, change=Change.AGAIN
        )


def _strings(epoch: Mapping[str, Any]) -> float:
    """Return the share of the strings that were read in validation, or in training where there is none."""
    share: float | None = epoch.get("val_exact_match", epoch.get("train_exact_match"))
    return share or 0.0


def _one_cycle(fraction: float, warmup: float) -> float:
    """Return the share of the peak after a fraction of all steps: linear warm-up, then cosine to zero."""
    return 0.04 + 0.96 * fraction / warmup if fraction < warmup else _cosine((fraction - warmup) / (1 - warmup))


def _cosine(fraction: float) -> float:
    """Fall from 1 to 0 as the fraction rises from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * fraction))
