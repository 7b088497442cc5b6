"""Resolve what a training config leaves open from its shards: network, lengths, batch size and epochs."""

import dataclasses
import math
from typing import Literal

from captcha_ray.datasets.schema import Manifest
from captcha_ray.models.fingerprint import load_spec
from captcha_ray.models.spec import BUILTIN, Head
from captcha_ray.recipes import settings
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.recipes.settings import LEARNING_RATE

# Figures were measured on 856 real captchas and 6,802 digits, see LOG.md, 2026-11-21.

BATCH_SIZES = (16, 256)
"""Smallest and largest batch: small ones learn more from few images, large ones keep many cores busy."""

IMAGES_SEEN = 16_000
"""Least images that a training sees, repeats counted: about 1,000 steps.

After half of that, 685 captchas are recognized worse; from 200 captchas, 1,400 steps are no better.
"""

CLASS_SEEN = 4_000
"""Least times that a training sees each character, if all were equally frequent and all texts of full length."""

MAX_EPOCHS = 400
"""Most planned epochs, however few the images: more add nothing."""

LEAST_RATE = 5e-4
"""Least of such rates: ten captchas are recognized worse after training at 2e-4."""

ENOUGH_OF_EACH = 10
"""Times that images show each character, on average, below which weights to begin with are changed more slowly.

Of 250 captchas, seeds 0 and 1: with 10 labels 63 and 77 % at a rate of 5e-4, 54 and 71 at 3e-3; with 20, 76 and 76 at
5e-4, 80 and 82 at 1.5e-3, 82 and 82 at 3e-3; with 50, 95 and 95 at 1e-3, 97 and 96 at 3e-3.
"""

LONGEST = 4
"""A training whose length nobody set may take so many times its planned epochs, for another attempt or an extension."""

MANY, SEEN_EXPONENT = 700, 0.75
"""From `MANY` images on, the images seen grow with this power of their number."""


def resolve(config: TrainConfig, manifest: Manifest) -> TrainConfig:
    """Return the config with nothing left open; a config that leaves nothing open is returned as it is.

    If the config names a network, its `variable_length` stays; else the labels decide.
    """
    open_ = config.network == "auto"
    chosen = config.epochs or epochs(manifest)
    longest = config.epochs or LONGEST * chosen
    if config.schedule != "warmup_stable_decay":
        longest = 0
    init = _init(config, manifest.charset)
    resolved = dataclasses.replace(
        config,
        learning_rate=config.learning_rate or learning_rate(manifest, begun=bool(init)),
        network="column_cnn" if open_ else config.network,
        init=init,
        head=_head(config, init),
        variable_length=config.variable_length or (open_ and manifest.min_length < manifest.max_length),
        batch_size=config.batch_size or max(batch_size(manifest.num_images["train"]) // config.workers[1], 2),
        epochs=min(chosen, config.max_epochs or chosen),
        max_epochs=config.max_epochs or longest,
        # A line over a single character can make another character of it.
        lines_fraction=config.lines_fraction if manifest.max_length > 1 else 0.0,
    )
    return settings.changed(resolved)


def _init(config: TrainConfig, charset: str) -> str:
    """Return the weights to begin with; the built-in ones if they fit."""
    if config.from_scratch or config.init != BUILTIN:
        return "" if config.from_scratch else config.init
    return "" if why_not_builtin(config, charset) else BUILTIN


def _head(config: TrainConfig, init: str) -> Literal["auto"] | Head:
    """Return the head of a `column_cnn`: that of the weights to begin with if none was requested."""
    if config.head != "auto" or config.network not in ("auto", "column_cnn"):
        return config.head
    return load_spec(init).head if init else "deep"


def why_not_builtin(config: TrainConfig, charset: str) -> str:
    """Return why the built-in weights do not fit: another kind of network, or a charset less than half known to it.

    Empty if they fit.
    """
    builtin = load_spec(BUILTIN)
    if config.network not in ("auto", "column_cnn"):
        return f"they are for column_cnn, not {config.network}"
    if config.filters != builtin.filters:
        return f"they are for {builtin.filters} filters, not {config.filters}"
    if config.head not in ("auto", builtin.head):
        return f"they are for a {builtin.head} head, not a {config.head} one"
    num_known = sum(character in builtin.charset for character in charset)
    if 2 * num_known < len(charset):
        return f"they know {num_known:,} of the {len(charset):,} characters"
    return ""


def learning_rate(manifest: Manifest, *, begun: bool) -> float:
    """Return `LEARNING_RATE`, or less where few images shall not undo the weights that a training has begun with."""
    num_shown = sum(number > 0 for number in manifest.num_characters.get("train", {}).values())
    length = (manifest.min_length + manifest.max_length) / 2
    each = manifest.num_images["train"] * length / (num_shown or len(manifest.charset))
    return max(LEARNING_RATE * min(each / ENOUGH_OF_EACH, 1), LEAST_RATE) if begun else LEARNING_RATE


def batch_size(num_images: int) -> int:
    """Return the images of a step over all workers: the power of two at or below sqrt(images / 2), in `BATCH_SIZES`."""
    smallest, largest = BATCH_SIZES
    power = int(math.log2(max(num_images / 2, 1)) / 2)
    return min(max(1 << power, smallest), largest)


def epochs(manifest: Manifest) -> int:
    """Return the epochs that show `IMAGES_SEEN` images, or more if images or characters are many."""
    num_images = max(manifest.num_images["train"], 1)
    many = IMAGES_SEEN * math.pow(num_images / MANY, SEEN_EXPONENT)
    characters = CLASS_SEEN * len(manifest.charset) / manifest.max_length
    return min(math.ceil(max(IMAGES_SEEN, many, characters) / num_images), MAX_EPOCHS)
