"""Describe a block task of bulk inference: what a worker is told, and where its blocks are. Does none of the work."""

import dataclasses

from captcha_ray.engines.engine import Name, Precision
from captcha_ray.models.restriction import Restriction
from captcha_ray.predictions.table import BLOCK
from captcha_ray.storage import filesystem

BATCH_SIZE = 256
"""Images per forward pass; larger batches are no faster on a CPU."""

MAX_BLOCK = 4096
"""Most objects of a task: few enough to lose little with a worker."""

MAX_DECODED_BYTES = 32_000_000
"""Most bytes of decoded pixels in one task: few enough for an object store of Ray's least size, 75 MB."""

IDLE = "wait for work"
"""Stage of a worker without a block."""

Finished = tuple[int, int, int]
"""Number, rows and errors of a block that is staged."""


class AbandonedError(Exception):
    """A block that is not to be finished, as its job ends."""


@dataclasses.dataclass(frozen=True)
class BlockTask:
    """A worker's task: the network by URI and fingerprint, limits, and the folder URI of the blocks.

    min_confidence: least confidence of a certain prediction. num_threads: of a worker. device: in torch's words.
    restriction: of texts.
    """

    model: str
    model_id: str
    device: str
    engine: Name
    precision: Precision
    attempt: str
    endpoint_url: str
    max_bytes: int
    max_pixels: int
    max_stretch: float
    min_confidence: float
    num_threads: int
    restriction: Restriction

    def part_uri(self, part: int) -> str:
        """Return the URI of the listed objects of some blocks, see `block_plan`."""
        return filesystem.join(self.attempt, f"part-{part:06d}.blocks")

    def staged(self, block: int) -> str:
        """Return the URI of the predictions of a block."""
        return filesystem.join(self.attempt, f"block-{block:06d}{BLOCK}")


def block_sizes(
    num_batches: int, num_workers: int, *, growing: bool = False, decoded_bytes: int | None = None
) -> list[int]:
    """Return the batches of each block: half of a worker's share of the rest, but at most `MAX_BLOCK` objects.

    Blocks shrink towards the end, so that all workers end at about the same time (C. Polychronopoulos and D. Kuck,
    "Guided Self-Scheduling", 1987).

    Args:
        num_batches: In all blocks.
        num_workers: Workers that there will be.
        growing: Begin with blocks of 1, 1, 2, 4, ... batches, which soon show how long all will take.
        decoded_bytes: Of an image, if blocks pass decoded from worker to worker; they are of at most
            `MAX_DECODED_BYTES` then, or of one batch.
    """
    most = MAX_BLOCK // BATCH_SIZE
    if decoded_bytes:
        most = max(min(most, MAX_DECODED_BYTES // (decoded_bytes * BATCH_SIZE)), 1)
    sizes: list[int] = []
    while num_batches:
        largest = max(sum(sizes), 1) if growing else num_batches
        sizes.append(min(max(num_batches // (2 * num_workers), 1), most, largest))
        num_batches -= sizes[-1]
    return sizes
