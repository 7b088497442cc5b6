"""Cut the images of one worker into batches."""

import dataclasses
import warnings
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captcha_ray.training.augment import paper_and_ink


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch. images: uint8 (N, H, W, C). targets: int64 (N, S). step_images: images of this step over all workers.

    colors: uint8 (N, 2, C), paper and ink of each image, if the feed was asked for them.
    """

    images: Tensor
    targets: Tensor
    step_images: int
    colors: Tensor | None = None


class EpochFeed:
    """One worker's images in memory, cut into batches anew every epoch.

    images: uint8 (n, H, W, C). targets: int64 (n, S). counts: images of each worker, this one's at [rank]. with_colors:
    batches bring along paper and ink, which the first epoch measures.

    All workers make the same number of steps. A share is cut into nearly equal batches instead of full ones and a
    remainder, so no step normalizes over one or two images, and every image is seen once an epoch.
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
        self.num_steps = -(-max(counts) // batch_size)
        # edges[w][s]: where worker w's batch s begins; batches of a worker differ by one image at most
        self._edges = [[count * step // self.num_steps for step in range(self.num_steps + 1)] for count in counts]
        self._rank = rank

    def count_classes(self, num_classes: int) -> npt.NDArray[np.int64]:
        """Count each class at each position of this worker's images; return int64 (max_length, classes)."""
        positions = self._targets.numpy().T
        return np.stack([np.bincount(position, minlength=num_classes) for position in positions]).astype(np.int64)

    def epoch(self, seed: int | None) -> Iterator[Batch]:
        """Yield the batches of an epoch, shuffled by the seed, or in order for None."""
        order = (
            None if seed is None else torch.randperm(len(self._images), generator=torch.Generator().manual_seed(seed))
        )
        for step in range(self.num_steps):
            start, stop = self._edges[self._rank][step], self._edges[self._rank][step + 1]
            rows = slice(start, stop) if order is None else order[start:stop]
            total = sum(edges[step + 1] - edges[step] for edges in self._edges)
            yield self._batch(rows, total)

    def _batch(self, rows: slice | Tensor, step_images: int) -> Batch:
        images = self._images[rows]
        if self._colors is not None and not self._measured[rows].all():
            self._colors[rows] = paper_and_ink(images.permute(0, 3, 1, 2))
            self._measured[rows] = True
        return Batch(images, self._targets[rows], step_images, None if self._colors is None else self._colors[rows])


def derive_seed(*parts: int) -> int:
    """Mix several numbers, such as (seed, epoch, rank), to one 63-bit seed that is the same everywhere."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
