"""What a worker of bulk inference is told, and where it finds and leaves a block of objects. Does none of the work."""

import dataclasses

from captcha_ray.inference.table import BLOCK
from captcha_ray.storage import filesystem

BATCH_SIZE = 256
"""Images recognized at once; larger batches are no faster on a CPU."""


@dataclasses.dataclass(frozen=True)
class BlockTask:
    """The network by URI and fingerprint, limits, and the folder URI of the blocks. min_confidence: of a reading
    that counts as certain. num_threads: to decode on. device: to recognize on, as torch names it."""

    model: str
    model_id: str
    device: str
    attempt: str
    endpoint_url: str
    max_bytes: int
    max_pixels: int
    max_stretch: float
    min_confidence: float
    num_threads: int

    def block_uri(self, block: int) -> str:
        """URI of the objects to read in a block."""
        return filesystem.join(self.attempt, f"block-{block:06d}.block")

    def staged(self, block: int) -> str:
        """URI of what was read in it."""
        return filesystem.join(self.attempt, f"block-{block:06d}{BLOCK}")
