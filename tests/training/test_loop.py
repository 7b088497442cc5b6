"""Training arithmetic: losses, feeds, gradients over uneven workers, sums over workers, and exact continuation."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from captcha_ray.errors import InputError
from captcha_ray.image_spec import ImageSpec
from captcha_ray.metrics.counts import PredictionCounts
from captcha_ray.models.device import Arithmetic, has_fast_bf16, keep_freed_memory
from captcha_ray.models.networks import Network, build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.recipes.catalog import isfahan, wmail
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.training import loop
from captcha_ray.training.augment import Affine
from captcha_ray.training.batches import Batch, EpochFeed, derive_seed
from captcha_ray.training.loop import EpochCounts
from captcha_ray.training.optim import build_optimizer
from captcha_ray.training.state import load_state, save_state

CPU = torch.device("cpu")
FP32 = Arithmetic(CPU, bf16=False)
STILL = Affine()
TINY = ModelSpec(network="multi_head_cnn", image=ImageSpec(height=10, width=12), charset="abc", max_length=2)
Images = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def labelled(spec: ModelSpec, n: int, seed: int = 0) -> Images:
    """Images whose character k of slot s is a bright row at height (3 k + s) of that slot's columns, in noise."""
    rng = np.random.default_rng(seed)
    height, width, channels = spec.image.shape
    targets = rng.integers(0, len(spec.charset), (n, spec.max_length))
    images = rng.integers(0, 100, (n, height, width, channels), np.uint8)
    side = width // spec.max_length
    for image, row in zip(images, targets, strict=True):
        for position, character in enumerate(row):
            image[(3 * character + position) % height, position * side : (position + 1) * side] = 255
    return images, targets


def batch(images: npt.NDArray[np.uint8], targets: npt.NDArray[np.int64], step_images: int | None = None) -> Batch:
    return Batch(torch.from_numpy(images), torch.from_numpy(targets), step_images or len(images))


class Plain(Network):
    """Layers one after another; neither batch normalization nor dropout."""

    def __init__(self, num_characters: int, *layers: nn.Module) -> None:
        super().__init__(num_characters)
        self.layers = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layers(images)
        return outputs


