"""Training arithmetic: losses, feeds, gradients over uneven workers, sums over workers, and exact continuation."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from captcha_ray.images.spec import ImageSpec
from captcha_ray.metrics.counts import PredictionCounts
from captcha_ray.models.networks import Network
from captcha_ray.models.spec import ModelSpec
from captcha_ray.recipes.catalog import isfahan, wmail
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.training import loop
from captcha_ray.training.augment import Affine, Augment
from captcha_ray.training.batches import EpochFeed, derive_seed
from captcha_ray.training.loop import Batch, EpochCounts
from captcha_ray.training.optim import build_optimizer
from tests.support.bright_rows import FP32, TINY, batch, labelled, new_model

STILL = Augment()


pytestmark = pytest.mark.usefixtures("one_thread")


class Plain(Network):
    """Layers one after another; neither batch normalization nor dropout."""

    def __init__(self, num_characters: int, *layers: nn.Module) -> None:
        super().__init__(num_characters)
        self.layers = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layers(images)
        return outputs


def linear_model(spec: ModelSpec) -> Network:
    """Neither batch normalization nor dropout: an image's gradient does not depend on its neighbors."""
    torch.manual_seed(3)
    outputs = spec.max_length * len(spec.charset)
    return Plain(
        len(spec.charset),
        nn.Flatten(),
        nn.Linear(math.prod(spec.image.shape), 7),
        nn.Tanh(),
        nn.Linear(7, outputs),
        nn.Unflatten(1, (spec.max_length, len(spec.charset))),
    )


# ------------------------------------------------------------------------------------------------------------- losses


def test_loss_is_summed_over_slots() -> None:
    """Slot 1: logits (0, ln 3), class 1 has probability 3/4. Slot 2: (ln 4, 0), class 1 has 1/5."""
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(4), 0.0]]])
    losses = Network(3).losses(logits, torch.tensor([[1, 1]]))
    assert losses.tolist() == pytest.approx([math.log(4 / 3) + math.log(5)])


def test_epoch_loss_is_averaged_over_images() -> None:
    """A network that answers 1/3 to everything loses 2 ln 3 on two characters, on five images as on one."""
    model = linear_model(TINY)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    counts = loop.evaluate(model, EpochFeed(*labelled(TINY, 5), [5], 0, 2).epoch(None), FP32)
    assert counts.num_images == 5
    assert counts.ratios("val")["val_loss"] == pytest.approx(2 * math.log(3))


def test_gradient_is_that_of_the_mean_over_images_of_the_sum_over_slots() -> None:
    """For zero weights the gradient of output biases is softmax minus one-hot: 1/3 each, less the share of a class."""
    model = Plain(3, nn.Flatten(), nn.Linear(120, 6), nn.Unflatten(1, (2, 3)))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    images, _ = labelled(TINY, 4)
    targets = np.array([[0, 2], [0, 1], [1, 2], [2, 2]])
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    loop.train_epoch(
        model, optimizer, [batch(images, targets)], FP32, augment=STILL, seed=0, learning_rate=lambda _: 0.0
    )
    bias = dict(model.named_parameters())["layers.1.bias"].grad
    assert bias is not None
    assert bias.tolist() == pytest.approx(
        [1 / 3 - 2 / 4, 1 / 3 - 1 / 4, 1 / 3 - 1 / 4, 1 / 3, 1 / 3 - 1 / 4, 1 / 3 - 3 / 4]
    )


