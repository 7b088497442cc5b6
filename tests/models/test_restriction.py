"""Networks that are told which characters there are, and how many: the rest of their outputs is left out."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch

from captcha_ray.errors import InputError
from captcha_ray.images.spec import ImageSpec
from captcha_ray.models import checkpoint
from captcha_ray.models.networks import build_model
from captcha_ray.models.restriction import WHOLE, Restriction
from captcha_ray.models.spec import ModelSpec
from captcha_ray.recognizer import Recognizer

SPEC = ModelSpec(
    network="column_cnn", image=ImageSpec(height=16, width=48), charset="0123ab", max_length=4, filters=4, variable=True
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("run"))
    torch.manual_seed(0)
    checkpoint.save_model(folder, build_model(SPEC), SPEC)
    return folder


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (20, 16, 48, 1), np.uint8)


def test_texts_hold_no_other_characters_and_have_the_length(run: str, images: npt.NDArray[np.uint8]) -> None:
    restricted = Recognizer.load(run, engine="torch", charset="b31", length=3)
    for prediction in restricted.predict(list(images)):
        assert len(prediction.text) == 3
        assert set(prediction.text) <= set("13b")
    whole = Recognizer.load(run, engine="torch").predict(list(images))
    assert {len(prediction.text) for prediction in whole} != {3} or set("".join(p.text for p in whole)) > set("13b")


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_every_engine_is_restricted_alike(run: str, images: npt.NDArray[np.uint8], engine: str) -> None:
    def found(name: str) -> npt.NDArray[np.float32]:
        recognizer = Recognizer.load(run, "cpu", "fp32", name, 1, "01b", 2)  # type: ignore[arg-type]
        return recognizer.log_probabilities(images)

    np.testing.assert_allclose(np.exp(found(engine)), np.exp(found("torch")), atol=1e-4)
    np.testing.assert_allclose(np.exp(found("torch")).sum(2), 1, atol=1e-4)


def test_probabilities_are_those_given_that_it_is_one_of_the_characters() -> None:
    outputs = np.log(np.array([[[0.1, 0.2, 0.1, 0.1, 0.2, 0.1, 0.2]]], np.float32))
    left = np.exp(Restriction("1b").apply(outputs, SPEC))
    np.testing.assert_allclose(left, [[[0.4, 0.2, 0.4]]], rtol=1e-5)
    assert np.array_equal(Restriction(length=2).apply(outputs, SPEC), outputs)


def test_a_restricted_network_has_a_fingerprint_of_its_own(run: str) -> None:
    ids = {Recognizer.load(run, "cpu", "fp32", "torch", 1, *one).model_id for one in [("", 0), ("01", 0), ("01", 2)]}
    assert len(ids) == 3
    assert Restriction("01").model_id("x", SPEC) == Restriction("10").model_id("x", SPEC) != "x"
    assert Restriction("ab0123", 2).model_id("x", SPEC) == Restriction(length=2).model_id("x", SPEC)
    assert WHOLE.model_id("x", SPEC) == Restriction("ab0123").model_id("x", SPEC) == "x"


def test_what_the_network_cannot_give_is_refused() -> None:
    with pytest.raises(InputError, match="charset holds 'xy', which the network's charset '0123ab' lacks"):
        Restriction("0xy").spec(SPEC)
    with pytest.raises(InputError, match="length is 5; the network recognizes 1 to 4 characters"):
        Restriction(length=5).spec(SPEC)
    fixed = dataclasses.replace(SPEC, variable=False)
    with pytest.raises(InputError, match="length is 3; the network recognizes 4 characters"):
        Restriction(length=3).spec(fixed)
    assert Restriction(length=4).spec(fixed) == fixed