def new_model(spec: ModelSpec, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build_model(spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


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
    augment = Affine(config.rotation_degrees, config.shift_fraction, config.shear_degrees, config.zoom_fraction)
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


# -------------------------------------------------------------------------------------------------------------- feeds

shares = st.integers(1, 4).flatmap(
    lambda world: st.tuples(st.integers(world, 60), st.just(world), st.integers(1, 20), st.integers(0, 2**32))
)


def feeds(n: int, world: int, batch_size: int) -> list[EpochFeed]:
    """One per worker; an image's only pixel and its target are its number."""
    numbers = np.arange(n)
    counts = [len(numbers[rank::world]) for rank in range(world)]
    return [
        EpochFeed(
            numbers[rank::world].astype(np.uint8).reshape(-1, 1, 1, 1),
            numbers[rank::world, None],
            counts,
            rank,
            batch_size,
        )
        for rank in range(world)
    ]


def numbers_of(batches: Iterator[Batch]) -> list[list[int]]:
    """The images of each batch, whose pixels and targets must belong together."""
    result = []
    for item in batches:
        assert torch.equal(item.images.flatten().long(), item.targets.flatten())
        result.append(item.targets.flatten().tolist())
    return result


@given(shares)
def test_every_image_is_seen_exactly_once_an_epoch(share: tuple[int, int, int, int]) -> None:
    n, world, batch_size, seed = share
    for order in (seed, None):
        seen = [x for feed in feeds(n, world, batch_size) for part in numbers_of(feed.epoch(order)) for x in part]
        assert sorted(seen) == list(range(n))


@given(shares)
def test_workers_make_the_same_number_of_nearly_equal_steps_no_larger_than_asked(
    share: tuple[int, int, int, int],
) -> None:
    n, world, batch_size, seed = share
    cut = [[len(part) for part in numbers_of(feed.epoch(seed))] for feed in feeds(n, world, batch_size)]
    assert {len(sizes) for sizes in cut} == {math.ceil(math.ceil(n / world) / batch_size)}
    for sizes in cut:
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size
    smallest = min(min(sizes) for sizes in cut)
    assert {feed.smallest_batch for feed in feeds(n, world, batch_size)} == {smallest}


@given(shares)
def test_a_step_knows_its_images_over_all_workers(share: tuple[int, int, int, int]) -> None:
    n, world, batch_size, seed = share
    every = [list(feed.epoch(seed)) for feed in feeds(n, world, batch_size)]
    for together in zip(*every, strict=True):
        assert {item.step_images for item in together} == {sum(len(item.images) for item in together)}


def test_a_seed_gives_an_order_and_another_seed_another() -> None:
    feed = feeds(40, 1, 8)[0]
    assert numbers_of(feed.epoch(1)) == numbers_of(feed.epoch(1)) != numbers_of(feed.epoch(2))
    assert [x for part in numbers_of(feed.epoch(None)) for x in part] == list(range(40))


# ------------------------------------------------------------------------------------------------------------ workers


def trained_gradient(items: list[Batch], world_size: int) -> tuple[torch.Tensor, EpochCounts]:
    """What the optimizer is given in the last step, and the counts; the step itself moves nothing."""
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

    def on_step(step: int, number: int) -> None:
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


# --------------------------------------------------------------------------------------------------------- optimizers


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
                augment=Affine(5, 0.1, 5, 0.1),
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


# -------------------------------------------------------------------------------------------------- seeds, arithmetic


def test_derived_seeds_are_the_same_everywhere() -> None:
    assert [derive_seed(*parts) for parts in GOLDEN_SEEDS] == list(GOLDEN_SEEDS.values())


GOLDEN_SEEDS = {
    (0,): 7896617691693857887,
    (1,): 3717377837946358015,
    (0, 1, 0, 0): 2918264622725855778,
    (0, 1, 0, 1): 1039618548874032360,
    (7, 75, 3, 1): 327730293801805370,
}


def test_derived_seeds_of_different_parts_differ_and_fit_63_bits() -> None:
    parts = [
        (seed, epoch, rank, use) for seed in range(3) for epoch in range(20) for rank in range(8) for use in (0, 1)
    ]
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_the_seed_of_an_epoch_decides_dropout_and_augmentation() -> None:
    def loss(seed: int) -> float:
        model = new_model(TINY)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        items = [batch(*labelled(TINY, 6))]
        counts, _ = loop.train_epoch(
            model, optimizer, items, FP32, augment=Affine(9), seed=seed, learning_rate=lambda _: 0.1
        )
        return float(counts.sums[1])

    assert loss(1) == loss(1) != loss(2)


def test_arithmetic_is_as_precise_as_asked_and_auto_follows_the_processor() -> None:
    assert not Arithmetic.choose(CPU, "fp32").bf16
    assert Arithmetic.choose(CPU, "bf16").bf16
    assert Arithmetic.choose(CPU, "auto").bf16 == has_fast_bf16(CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what is said where there is no GPU")
def test_bf16_on_a_gpu_that_has_none_is_refused() -> None:
    with pytest.raises(InputError, match="needs a GPU that computes in bf16; use fp32"):
        Arithmetic.choose(torch.device("cuda"), "bf16")


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_products_are_computed_in_the_chosen_precision_and_losses_in_fp32(bf16: bool, dtype: torch.dtype) -> None:
    with Arithmetic(CPU, bf16).autocast():
        logits = nn.Linear(4, 6)(torch.ones(2, 4)).reshape(2, 2, 3)
    assert logits.dtype == dtype
    assert Network(3).losses(logits, torch.zeros((2, 2), dtype=torch.int64)).dtype == torch.float32


def test_pixels_become_channels_first_from_zero_to_one() -> None:
    pixels = torch.tensor([[[[0, 51, 255]], [[102, 0, 0]]]], dtype=torch.uint8)  # (1, 2, 1, 3)
    made = FP32.to_input(pixels)
    assert made.shape == (1, 3, 2, 1)
    torch.testing.assert_close(made[0, :, :, 0], torch.tensor([[0, 0.4], [0.2, 0], [1, 0]]))
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_keeping_freed_memory_is_harmless_however_often() -> None:
    keep_freed_memory()
    keep_freed_memory()
    assert torch.ones(1 << 22).sum() == 1 << 22
