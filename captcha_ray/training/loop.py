"""One epoch of training or of evaluation over any iterable of batches.

Knows device, rank and world size only as arguments, so it runs in a unit test without a launcher. Losses are summed
over an image's characters and averaged over images, as Keras does for several outputs.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from captcha_ray.models.device import Arithmetic
from captcha_ray.models.networks import Network


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch. images: uint8 (N, H, W, C). targets: int64 (N, S). step_images: images of this step over all workers.

    colors: uint8 (N, 2, C), paper and ink of each image, if the feed was asked for them.
    """

    images: Tensor
    targets: Tensor
    step_images: int
    colors: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class EpochCounts:
    """Sums over images; they add up over batches and workers.

    sums: float64 (3 + 2 S,): images, loss, right strings, then per position the right characters and all characters.
    """

    sums: npt.NDArray[np.float64]

    @property
    def num_images(self) -> int:
        """Return the number of images."""
        return round(float(self.sums[0]))

    def ratios(self, prefix: str) -> dict[str, Any]:
        """Return loss per image and accuracies of characters, strings and positions, named `prefix_...`.

        Characters count as in `counts.PredictionCounts`; the end of a text is none. Positions without any have nan.
        """
        n, loss, strings, *positions = (float(x) for x in self.sums)
        right, there = positions[: len(positions) // 2], positions[len(positions) // 2 :]
        return {
            f"{prefix}_loss": loss / n,
            f"{prefix}_char_accuracy": sum(right) / sum(there),
            f"{prefix}_exact_match": strings / n,
            f"{prefix}_position_accuracy": [r / t if t else math.nan for r, t in zip(right, there, strict=True)],
        }


@dataclasses.dataclass(frozen=True)
class Position:
    """Tells where a worker is in an epoch: with weights and optimizer, all that the steps that are left depend on.

    step: steps done. sums: of these steps, as in `EpochCounts`; None before the first. waited_s, seconds: so far.
    random: uint8 states of the generators of random numbers, by name.
    """

    step: int = 0
    sums: npt.NDArray[np.float64] | None = None
    waited_s: float = 0.0
    seconds: float = 0.0
    random: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all but the step, as `of` takes it."""
        times = torch.tensor([self.waited_s, self.seconds], dtype=torch.float64)
        return {"sums": torch.from_numpy(self.sums), "times": times, **self.random}

    @classmethod
    def of(cls, step: int, tensors: dict[str, Tensor]) -> "Position":
        """Return the position of which `to_tensors` gave these."""
        random = dict(tensors)
        sums, (waited_s, seconds) = random.pop("sums").numpy(), random.pop("times").tolist()
        return cls(step, sums, waited_s, seconds, random)


START = Position()


def train_epoch(
    model: Network,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    arithmetic: Arithmetic,
    *,
    parallel: nn.Module | None = None,
    augment: Callable[[Tensor, torch.Generator, Tensor | None], Tensor],
    seed: int,
    world_size: int = 1,
    learning_rate: Callable[[int], float],
    label_smoothing: float = 0.0,
    alignment_prior: Callable[[int], float] = lambda step: 0.0,
    begin: Position = START,
    on_step: Callable[[int, int, Callable[[], Position]], None] = lambda step, images, position: None,
) -> tuple[EpochCounts, float]:
    """Train one epoch; return this worker's counts, of greedy guesses, and the seconds that it waited for data.

    Args:
        model: Its weights are updated.
        optimizer: Of the model's parameters.
        batches: Of this worker, those of the steps that are left.
        arithmetic: Device and precision.
        parallel: The model wrapped for data-parallel training, if there are several workers.
        augment: Distorts a batch, given its images, a generator and their colors, see `Augment`.
        seed: Of dropout and distortion, different for each worker.
        world_size: Number of workers; the average of their gradients is that of the mean over all images of a step.
        learning_rate: Returns the rate of a step, from 0.
        label_smoothing: As in `Network.loss_pair`. The gradient follows it and the prior, the counts do not.
        alignment_prior: Returns the weight of a step, as in `Network.loss_pair`.
        begin: Where an interrupted try of this epoch was; the weights and the optimizer are as they were there.
        on_step: Called with a step, its images, and a function that returns the position after it.
    """
    forward = (parallel or model).train()
    random = _Random(arithmetic.device, seed, begin.random)
    counter = _Counter(arithmetic.device, begin)
    for step, batch in enumerate(counter.timed(batches), begin.step):
        targets, there = arithmetic.put(batch.targets), batch.targets < model.num_characters
        inputs = augment(arithmetic.to_input(batch.images), random.generator, arithmetic.to_colors(batch.colors))
        with arithmetic.autocast():
            outputs = forward(inputs)
        losses, followed = model.loss_pair(outputs, targets, there.sum(1), label_smoothing, alignment_prior(step))
        _descend(optimizer, followed.sum() * (world_size / batch.step_images), learning_rate(step))
        counter.add(model, model.greedy(outputs), targets, there, losses)
        on_step(step, batch.step_images, lambda: counter.position(random.states()))
    return counter.counts(), counter.waited_s


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@torch.inference_mode()
def evaluate(model: Network, batches: Iterable[Batch], arithmetic: Arithmetic) -> EpochCounts:
    """Return this worker's counts over its batches; the model stays in evaluation mode."""
    model.eval()
    counter = _Counter(arithmetic.device)
    for batch in batches:
        with arithmetic.autocast():
            outputs = model(arithmetic.to_input(batch.images))
        targets, there = arithmetic.put(batch.targets), batch.targets < model.num_characters
        texts = model.log_probabilities(outputs).argmax(2)
        counter.add(model, texts, targets, there, model.losses(outputs, targets, there.sum(1)))
    return counter.counts()


class _Random:
    """Seeds what dropout (torch's own generators) and augmentation (`generator`) draw from, or sets it to states."""

    def __init__(self, device: torch.device, seed: int, states: dict[str, Tensor]) -> None:
        torch.manual_seed(seed)
        self.generator = torch.Generator(device).manual_seed(seed)
        if states:
            self.generator.set_state(states["augment"])
            torch.set_rng_state(states["cpu"])
            if device.type == "cuda":
                torch.cuda.set_rng_state(states["cuda"], device)

    def states(self) -> dict[str, Tensor]:
        """Return the states of all generators by name, uint8."""
        states = {"augment": self.generator.get_state(), "cpu": torch.get_rng_state()}
        if self.generator.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.generator.device)
        return states