def test_label_smoothing_shapes_the_gradient_and_not_the_loss_that_is_told() -> None:
    """The target is one-hot less a share that goes to all three classes alike."""
    model = Plain(3, nn.Flatten(), nn.Linear(120, 6), nn.Unflatten(1, (2, 3)))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    images, _ = labelled(TINY, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    told = {}
    for share in (0.0, 0.3):
        counts, _ = loop.train_epoch(
            model,
            optimizer,
            [batch(images, np.array([[0, 2]]))],
            FP32,
            augment=STILL,
            seed=0,
            learning_rate=lambda _: 0.0,
            label_smoothing=share,
        )
        bias = dict(model.named_parameters())["layers.1.bias"].grad
        assert bias is not None
        right, wrong = 1 / 3 - (1 - share) - share / 3, 1 / 3 - share / 3
        assert bias.tolist() == pytest.approx([right, wrong, wrong, wrong, wrong, right])
        told[share] = counts.ratios("train")["train_loss"]
    assert told[0.3] == told[0.0] == pytest.approx(2 * math.log(3))


def losses_of_training(config: TrainConfig, charset: str, learning_rate: float) -> list[float]:
    """Loss of each of 20 optimizer steps on 16 images, with the recipe's optimizer, augmentation and dropout."""
    image = ImageSpec(height=config.height, width=config.width)
    spec = ModelSpec(network=config.network, image=image, charset=charset, max_length=config.max_length)
    model = new_model(spec, seed=1)
    optimizer = build_optimizer(config, model)
    augment = Augment.of(config)
    images, targets = labelled(spec, 16)
    losses = []
    for step in range(20):
        counts, _ = loop.train_epoch(
            model,
            optimizer,
            [batch(images, targets)],
            FP32,
            augment=augment,
            seed=derive_seed(0, step),
            learning_rate=lambda _: learning_rate,
        )
        losses.append(counts.ratios("train")["train_loss"])
    return losses


# Steps are small because processors round differently. At the recipe's own rate GlyphVGG turns a difference of 1e-7 in
# its weights into one of a tenth of the loss within five steps. At these rates weights off by 2e-7 change losses by
# 5e-5 (GlyphVGG) and 1e-6 (MultiHeadCNN) of themselves, and no learning at all changes them by 3e-3 and by 0.2.


def test_twenty_steps_of_glyph_vgg_lose_what_they_lost_when_this_was_written() -> None:
    losses = losses_of_training(wmail(), "0123456789", learning_rate=1e-5)
    assert losses == pytest.approx(GOLDEN_GLYPH_VGG, rel=5e-4)


def test_twenty_steps_of_multi_head_cnn_lose_what_they_lost_when_this_was_written() -> None:
    losses = losses_of_training(isfahan(), "23456789bcdefgmnpwxy", learning_rate=2e-5)
    assert losses == pytest.approx(GOLDEN_MULTI_HEAD, rel=1e-3)


GOLDEN_GLYPH_VGG = [
    2.39576,
    2.60178,
    2.74664,
    2.39560,
    2.59415,
    2.64657,
    2.43477,
    2.89077,
    2.61602,
    2.29823,
    2.70073,
    2.65500,
    2.75756,
    2.26533,
    2.59642,
    2.77833,
    2.53327,
    3.15309,
    2.75410,
    2.58577,
]
GOLDEN_MULTI_HEAD = [
    15.50581,
    15.06436,
    15.01824,
    14.80980,
    14.79562,
    14.84624,
    14.38858,
    14.15920,
    14.03928,
    14.04310,
    13.84549,
    13.73169,
    13.62843,
    13.51840,
    13.20414,
    13.42196,
    13.16293,
    13.12574,
    12.95220,
    12.80897,
]


# ------------------------------------------------------------------------------------------------------------ workers


def trained_gradient(items: list[Batch], world_size: int) -> tuple[torch.Tensor, EpochCounts]:
    """Return what the optimizer is given in the last step, and the counts; the step itself moves nothing."""
    model = linear_model(TINY)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    counts, waited_s = loop.train_epoch(
        model,
        optimizer,
        iter(items),
        FP32,
        augment=STILL,
        seed=0,
        world_size=world_size,
        learning_rate=lambda _: 0.0,
    )
    assert waited_s >= 0
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), counts


def test_training_counts_what_the_network_says_before_its_step() -> None:
    images, targets = labelled(TINY, 40)
    model = linear_model(TINY)
    said = model(FP32.to_input(batch(images, targets).images)).argmax(2)
    right = said[:30].numpy()
    truths = np.concatenate([right, (right[:10] + 1) % 3])  # whatever it says, three of four are right
    _, counts = trained_gradient([batch(images[[*range(30), *range(10)]], truths)], 1)
    assert counts.sums[[0, 2, 3, 4]].tolist() == [40, 30, 30, 30]


