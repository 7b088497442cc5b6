"""Texts of right-to-left scripts are turned into the order of their image and back, and others stay as they are."""

import numpy as np
import pytest
from bidi import get_display
from hypothesis import given, settings
from hypothesis import strategies as st

from captcha_ray import Recognizer
from captcha_ray.engines.torch_engine import TorchEngine
from captcha_ray.images.spec import ImageSpec
from captcha_ray.models import fingerprint
from captcha_ray.models.networks import build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.recipes.catalog import get
from captcha_ray.text.charset import Charset
from captcha_ray.text.visual_order import canonical, has_right_to_left, in_visual_order, visual_order
from captcha_ray.training.trainer import model_spec
from tests import factories

HEBREW = "אבגדה"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("אבג", "גבא"),
        ("אב12", "12בא"),
        ("12-345-אב", "בא-12-345"),
        ("١٢ب", "ب١٢"),
        ("abc", "abc"),
        ("0317", "0317"),
        ("abcאב", "abcבא"),
        ("א(ב", "ב(א"),
        ("", ""),
    ],
)
def test_characters_stand_as_a_reader_sees_them(text: str, seen: str) -> None:
    assert in_visual_order(text) == seen
    assert canonical(text) == text
    assert in_visual_order(seen) == text


@settings(max_examples=500, deadline=None)
@given(st.text(HEBREW + "0123456789", max_size=12))
def test_letters_and_digits_come_back_and_are_ordered_as_the_library_displays_them(text: str) -> None:
    assert in_visual_order(in_visual_order(text)) == text
    assert in_visual_order(text) == get_display(text)
    assert sorted(visual_order(text)) == list(range(len(text)))


@pytest.mark.parametrize("alphabet", [HEBREW + "01 -./:", "بجد٠١٢", "بجد01 ", HEBREW + "ab01"])
@settings(max_examples=500, deadline=None)
@given(st.data())
def test_of_texts_that_look_the_same_one_comes_back(alphabet: str, data: st.DataObject) -> None:
    text = data.draw(st.text(alphabet, max_size=10))
    once = canonical(text)
    assert in_visual_order(once) == in_visual_order(text)
    if not set("ab") & set(text):
        assert canonical(once) == once
        assert in_visual_order(in_visual_order(once)) == once, "a network that finds it is right"


def test_scripts_are_told_apart() -> None:
    assert has_right_to_left("abגd")
    assert not has_right_to_left("abc 0317 日本 é")


def network(bidirectional: bool) -> ModelSpec:
    image = ImageSpec(height=16, width=64)
    return ModelSpec(
        network="column_cnn",
        image=image,
        charset="12" + HEBREW,
        max_length=4,
        variable=True,
        bidirectional=bidirectional,
    )


def test_what_a_network_finds_from_left_to_right_becomes_text_with_its_confidences() -> None:
    spec = network(bidirectional=True)
    recognizer = Recognizer(TorchEngine(build_model(spec), spec), spec)
    text = "אב12"
    classes = Charset(spec.charset).encode([text], 4, variable=True, bidirectional=True)[0]
    assert [spec.charset[k] for k in classes] == ["1", "2", "ב", "א"]
    shares = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    p = np.full((1, 4, 8), 0.01, np.float32)
    p[0, range(4), classes] = shares
    (prediction,) = recognizer.predictions(np.log(p))
    assert prediction.text == text
    assert prediction.char_confidence == pytest.approx((0.6, 0.7, 0.9, 0.8))
    assert prediction.confidence == pytest.approx(0.6 * 0.7 * 0.9 * 0.8)
    as_columns = recognizer.losses(np.log(p), [text])[0]  # four columns, each of which is a character of the text
    assert as_columns == pytest.approx(-np.log(shares.prod() / p[0].sum(1).prod()), rel=1e-4)


def test_a_network_from_before_there_were_two_orders_recognizes_as_before() -> None:
    spec = network(bidirectional=False)
    recognizer = Recognizer(TorchEngine(build_model(spec), spec), spec)
    p = np.full((1, 4, 8), 0.01, np.float32)
    p[0, range(4), [2, 3, 0, 1]] = 0.9
    assert recognizer.predictions(np.log(p))[0].text == "אב12"
    old = {name: value for name, value in spec.to_dict().items() if name not in ("bidirectional", "aspect_ratios")}
    assert ModelSpec.from_dict(old) == spec
    assert fingerprint.fingerprint(spec, b"") != fingerprint.fingerprint(network(bidirectional=True), b"")


@pytest.mark.parametrize(("charset", "bidirectional"), [("abcd", False), ("12אב", True)])
def test_a_training_takes_the_order_that_its_alphabet_asks_for(charset: str, bidirectional: bool) -> None:
    spec = model_spec(get("text"), factories.manifest(charset=charset))
    assert spec.bidirectional == bidirectional
