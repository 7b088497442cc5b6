"""The networks: their parameters counted by hand, their layers in order, and the specs that describe them."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from captcha_ray.errors import InputError
from captcha_ray.images.spec import ImageSpec
from captcha_ray.models.ctc import uniform_alignment_loss
from captcha_ray.models.fingerprint import fingerprint
from captcha_ray.models.networks import MaxPool, build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.recipes.config import TrainConfig

DIGITS = ModelSpec(network="glyph_vgg", image=ImageSpec(height=60, width=18), charset="0123456789", max_length=1)
TEXT5 = ModelSpec(
    network="multi_head_cnn",
    image=ImageSpec(height=50, width=200),
    charset="0123456789abcdefghijklmnopqrstuvwxyz",
    max_length=5,
)
COLUMNS = dataclasses.replace(TEXT5, network="column_cnn", charset="2345678bcdefgmnpwxy")


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def outline(module: nn.Module) -> list[str]:
    """One word per layer, in order."""
    words = []
    for layer in module.modules():
        match layer:
            case nn.Conv2d():
                assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
                words.append(f"conv{layer.in_channels}-{layer.out_channels}")
            case nn.Linear():
                words.append(f"dense{layer.in_features}-{layer.out_features}")
            case nn.BatchNorm2d() | nn.BatchNorm1d():
                words.append(f"norm{layer.num_features}")
            case nn.MaxPool2d():
                assert layer.kernel_size == 2
                words.append("pool-ceil" if layer.ceil_mode else "pool")
            case nn.Dropout():
                words.append(f"drop{layer.p:g}")
            case nn.ReLU():
                words.append("relu")
            case nn.Flatten():
                words.append("flat")
            case _:
                assert list(layer.children()), f"unknown layer {layer}"
    return words


def test_glyph_vgg_has_the_parameters_of_its_layers() -> None:
    convolutions = (
        (9 * 1 + 1) * 32  # 320
        + (9 * 32 + 1) * 64  # 18,496
        + (9 * 64 + 1) * 64  # 36,928
        + (9 * 64 + 1) * 128  # 73,856
        + 2 * (9 * 128 + 1) * 128  # 295,168
    )
    norms = 2 * (32 + 64 + 64 + 128 + 128 + 128)  # scale and offset per channel
    flat = 128 * 7 * 2  # 60 -> 30 -> 15 -> 7 rows, 18 -> 9 -> 4 -> 2 columns
    dense = (flat + 1) * 512 + 2 * 512 + (512 + 1) * 10
    assert (convolutions, norms, flat, dense) == (424_768, 1088, 1792, 924_170)
    assert num_parameters(build_model(DIGITS)) == convolutions + norms + dense == 1_350_026


def test_multi_head_cnn_has_the_parameters_of_its_layers() -> None:
    convolutions = (9 * 1 + 1) * 16 + (9 * 16 + 1) * 32 + (9 * 32 + 1) * 32  # 160 + 4,640 + 9,248
    norm = 2 * 32
    flat = 32 * 7 * 25  # 50 -> 25 -> 13 -> 7 rows, 200 -> 100 -> 50 -> 25 columns
    head = (flat + 1) * 64 + (64 + 1) * 36  # 358,464 + 2,340
    assert num_parameters(build_model(TEXT5)) == convolutions + norm + 5 * head == 1_818_132


def test_glyph_vgg_is_blocks_of_one_two_and_three_convolutions_and_a_dense_layer() -> None:
    assert " ".join(outline(build_model(DIGITS))) == (
        "conv1-32 relu norm32 pool drop0.25 "
        "conv32-64 relu norm64 conv64-64 relu norm64 pool drop0.25 "
        "conv64-128 relu norm128 conv128-128 relu norm128 conv128-128 relu norm128 pool drop0.25 "
        "flat dense1792-512 relu norm512 drop0.5 dense512-10"
    )


def test_multi_head_cnn_is_three_convolutions_and_a_head_per_character() -> None:
    assert " ".join(outline(build_model(TEXT5))) == (
        "conv1-16 pool-ceil relu conv16-32 pool-ceil relu conv32-32 relu norm32 pool-ceil flat"
        + 5 * " dense5600-64 relu drop0.5 dense64-36"
    )


@pytest.mark.parametrize("size", [(50, 200), (25, 13), (1, 8), (7, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_max_pooling_is_that_of_torch(size: tuple[int, int], dtype: torch.dtype) -> None:
    maps = torch.randn((3, 16, *size)).to(dtype, memory_format=torch.channels_last)
    maps[0, :, 0, 0] = torch.nan
    wanted = nn.MaxPool2d(2, ceil_mode=True)(maps)
    with torch.no_grad():
        pooled = MaxPool()(maps)
    assert torch.equal(pooled.isnan(), wanted.isnan())
    assert torch.equal(pooled.nan_to_num(), wanted.nan_to_num())
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    learned, expected = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    MaxPool()(learned).float().sum().backward()
    nn.MaxPool2d(2, ceil_mode=True)(expected).float().sum().backward()
    assert learned.grad is not None
    assert expected.grad is not None
    assert torch.equal(learned.grad, expected.grad)


def test_dropout_of_the_spec_is_that_of_the_layers() -> None:
    assert "drop0.1" in outline(build_model(dataclasses.replace(DIGITS, dropout=0.2)))
    assert "drop0.2" in outline(build_model(dataclasses.replace(DIGITS, dropout=0.2)))
    assert outline(build_model(dataclasses.replace(TEXT5, dropout=0.3))).count("drop0.3") == 5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 15), (17, 23), (31, 8), (60, 18)])
def test_glyph_vgg_gives_one_slot_for_any_size_from_eight_pixels(height: int, width: int, channels: int) -> None:
    image = ImageSpec(height=height, width=width, channels=channels)
    model = build_model(dataclasses.replace(DIGITS, image=image)).eval()
    assert model(torch.rand(3, channels, height, width)).shape == (3, 1, 10)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (9, 33), (50, 200)])
def test_multi_head_cnn_gives_its_slots_for_any_size(height: int, width: int, channels: int) -> None:
    image = ImageSpec(height=height, width=width, channels=channels)
    model = build_model(dataclasses.replace(TEXT5, image=image, max_length=3)).eval()
    assert model(torch.rand(2, channels, height, width)).shape == (2, 3, 36)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "max_length", "columns"),
    [(50, 200, 5, 50), (30, 70, 4, 17), (25, 80, 5, 20), (7, 15, 1, 4), (30, 15, 2, 8)],
)
def test_column_cnn_gives_a_row_of_columns_for_any_size(
    height: int, width: int, max_length: int, columns: int, channels: int
) -> None:
    image = ImageSpec(height=height, width=width, channels=channels)
    model = build_model(dataclasses.replace(COLUMNS, image=image, max_length=max_length)).eval()
    outputs = model(torch.rand(2, channels, height, width))
    assert outputs.shape == (2, columns, 20)
    assert model.log_probabilities(outputs).shape == (2, max_length, 19)


def test_column_cnn_has_fewer_parameters_than_half_a_million() -> None:
    convolutions = 25 * 32 + 9 * (32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + (6 + 3) * 128 * 128
    norms = 2 * (2 * 32 + 2 * 64 + 4 * 128)
    assert num_parameters(build_model(COLUMNS)) == convolutions + norms + 129 * 20 == 437_940


def test_a_column_sees_a_character_and_a_half_and_no_more() -> None:
    model = build_model(COLUMNS).eval()
    images = torch.rand(1, 1, 50, 200)
    changed = images.clone()
    changed[..., 100:] = 0
    seen = (model(images) != model(changed)).any(2)[0].nonzero().flatten()
    assert 25 - 8 < seen.min() <= 25


@pytest.mark.parametrize("filters", [3, 257])
def test_too_few_or_too_many_filters_are_refused(filters: int) -> None:
    with pytest.raises(InputError, match=f"filters is {filters}; it must be 4 to 256"):
        dataclasses.replace(COLUMNS, filters=filters)
    with pytest.raises(InputError, match=f"filters is {filters}; it must be 4 to 256"):
        TrainConfig(filters=filters)


@pytest.mark.parametrize("width", [*range(4, 60), 199, 200])
def test_column_cnn_takes_as_many_characters_as_an_image_is_said_to_hold(width: int) -> None:
    spec = dataclasses.replace(COLUMNS, image=ImageSpec(height=16, width=width))
    most = spec.image.most_characters
    with torch.device("meta"):
        build_model(dataclasses.replace(spec, max_length=most))
        with pytest.raises(InputError, match=f"column_cnn recognizes {most + 1} characters in images of at least"):
            build_model(dataclasses.replace(spec, max_length=most + 1))


def work(spec: ModelSpec) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build_model(spec).eval()(torch.zeros(1, 1, spec.image.height, spec.image.width))
    return int(counter.get_total_flops())


def test_a_deep_head_takes_a_quarter_more_work_and_is_part_of_the_identity() -> None:
    light = dataclasses.replace(COLUMNS, filters=16)
    deep = dataclasses.replace(light, head="deep")
    assert work(deep) / work(light) == pytest.approx(1.27, abs=0.01)
    assert work(deep) < 90e6
    assert num_parameters(build_model(deep)) == 291_492
    assert fingerprint(deep, b"") != fingerprint(light, b"")
    before = {name: value for name, value in light.to_dict().items() if name != "head"}
    assert ModelSpec.from_dict(before) == light, "a checkpoint from before there was a choice"


def test_half_the_filters_take_a_quarter_of_the_work_and_are_part_of_the_identity() -> None:
    half = dataclasses.replace(COLUMNS, filters=16)
    assert work(half) / work(COLUMNS) == pytest.approx(0.25, abs=0.01)
    assert fingerprint(half, b"") != fingerprint(COLUMNS, b"")
    before = {name: value for name, value in COLUMNS.to_dict().items() if name != "filters"}
    assert ModelSpec.from_dict(before) == COLUMNS, "a checkpoint from before there was a choice"


def test_column_cnn_reads_fewer_characters_where_it_is_told_to() -> None:
    model = build_model(dataclasses.replace(COLUMNS, variable=True)).eval()
    outputs = torch.full((1, 50, 20), -9.0)
    outputs[:, :, 19] = 9  # blank, but for two columns
    outputs[:, 10, 4] = outputs[:, 30, 7] = 20
    assert model.log_probabilities(outputs).argmax(2).tolist() == [[4, 7, 19, 19, 19]]
    targets = torch.tensor([[4, 7, 19, 19, 19]])
    assert model.losses(outputs, targets).item() == pytest.approx(0, abs=1e-3)
    assert model.losses(outputs, torch.tensor([[4, 7, 7, 19, 19]])).item() > 10


def test_guidance_is_the_share_of_the_loss_of_evenly_spaced_characters() -> None:
    torch.manual_seed(0)
    model = build_model(COLUMNS).eval()
    outputs, targets = model(torch.rand(3, 1, 50, 200)), torch.randint(0, 19, (3, 5))
    alone, told, half = (model.loss_pair(outputs, targets, alignment_prior=share)[1] for share in (0.0, 1.0, 0.5))
    lengths = torch.full((3,), 5)
    assert torch.allclose(told, uniform_alignment_loss(outputs.log_softmax(2), targets, lengths))
    assert torch.allclose(half, (alone + told) / 2)
    assert not torch.allclose(alone, told, rtol=0.05)


@pytest.mark.parametrize(("width", "height", "max_length"), [(70, 6, 4), (13, 30, 5)])
def test_column_cnn_refuses_images_that_are_too_small(width: int, height: int, max_length: int) -> None:
    image = ImageSpec(height=height, width=width)
    with pytest.raises(InputError, match=f"column_cnn recognizes {max_length} characters in images of at least"):
        build_model(dataclasses.replace(COLUMNS, image=image, max_length=max_length))


def test_heads_answer_independently_of_one_another() -> None:
    model = build_model(TEXT5).eval()
    images = torch.rand(2, 1, 50, 200)
    before = model(images)
    with torch.no_grad():
        dict(model.named_parameters())["heads.3.3.bias"] += 1
    changed = (model(images) != before).flatten(2).any(2).any(0)
    assert changed.tolist() == [False, False, False, True, False]


def test_a_seed_gives_the_same_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build_model(DIGITS).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_length": 2}, "glyph_vgg recognizes one character an image, not 2"),
        ({"image": ImageSpec(height=60, width=7)}, "at least 8x8 pixels, not 7x60x1"),
        ({"image": ImageSpec(height=7, width=60)}, "at least 8x8 pixels, not 60x7x1"),
    ],
)
def test_glyph_vgg_refuses_images_it_cannot_read(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        build_model(dataclasses.replace(DIGITS, **change))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"network": "resnet"}, "network is 'resnet'; known are glyph_vgg, multi_head_cnn"),
        ({"network": "auto"}, "network is 'auto'; known are glyph_vgg, multi_head_cnn"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be finite and above 0"),
        ({"charset": ""}, "the charset is empty"),
        ({"charset": "aba"}, "holds a character twice"),
        ({"max_length": 0}, "max_length is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_a_spec_of_no_network_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        dataclasses.replace(TEXT5, **change)


@pytest.mark.parametrize("spec", [DIGITS, TEXT5])
def test_a_spec_comes_back_from_json(spec: ModelSpec) -> None:
    image = dataclasses.replace(spec.image, denoise=3, binarize=True)
    spec = dataclasses.replace(spec, image=image, charset="zäß", dropout=0.125)
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_spec_without_an_image_or_with_an_unknown_field_is_refused() -> None:
    values = TEXT5.to_dict()
    with pytest.raises(InputError, match="no image size"):
        ModelSpec.from_dict({**values, "image": None})
    with pytest.raises(InputError, match="did you mean 'max_length'"):
        ModelSpec.from_dict({**values, "max_lenght": 5})


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ([9, 1, 1, 9, 2, 9, 9, 9], [1, 2, 9]),  # equal neighbors are one character
        ([1, 9, 1, 9, 9, 9, 9, 2], [1, 1, 2]),  # but with a blank between they are two
        ([1, 2, 9, 1, 9, 9, 9, 9], [1, 2, 1]),
        ([9] * 8, [9, 9, 9]),
        ([1, 2, 1, 2, 9, 9, 9, 9], [1, 2, -1]),  # longer than any text may be, so it cannot be right
    ],
)
def test_greedy_texts_of_columns_are_those_of_the_best_path(path: list[int], text: list[int]) -> None:
    network = build_model(dataclasses.replace(COLUMNS, charset="abcdefghi", max_length=3, variable=True))
    outputs = torch.nn.functional.one_hot(torch.tensor([path, [9] * 8]), 10).float()
    assert network.greedy(outputs).tolist() == [text, [9, 9, 9]]


def test_greedy_texts_are_those_of_the_likeliest_classes_elsewhere() -> None:
    assert build_model(DIGITS).greedy(torch.tensor([[[0.1, 0.7, 0.2]]])).tolist() == [[1]]
