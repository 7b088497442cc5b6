"""Cut the images of one worker into batches, from memory or from the shards."""

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from captcha_ray.datasets import schema
from captcha_ray.images.spec import ImageSpec
from captcha_ray.storage import row_groups
from captcha_ray.storage.read_ahead import ReadAhead
from captcha_ray.storage.row_groups import RowGroup
from captcha_ray.training.augment import paper_and_ink
from captcha_ray.training.loop import Batch

WINDOW_BYTES = 256 << 20
"""Most bytes of the images among which a stream shuffles, but for one row group more; it holds twice as many, as the
next ones are read meanwhile."""

N = TypeVar("N")

Encode = Callable[[Sequence[str]], npt.NDArray[np.int64]]
"""Turns texts into classes, int64 (N, S)."""


class Feed(Protocol):
    """Gives one worker's images in batches, each image once an epoch.

    All workers make the same number of steps. A share is cut into nearly equal batches instead of full ones and a
    remainder, so no step normalizes over one or two images.
    """

    num_steps: int

    def count_classes(self, num_classes: int) -> npt.NDArray[np.int64]:
        """Count each class at each position of this worker's images; return int64 (max_length, classes)."""

    def epoch(self, seed: int | None, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on, from 0, shuffled by the seed, or in order for None."""


class _Steps:
    """The steps of an epoch: where this worker's batch starts and stops, and the images of all workers.

    counts: images of each worker, this one's at [rank].
    """

    def __init__(self, counts: list[int], rank: int, batch_size: int) -> None:
        self.num_steps = -(-max(counts) // batch_size)
        # edges[w][s]: where worker w's batch s begins; batches of a worker differ by one image at most
        self._edges = [[count * step // self.num_steps for step in range(self.num_steps + 1)] for count in counts]
        self._rank = rank

    def since(self, first_step: int) -> Iterator[tuple[int, int, int]]:
        mine = self._edges[self._rank]
        for step in range(first_step, self.num_steps):
            yield mine[step], mine[step + 1], sum(edges[step + 1] - edges[step] for edges in self._edges)


class EpochFeed(Feed):
    """Cuts images in memory into batches, anew every epoch.

    images: uint8 (n, H, W, C). targets: int64 (n, S). counts: images of each worker, this one's at [rank]. with_colors:
    batches bring along paper and ink, which the first epoch measures.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        targets: npt.NDArray[np.int64],
        counts: list[int],
        rank: int,
        batch_size: int,
        *,
        with_colors: bool = False,
    ) -> None:
        assert len(images) == len(targets) == counts[rank]
        with warnings.catch_warnings():  # an array in Ray's object store is not writable, and nobody writes to it here
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._images = torch.from_numpy(images)
        self._targets = torch.from_numpy(targets)
        self._colors = torch.zeros((len(images), 2, images.shape[3]), dtype=torch.uint8) if with_colors else None
        self._measured = np.zeros(len(images), bool)
        self._steps = _Steps(counts, rank, batch_size)
        self.num_steps = self._steps.num_steps

    def count_classes(self, num_classes: int) -> npt.NDArray[np.int64]:
        """Count as `Feed` says."""
        return _count_classes(self._targets.numpy(), num_classes)

    def epoch(self, seed: int | None, first_step: int = 0) -> Iterator[Batch]:
        """Yield as `Feed` says."""
        order = None if seed is None else _order(len(self._images), torch.Generator().manual_seed(seed))
        for start, stop, total in self._steps.since(first_step):
            yield self._batch(slice(start, stop) if order is None else order[start:stop], total)

    def _batch(self, rows: slice | Tensor, step_images: int) -> Batch:
        images = self._images[rows]
        if self._colors is not None and not self._measured[rows].all():
            self._colors[rows] = paper_and_ink(images.permute(0, 3, 1, 2))
            self._measured[rows] = True
        return Batch(images, self._targets[rows], step_images, None if self._colors is None else self._colors[rows])