@pytest.mark.parametrize("cut", [1, 3, 5, 9])
def test_mean_gradient_of_uneven_workers_is_that_of_one_worker_over_all_images(cut: int) -> None:
    images, targets = labelled(TINY, 10)
    whole, counts = trained_gradient([batch(images, targets)], 1)
    parts = [
        trained_gradient([batch(images[rows], targets[rows], 10)], 2) for rows in (slice(None, cut), slice(cut, None))
    ]
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole)
    assert whole.abs().max() > 1e-3
    np.testing.assert_allclose(parts[0][1].sums + parts[1][1].sums, counts.sums, rtol=1e-6)


def test_counts_of_uneven_workers_add_up_to_those_of_one_and_are_no_mean_of_means() -> None:
    images, targets = labelled(TINY, 9)
    model = linear_model(TINY)
    one = loop.evaluate(model, [batch(images, targets)], FP32)
    few = loop.evaluate(model, [batch(images[:2], targets[:2])], FP32)
    many = loop.evaluate(model, [batch(images[2:5], targets[2:5]), batch(images[5:], targets[5:])], FP32)
    together = EpochCounts(few.sums + many.sums).ratios("val")
    np.testing.assert_allclose(few.sums + many.sums, one.sums, rtol=1e-6)
    mean_of_means = (few.ratios("val")["val_loss"] + many.ratios("val")["val_loss"]) / 2
    assert together["val_loss"] != pytest.approx(mean_of_means, rel=1e-3)


def test_ratios_are_those_of_the_sums() -> None:
    """Eight images: 12 nats, 3 whole strings, in the two slots 4 and 3 characters right of 8 and 4."""
    assert EpochCounts(np.array([8.0, 12.0, 3.0, 4.0, 3.0, 8.0, 4.0])).ratios("val") == {
        "val_loss": 1.5,
        "val_char_accuracy": 7 / 12,
        "val_exact_match": 0.375,
        "val_position_accuracy": [0.5, 0.75],
    }


class Said(Network):
    """Says what it is told of each image, classes (N, S), whatever the image."""

    def __init__(self, num_characters: int, said: list[list[int]]) -> None:
        super().__init__(num_characters)
        self._said = torch.tensor(said)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(self._said, self.num_characters + 1) * 10.0


def test_characters_count_as_in_the_test_without_the_ends_of_texts() -> None:
    """Classes 0 to 2 are a to c, 3 is the end: said are "ab", "a" and then a c behind the end, "", "abc"."""
    said = [[0, 1, 3], [0, 3, 2], [3, 0, 0], [0, 1, 2]]
    truths = [[0, 1, 3], [0, 1, 2], [0, 3, 3], [0, 1, 3]]
    images = np.zeros((4, 1, 1, 1), np.uint8)
    found = loop.evaluate(Said(3, said), [batch(images, np.array(truths))], FP32).ratios("val")
    summary = PredictionCounts.of("abc", ["ab", "abc", "a", "ab"], ["ab", "a", "", "abc"], [0.0] * 4).summary()
    assert (found["val_char_accuracy"], found["val_exact_match"]) == (5 / 8, 1 / 4)
    assert found["val_char_accuracy"] == summary["char_accuracy"]
    assert found["val_exact_match"] == summary["exact_match"]
    assert found["val_position_accuracy"] == summary["position_accuracy"] == [3 / 4, 2 / 3, 0.0]


def test_a_position_that_no_text_has_has_no_accuracy() -> None:
    images = np.zeros((1, 1, 1, 1), np.uint8)
    found = loop.evaluate(Said(3, [[0, 3, 3]]), [batch(images, np.array([[0, 3, 3]]))], FP32).ratios("val")
    assert found["val_char_accuracy"] == 1
    assert np.isnan(found["val_position_accuracy"][1:]).all()


