"""Networks that begin with the weights of others: what both know is kept, whatever the alphabet and the size."""

import dataclasses
from pathlib import Path

import pytest
import torch

from captcha_ray.errors import InputError
from captcha_ray.images.spec import ImageSpec
from captcha_ray.models import checkpoint
from captcha_ray.models.networks import Network, build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.models.transfer import begin_with, check_source, keep_classes, known_unseen

SOURCE = ModelSpec(
    network="column_cnn", image=ImageSpec(height=48, width=96), charset="0123ab", max_length=4, filters=4, variable=True
)


@pytest.fixture
def source(tmp_path: Path) -> tuple[str, Network]:
    torch.manual_seed(1)
    network = build_model(SOURCE)
    for _ in range(3):  # batch normalization gets statistics of its own
        network(torch.rand(4, 1, 48, 96))
    checkpoint.save_model(str(tmp_path / "source"), network, SOURCE)
    return str(tmp_path / "source"), network.eval()


def begun(uri: str, spec: ModelSpec) -> Network:
    torch.manual_seed(2)
    network = build_model(spec)
    begin_with(network, spec, uri)
    return network.eval()


def test_the_same_network_gives_the_same_outputs(source: tuple[str, Network]) -> None:
    uri, network = source
    images = torch.rand(2, 1, 48, 96)
    assert torch.equal(begun(uri, SOURCE)(images), network(images))


def test_shared_characters_and_the_blank_keep_their_outputs_in_another_alphabet(source: tuple[str, Network]) -> None:
    uri, network = source
    images = torch.rand(2, 1, 48, 96)
    outputs = begun(uri, dataclasses.replace(SOURCE, charset="3xb0", max_length=2, variable=False))(images)
    assert torch.equal(outputs[:, :, [0, 2, 3, 4]], network(images)[:, :, [3, 5, 0, 6]])
    assert not torch.isclose(outputs[:, :, 1:2], network(images)).all(1).any()  # x is new


def test_a_deep_head_begins_with_a_deep_one(tmp_path: Path) -> None:
    spec = dataclasses.replace(SOURCE, head="deep")
    network = build_model(spec).eval()
    checkpoint.save_model(str(tmp_path), network, spec)
    images = torch.rand(2, 1, 48, 96)
    outputs = begun(str(tmp_path), dataclasses.replace(spec, charset="3xb0", max_length=2, variable=False))(images)
    assert torch.equal(outputs[:, :, [0, 2, 3, 4]], network(images)[:, :, [3, 5, 0, 6]])
    with pytest.raises(InputError, match="has a deep head; pass --head deep to begin with its weights"):
        check_source(SOURCE, str(tmp_path))


def test_colors_of_gray_images_give_the_same_outputs(source: tuple[str, Network]) -> None:
    uri, network = source
    images = torch.rand(2, 1, 48, 96)
    in_color = begun(uri, dataclasses.replace(SOURCE, image=ImageSpec(height=48, width=96, channels=3)))
    torch.testing.assert_close(in_color(images.expand(-1, 3, -1, -1)), network(images))


def test_a_network_for_colors_serves_gray_images(tmp_path: Path) -> None:
    spec = dataclasses.replace(SOURCE, image=ImageSpec(height=48, width=96, channels=3))
    network = build_model(spec).eval()
    checkpoint.save_model(str(tmp_path), network, spec)
    images = torch.rand(2, 1, 48, 96)
    gray = begun(str(tmp_path), SOURCE)
    torch.testing.assert_close(gray(images), network(images.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(("height", "width"), [(24, 96), (64, 200), (7, 30)])
def test_other_heights_sum_up_alike_over_the_height(source: tuple[str, Network], height: int, width: int) -> None:
    uri, network = source
    other = begun(uri, dataclasses.replace(SOURCE, image=ImageSpec(height=height, width=width)))
    weight, there = other.get_parameter("columns.0.weight"), network.get_parameter("columns.0.weight")
    torch.testing.assert_close(weight.sum(2), there.sum(2), rtol=1e-4, atol=1e-5)
    assert other(torch.rand(1, 1, height, width)).isfinite().all()


def test_what_does_not_fit_is_refused_in_a_sentence(source: tuple[str, Network], tmp_path: Path) -> None:
    uri, _ = source
    with pytest.raises(InputError, match="has 4 filters; pass --filters 4 to begin with its weights"):
        check_source(dataclasses.replace(SOURCE, filters=8), uri)
    with pytest.raises(InputError, match="only column_cnn begins with weights of a column_cnn; this is multi_head_cnn"):
        check_source(dataclasses.replace(SOURCE, network="multi_head_cnn", variable=False), uri)
    with pytest.raises(InputError, match="holds no checkpoint"):
        check_source(SOURCE, str(tmp_path / "nothing"))


def test_what_no_image_shows_keeps_its_weights_until_all_are_trained(source: tuple[str, Network]) -> None:
    uri, _ = source
    network = begun(uri, SOURCE).train()
    end = keep_classes(network, [1, 4])
    optimizer = torch.optim.Adam(network.parameters(), 0.1)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}

    def step() -> None:
        optimizer.zero_grad()
        network.losses(network(torch.rand(4, 1, 48, 96)), torch.tensor([[0, 2, 3, 5]] * 4)).sum().backward()
        optimizer.step()

    step()
    for name, parameter in network.named_parameters():
        same = (parameter == before[name]).flatten(1).all(1) if parameter.dim() > 1 else parameter == before[name]
        expected = [1, 4] if name.startswith("columns.7.") else []
        assert torch.flatten(torch.nonzero(same)).tolist() == expected, name
    end()
    step()
    assert not (network.columns[7].bias == before["columns.7.bias"]).any()  # type: ignore[index, union-attr]


def test_characters_that_nobody_knows_are_trained_though_no_image_shows_them(source: tuple[str, Network]) -> None:
    spec = dataclasses.replace(SOURCE, charset="3xb0")
    assert known_unseen(spec, source[0], [True, False, False, True]) == [2]