class StreamFeed(Feed):
    """Reads row groups of shards anew every epoch and cuts them into batches, in bounded memory.

    An epoch shuffles the row groups, and the images of those that are in memory together (`WINDOW_BYTES`).

    groups: this worker's. image, encode: of the network. counts, rank, batch_size, with_colors: as for `EpochFeed`;
    colors are measured in every epoch.
    """

    def __init__(
        self,
        groups: Sequence[RowGroup],
        image: ImageSpec,
        encode: Encode,
        counts: list[int],
        rank: int,
        batch_size: int,
        *,
        with_colors: bool = False,
    ) -> None:
        assert sum(group.num_rows for group in groups) == counts[rank]
        self._groups, self._image, self._encode, self._with_colors = groups, image, encode, with_colors
        self._steps = _Steps(counts, rank, batch_size)
        self.num_steps = self._steps.num_steps

    def count_classes(self, num_classes: int) -> npt.NDArray[np.int64]:
        """Count as `Feed` says; reads all texts."""
        counts = _count_classes(self._encode([]), num_classes)
        for _, tables in self._read(((None, window) for window in self._windows(None)), ["text"]):
            for table in tables:
                counts += _count_classes(self._encode(table["text"].to_pylist()), num_classes)
        return counts

    def epoch(self, seed: int | None, first_step: int = 0) -> Iterator[Batch]:
        """Yield as `Feed` says; windows before the first step are not read. Raises as `row_groups.read` does."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        steps = list(self._steps.since(first_step))
        windows = self._read(self._orders(generator, steps[0][0] if steps else 0), ["image", "text"])
        images, targets = self._gather([])
        order, at = _order(0, None), 0
        for start, stop, total in steps:
            parts: list[tuple[Tensor, Tensor]] = []
            missing = stop - start
            while missing or not parts:
                if missing and at == len(order):
                    del images, targets  # before there are others
                    order, tables = next(windows)
                    (images, targets), at = self._gather(tables), 0
                rows = order[at : at + missing]
                parts.append((images[rows], targets[rows]))
                at, missing = at + len(rows), missing - len(rows)
            batch, classes = (torch.cat(column) for column in zip(*parts, strict=True))
            colors = paper_and_ink(batch.permute(0, 3, 1, 2)) if self._with_colors else None
            yield Batch(batch, classes, total, colors)

    def _windows(self, generator: torch.Generator | None) -> list[list[RowGroup]]:
        """Return nearly equal numbers of row groups, shuffled by the generator, if there is one."""
        num_bytes = sum(group.num_rows for group in self._groups) * math.prod(self._image.shape)
        order = _order(len(self._groups), generator).numpy()
        parts = np.array_split(order, max(-(-num_bytes // WINDOW_BYTES), 1))
        return [[self._groups[number] for number in part] for part in parts]

    def _orders(self, generator: torch.Generator | None, skipped: int) -> Iterator[tuple[Tensor, list[RowGroup]]]:
        """Yield the windows of an epoch, each with the order of its rows, without the first rows of all."""
        for window in self._windows(generator):
            order = _order(sum(group.num_rows for group in window), generator)
            if skipped < len(order):
                yield order[skipped:], window
            skipped = max(skipped - len(order), 0)

    def _read(
        self, windows: Iterator[tuple[N, list[RowGroup]]], columns: list[str]
    ) -> Iterator[tuple[N, list[pa.Table]]]:
        """Yield the tables of windows, with what comes along with each; the next ones are read meanwhile."""
        reader = ReadAhead(functools.partial(row_groups.read, columns=columns))
        try:
            yield from reader.chunks(windows)
        finally:
            reader.close()

    def _gather(self, tables: list[pa.Table]) -> tuple[Tensor, Tensor]:
        """Return the images and targets of tables, which are taken out of the list, so that none is held twice."""
        num_rows = sum(map(len, tables))
        images, texts = schema.gather((tables.pop() for _ in range(len(tables))), num_rows, self._image)
        return torch.from_numpy(images), torch.from_numpy(self._encode(texts))


def _order(number: int, generator: torch.Generator | None) -> Tensor:
    """Return the numbers below `number`, shuffled by the generator, if there is one."""
    return torch.arange(number) if generator is None else torch.randperm(number, generator=generator)


def _count_classes(targets: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.int64]:
    return np.stack([np.bincount(position, minlength=num_classes) for position in targets.T]).astype(np.int64)


def derive_seed(*parts: int) -> int:
    """Mix several numbers, such as (seed, epoch, rank), to one 63-bit seed that is the same everywhere."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
