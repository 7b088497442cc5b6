"""A training step launches few operations: on a GPU each costs a launch, however small it is."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from captcha_ray.images.spec import ImageSpec
from captcha_ray.models.device import Arithmetic
from captcha_ray.models.networks import build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.recipes import catalog
from captcha_ray.training import loop
from captcha_ray.training.augment import Augment
from captcha_ray.training.batches import EpochFeed
from captcha_ray.training.optim import build_optimizer

VIEWS = {
    "_unsafe_view", "alias", "as_strided", "detach", "expand", "permute", "select", "slice", "squeeze", "t",
    "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip
"""Operations that move nothing."""

SPEC = ModelSpec(
    network="column_cnn",
    image=ImageSpec(height=50, width=200),
    charset="2345678bcdefgmnpwxy",
    max_length=5,
    dropout=0.3,
    head="deep",
)

BATCH_SIZE, NUM_STEPS = 16, 2


class Count(TorchDispatchMode):
    """Counts operations by name while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.names: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.names[name] += name not in VIEWS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("prior", "most"), [(0.0, 225), (0.5, 250)])
def test_a_step_of_the_default_network_launches_few_operations(prior: float, most: int) -> None:
    config = dataclasses.replace(catalog.text(), learning_rate=1e-3)
    model = build_model(SPEC).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(config, model)
    rng = np.random.default_rng(0)
    num_images = NUM_STEPS * BATCH_SIZE
    images = rng.integers(0, 256, (num_images, *SPEC.image.shape), dtype=np.uint8)
    feed = EpochFeed(images, rng.integers(0, 19, (num_images, 5)), [num_images], 0, BATCH_SIZE, with_colors=True)
    for count in (Count(), Count()):  # the first epoch makes the optimizer's state and measures colors
        with count:
            loop.train_epoch(
                model,
                optimizer,
                feed.epoch(0),
                Arithmetic(torch.device("cpu"), bf16=False),
                augment=Augment.of(config),
                seed=0,
                learning_rate=lambda step: 1e-3,
                alignment_prior=lambda step: prior,
            )
    names = {name: number / NUM_STEPS for name, number in count.names.items()}
    assert sum(names.values()) <= most, count.names.most_common()
    assert names["_ctc_loss"] == 1, "the loss is computed once"
    assert "median" not in names, "colors are measured once"
    assert "_local_scalar_dense" not in names, "nothing waits for a number of the device"
