"""One epoch of training or of evaluation over any iterable of batches.

Knows device, rank and world size only as arguments, so it runs in a unit test without a launcher. Losses are summed
over an image's characters and averaged over images, as Keras does for several outputs.
"""

import contextlib
import ctypes
import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from captcha_ray.config import InputError, Precision, TrainConfig
from captcha_ray.models import Network

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, from malloc.h."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """images: uint8 (N, H, W, C). targets: int64 (N, S). step_images: images in this step over all workers."""

    images: Tensor
    targets: Tensor
    step_images: int


@dataclasses.dataclass(frozen=True)
class EpochCounts:
    """Sums over images; they add up over batches and workers. sums: float64 (3 + 2 S,): images, loss, strings right,
    characters right in each slot, characters there are in each slot."""

    sums: npt.NDArray[np.float64]

    @property
    def num_images(self) -> int:
        """Images counted."""
        return round(float(self.sums[0]))

    def ratios(self, prefix: str) -> dict[str, Any]:
        """Loss per image, accuracies over characters and whole strings, and per slot, named `prefix_...`.

        Characters count as in `metrics.ReadingCounts`; that a text ends is none. Slots without any have nan.
        """
        n, loss, strings, *slots = (float(x) for x in self.sums)
        right, there = slots[: len(slots) // 2], slots[len(slots) // 2 :]
        return {
            f"{prefix}_loss": loss / n,
            f"{prefix}_char_accuracy": sum(right) / sum(there),
            f"{prefix}_exact_match": strings / n,
            f"{prefix}_slot_accuracy": [r / t if t else math.nan for r, t in zip(right, there, strict=True)],
        }


class EpochFeed:
    """One worker's images in memory, cut into batches anew every epoch.

    images: uint8 (n, H, W, C). targets: int64 (n, S). counts: images held by each worker, this one's at [rank]. All
    workers make the same number of steps. A share is cut into nearly equal batches instead of full ones and a
    remainder, so no step normalizes over one or two images, and every image is seen once an epoch.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        targets: npt.NDArray[np.int64],
        counts: list[int],
        rank: int,
        batch_size: int,
    ) -> None:
        assert len(images) == len(targets) == counts[rank]
        with warnings.catch_warnings():  # an array in Ray's object store is not writable, and nobody writes to it here
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._images = torch.from_numpy(images)
        self._targets = torch.from_numpy(targets)
        self.num_steps = -(-max(counts) // batch_size)
        # edges[w][s]: where worker w's batch s begins; batches of a worker differ by one image at most
        self._edges = [[count * step // self.num_steps for step in range(self.num_steps + 1)] for count in counts]
        self._rank = rank

    def count_classes(self, num_classes: int) -> npt.NDArray[np.int64]:
        """Count each class in each slot of this worker's images -> int64 (slots, classes)."""
        slots = self._targets.numpy().T
        return np.stack([np.bincount(slot, minlength=num_classes) for slot in slots]).astype(np.int64)

    @property
    def smallest_batch(self) -> int:
        """Images in the smallest batch of any worker."""
        return min(b - a for edges in self._edges for a, b in itertools.pairwise(edges))

    def epoch(self, seed: int | None) -> Iterator[Batch]:
        """The batches of an epoch, shuffled by the seed, or in order for None."""
        order = (
            None if seed is None else torch.randperm(len(self._images), generator=torch.Generator().manual_seed(seed))
        )
        for step in range(self.num_steps):
            start, stop = self._edges[self._rank][step], self._edges[self._rank][step + 1]
            rows = slice(start, stop) if order is None else order[start:stop]
            total = sum(edges[step + 1] - edges[step] for edges in self._edges)
            yield Batch(self._images[rows], self._targets[rows], total)


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, such as (seed, epoch, rank): well mixed, the same everywhere."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The config's update rule over all parameters, fused where torch has a fused one."""
    parameters = list(model.parameters())
    lr, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, lr, momentum=config.momentum, weight_decay=decay, fused=True)
        case "rmsprop":  # alpha is Keras' rho; torch's own default is .99
            return torch.optim.RMSprop(parameters, lr, alpha=0.9, momentum=config.momentum, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(parameters, lr, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, lr, weight_decay=decay, fused=True)


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Where and how precisely to compute."""

    device: torch.device
    bf16: bool

    @classmethod
    def choose(cls, device: torch.device, precision: Precision) -> "Arithmetic":
        """Raises InputError where bf16 is asked for and the device has none."""
        fast = has_fast_bf16(device)
        if precision == "bf16" and device.type == "cuda" and not fast:
            raise InputError("precision bf16 needs a GPU that computes in bf16; use fp32")
        return cls(device, fast if precision == "auto" else precision == "bf16")

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """A context in which matrix products and convolutions run in bf16, if that is the choice."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def to_input(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, C) on the CPU -> float32 (N, C, H, W) in [0, 1], channels last, on the device."""
        if self.device.type == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
        return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).div_(255)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 has instructions of its own there. Emulated, it is ten times slower than fp32 on an AVX2 CPU."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def keep_freed_memory() -> None:
    """Tells glibc to keep large buffers for the next batch instead of giving them back to the kernel.

    Without it every batch pays for its pages again: 1.4 to 1.8 times slower training of MultiHeadCNN on two cores.
    The same as MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ in the environment, but works in a process that
    runs already. Does nothing on another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def train_epoch(
    model: Network,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    arithmetic: Arithmetic,
    *,
    parallel: nn.Module | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor],
    seed: int,
    world_size: int = 1,
    learning_rate: Callable[[int], float],
    label_smoothing: float = 0.0,
    guidance: Callable[[int], float] = lambda step: 0.0,
    on_step: Callable[[int, int], None] = lambda step, images: None,
) -> tuple[EpochCounts, float]:
    """One pass of optimizer steps. Returns this worker's counts and the seconds it waited for data.

    parallel: what wraps the model where several workers train it. seed: of dropout and augmentation, different for each
    worker. learning_rate: by step of this epoch. label_smoothing, and guidance by step of this epoch (see
    `Network.losses`): shape the gradient, not the counts. The gradient is that of the mean over all workers' images of
    a step, however unevenly they hold them: each worker's sum is scaled by world_size / step_images, since
    data-parallel gradients are averaged over workers.
    """
    forward = parallel or model
    forward.train()
    torch.manual_seed(seed)
    generator = torch.Generator(arithmetic.device).manual_seed(seed)
    counter = _Counter(arithmetic.device)
    for step, batch in enumerate(counter.timed(batches)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        targets = batch.targets.to(arithmetic.device)
        inputs = augment(arithmetic.to_input(batch.images), generator)
        with arithmetic.autocast():
            outputs = forward(inputs)
        taught = losses = model.losses(outputs, targets)
        if label_smoothing or guidance(step):
            taught = model.losses(outputs, targets, label_smoothing, guidance(step))
        optimizer.zero_grad(set_to_none=True)
        (taught.sum() * (world_size / batch.step_images)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        counter.add(model, outputs, targets, losses)
        on_step(step, batch.step_images)
    return counter.counts(), counter.waited_s


@torch.inference_mode()
def evaluate(model: Network, batches: Iterable[Batch], arithmetic: Arithmetic) -> EpochCounts:
    """This worker's counts over its batches; the model's mode is left at evaluation."""
    model.eval()
    counter = _Counter(arithmetic.device)
    for batch in batches:
        targets = batch.targets.to(arithmetic.device)
        with arithmetic.autocast():
            outputs = model(arithmetic.to_input(batch.images))
        counter.add(model, outputs, targets, model.losses(outputs, targets))
    return counter.counts()


class _Counter:
    """Adds up an epoch on the device, without waiting for it at every step."""

    def __init__(self, device: torch.device) -> None:
        self._sums: Tensor | None = None
        self._device = device
        self.waited_s = 0.0

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        iterator = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(iterator, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def add(self, model: Network, outputs: Tensor, targets: Tensor, losses: Tensor) -> None:
        with torch.no_grad():
            end = model.num_characters
            read = model.log_probabilities(outputs).argmax(2)  # (N, S)
            read = torch.where((read == end).cumsum(1) > 0, end, read)  # nothing is read behind the end
            right, there = read == targets, targets < end
            head = torch.stack([torch.full_like(losses[:1].sum(), len(losses)), losses.sum(), right.all(1).sum()])
            sums = torch.cat([head, (right & there).sum(0), there.sum(0)]).double()
            self._sums = sums if self._sums is None else self._sums + sums

    def counts(self) -> EpochCounts:
        assert self._sums is not None, "an epoch has at least one batch"
        return EpochCounts(self._sums.cpu().numpy())