class _Counter:
    """Adds up an epoch on the device, without waiting for it at every step."""

    def __init__(self, device: torch.device, begin: Position = START) -> None:
        self._sums: Tensor | None = None
        self._num_images = 0
        self._there: Any = 0  # int64 (S,) after the first batch
        self._steps, self.waited_s = begin.step, begin.waited_s
        self._started = time.perf_counter() - begin.seconds
        if begin.sums is not None:
            there = 3 + (len(begin.sums) - 3) // 2
            self._num_images = round(float(begin.sums[0]))
            self._sums = torch.from_numpy(begin.sums[1:there]).to(device)
            self._there = begin.sums[there:].astype(np.int64)

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        iterator = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(iterator, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def add(self, model: Network, texts: Tensor, targets: Tensor, there: Tensor, losses: Tensor) -> None:
        """Add a batch.

        Args:
            model: Whose classes these are.
            texts: int64 (N, S).
            targets: The same.
            there: bool (N, S), on the CPU: which targets are characters.
            losses: (N,).
        """
        self._steps += 1
        self._num_images += len(there)
        self._there = self._there + there.numpy().sum(0)
        with torch.no_grad():
            end = model.num_characters
            texts = texts.masked_fill((texts == end).cumsum(1) > 0, end)  # a text has nothing behind its end
            right = texts == targets
            sums = torch.cat([losses.sum()[None], right.all(1).sum()[None], (right & (targets < end)).sum(0)]).double()
            self._sums = sums if self._sums is None else self._sums + sums

    def position(self, random: dict[str, Tensor]) -> Position:
        seconds = time.perf_counter() - self._started
        return Position(self._steps, self.counts().sums, self.waited_s, seconds, random)

    def counts(self) -> EpochCounts:
        assert self._sums is not None, "an epoch has at least one batch"
        return EpochCounts(np.concatenate([[self._num_images], self._sums.cpu().numpy(), self._there]))