def test_classes_are_counted_by_slot() -> None:
    feed = EpochFeed(np.zeros((3, 1, 1, 1), np.uint8), np.array([[0, 1], [0, 2], [1, 3]]), [3], 0, 2)
    assert feed.count_classes(4).tolist() == [[2, 1, 0, 0], [0, 1, 1, 1]]


def test_a_string_counts_only_if_all_its_characters_are_right() -> None:
    """The network always answers (a, b)."""
    model = linear_model(TINY)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        dict(model.named_parameters())["layers.3.bias"].copy_(torch.tensor([5.0, 0, 0, 0, 5.0, 0]))
    images, _ = labelled(TINY, 4)
    counts = loop.evaluate(model, [batch(images, np.array([[0, 1], [0, 2], [1, 1], [0, 1]]))], FP32)
    assert counts.sums[[0, 2, 3, 4]].tolist() == [4, 2, 3, 3]


def test_a_worker_without_images_in_a_step_adds_nothing() -> None:
    images, targets = labelled(TINY, 3)
    model = new_model(TINY)
    full = loop.evaluate(model, [batch(images, targets)], FP32)
    with_empty = loop.evaluate(model, [batch(images, targets), batch(images[:0], targets[:0])], FP32)
    assert with_empty.sums.tolist() == full.sums.tolist()


def test_evaluation_uses_neither_dropout_nor_the_batchs_statistics() -> None:
    images, targets = labelled(TINY, 8)
    model = new_model(TINY)
    whole = loop.evaluate(model, [batch(images, targets)], FP32)
    singly = loop.evaluate(model, [batch(images[i : i + 1], targets[i : i + 1]) for i in range(8)], FP32)
    np.testing.assert_allclose(singly.sums, whole.sums, rtol=1e-5)
    assert not model.training


def test_every_step_is_announced_with_its_number_and_images_and_gets_its_learning_rate() -> None:
    images, targets = labelled(TINY, 10)
    model = linear_model(TINY)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    announced: list[tuple[int, int]] = []
    rates: list[float] = []

    def on_step(step: int, number: int, position: Callable[[], loop.Position]) -> None:
        assert position().step == step + 1
        announced.append((step, number))
        rates.append(optimizer.param_groups[0]["lr"])

    feed = EpochFeed(images, targets, [10], 0, 4)
    loop.train_epoch(
        model,
        optimizer,
        feed.epoch(0),
        FP32,
        augment=STILL,
        seed=0,
        learning_rate=lambda step: 0.1 / (step + 1),
        on_step=on_step,
    )
    assert announced == [(0, 3), (1, 3), (2, 4)]
    assert rates == [0.1, 0.05, 0.1 / 3]


def test_an_epoch_that_goes_on_counts_what_was_before() -> None:
    images, targets = labelled(TINY, 10)
    model = linear_model(TINY)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen: list[loop.Position] = []
    begin = loop.Position(1, np.arange(3 + 2 * targets.shape[1], dtype=np.float64) + 7, waited_s=50.0, seconds=100.0)
    counts, waited_s = loop.train_epoch(
        model,
        optimizer,
        EpochFeed(images, targets, [10], 0, 4).epoch(0, 1),
        FP32,
        augment=STILL,
        seed=0,
        learning_rate=lambda step: 0.1,
        begin=begin,
        on_step=lambda step, number, position: seen.append(position()),
    )
    assert counts.num_images == 7 + 7, "3, 3 and 4 images a step"
    assert [position.step for position in seen] == [2, 3]
    assert waited_s >= seen[-1].waited_s > 50
    assert 100 < seen[0].seconds < seen[1].seconds


def test_the_seed_of_an_epoch_decides_dropout_and_augmentation() -> None:
    def loss(seed: int) -> float:
        model = new_model(TINY)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        items = [batch(*labelled(TINY, 6))]
        counts, _ = loop.train_epoch(
            model, optimizer, items, FP32, augment=Augment(Affine(9)), seed=seed, learning_rate=lambda _: 0.1
        )
        return float(counts.sums[1])

    assert loss(1) == loss(1) != loss(2)
