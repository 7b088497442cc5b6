"""Update rules of optimizers, and a training that continues bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from captcha_ray.models.networks import Network
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.training import loop
from captcha_ray.training.augment import Affine, Augment
from captcha_ray.training.batches import EpochFeed, derive_seed
from captcha_ray.training.optim import build_optimizer
from captcha_ray.training.state import load_state, save_state
from tests.support.bright_rows import FP32, TINY, labelled, new_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        # velocity 2 + .1 = 2.1, then .9 x 2.1 + 2 + .1 x .79 = 3.969
        (TrainConfig(optimizer="sgd", momentum=0.9, weight_decay=0.1, learning_rate=0.1), [0.79, 0.3931]),
        # mean square .1 x 4 = .4, then .9 x .4 + .1 x 4 = .76; velocity 2 / .4^.5, then half of it + 2 / .76^.5
        (TrainConfig(optimizer="rmsprop", momentum=0.5, learning_rate=0.1), [0.683772, 0.296243]),
        # a constant gradient moves Adam by its rate, whatever its size
        (TrainConfig(optimizer="adam", learning_rate=0.1), [0.9, 0.8]),
        # first 1 x (1 - .1 x .1) - .1 = .89, then .89 x .99 - .1
        (TrainConfig(optimizer="adamw", weight_decay=0.1, learning_rate=0.1), [0.89, 0.7811]),
    ],
    ids=lambda value: value.optimizer if isinstance(value, TrainConfig) else "",
)
def test_two_steps_along_a_gradient_of_two_are_those_worked_out_by_hand(
    config: TrainConfig, weights: list[float]
) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = build_optimizer(config, model)
    reached = []
    for _ in range(2):
        model.weight.grad = torch.full((1, 1), 2.0)
        optimizer.step()
        reached.append(model.weight.item())
    assert reached == pytest.approx(weights, abs=1e-5)


# ------------------------------------------------------------------------------------------------------- continuation


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "rmsprop", "momentum": 0.9},
        {"optimizer": "rmsprop"},
        {"optimizer": "adam"},
        {"optimizer": "adamw"},
    ],
    ids=str,
)
def test_an_interrupted_training_continues_bitwise_as_an_undisturbed_one(
    change: dict[str, Any], tmp_path: Path
) -> None:
    """With dropout, batch normalization, augmentation, weight decay and convolutions laid out channels last."""
    config = TrainConfig(**change, learning_rate=0.01, weight_decay=0.01)
    feed = EpochFeed(*labelled(TINY, 10), [10], 0, 4)

    def start(seed: int) -> tuple[Network, torch.optim.Optimizer]:
        model = new_model(TINY, seed)
        return model, build_optimizer(config, model)

    def train(model: Network, optimizer: torch.optim.Optimizer, epochs: range) -> None:
        for epoch in epochs:
            loop.train_epoch(
                model,
                optimizer,
                feed.epoch(derive_seed(0, epoch, 0)),
                FP32,
                augment=Augment(Affine(5, 0.1, 5, 0.1)),
                seed=derive_seed(0, epoch, 1),
                learning_rate=lambda _: config.learning_rate,
            )

    model, optimizer = start(0)
    train(model, optimizer, range(2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = str(tmp_path / "resume.safetensors")
    progress = {"epochs": [{"epoch": 1, "loss": None}, {"epoch": 2, "note": "ä"}]}
    save_state(state, model, optimizer, progress)
    train(model, optimizer, range(2, 4))

    other, its_optimizer = start(1)
    assert load_state(state, other, its_optimizer) == progress
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    train(other, its_optimizer, range(2, 4))

    ends = model.state_dict()
    assert any(not torch.equal(ends[name], before[name]) for name in ends)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, ends[name]), name
    moments = optimizer.state_dict()["state"]
    continued = its_optimizer.state_dict()["state"]
    assert continued.keys() == moments.keys()
    for index, max_length in moments.items():
        for name, value in max_length.items():
            assert torch.equal(torch.as_tensor(continued[index][name]), torch.as_tensor(value)), name
