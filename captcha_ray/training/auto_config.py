"""What a training takes from its shards where its config leaves it open: network, lengths, batch size and epochs."""

import dataclasses
import math

from captcha_ray.datasets.schema import Manifest
from captcha_ray.training.config import TrainConfig

BATCH_SIZES = (16, 256)
"""Smallest and largest batch: smaller ones learn more from few images, larger ones keep many cores busy."""

IMAGES_SEEN = 16_000
"""Images that a training sees at least, each of its own many times: about 1,000 steps. 685 real captchas of five
characters are read worse after half of that, and from 200 no better after 1,400 steps."""

CLASS_SEEN = 4_000
"""How often a training sees each character at least, were all equally frequent and texts of the greatest length."""

MAX_EPOCHS = 400
"""A training is planned for no more epochs than this, however few its images: there is nothing left to learn then."""

LONGEST = 4
"""A training whose length nobody named may take so many times the epochs that the rules choose: to find its way in a
second attempt, or while validation gets better."""

MANY, SEEN_EXPONENT = 700, 0.75
"""From `MANY` images on a training sees more; the images it sees grow with this power of their number."""


def resolve(config: TrainConfig, manifest: Manifest) -> TrainConfig:
    """The config with nothing left open, for shards of this manifest. One that leaves nothing open comes back as it is.

    Lengths vary where labels' do and the config names no network: what a network was asked for, it is held to. No lines
    are drawn over single characters, which they could make others of.
    """
    open_ = config.network == "auto"
    chosen = config.epochs or epochs(manifest)
    longest = config.epochs or LONGEST * chosen
    if config.schedule != "warmup_stable_decay":
        longest = 0
    return dataclasses.replace(
        config,
        network="column_cnn" if open_ else config.network,
        variable_length=config.variable_length or (open_ and manifest.min_length < manifest.max_length),
        batch_size=config.batch_size or max(batch_size(manifest.num_images["train"]) // config.workers[1], 2),
        epochs=min(chosen, config.max_epochs or chosen),
        max_epochs=config.max_epochs or longest,
        lines_fraction=config.lines_fraction if manifest.max_length > 1 else 0.0,
    )


def batch_size(num_images: int) -> int:
    """Images of a step over all workers: the power of two at or below sqrt(images / 2), within `BATCH_SIZES`."""
    smallest, largest = BATCH_SIZES
    power = int(math.log2(max(num_images / 2, 1)) / 2)
    return min(max(1 << power, smallest), largest)


def epochs(manifest: Manifest) -> int:
    """Enough for `IMAGES_SEEN` images, or more where there are many, or many characters and few on each; at most
    `MAX_EPOCHS`."""
    num_images = max(manifest.num_images["train"], 1)
    many = IMAGES_SEEN * math.pow(num_images / MANY, SEEN_EXPONENT)
    characters = CLASS_SEEN * len(manifest.charset) / manifest.max_length
    return min(math.ceil(max(IMAGES_SEEN, many, characters) / num_images), MAX_EPOCHS)
