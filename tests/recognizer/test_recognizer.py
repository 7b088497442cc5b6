"""The recognizer: what it predicts, how sure it is, at which temperature, and what it says of what it cannot read."""

import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from captcha_ray import Prediction, Recognizer
from captcha_ray.engines.torch_engine import TorchEngine
from captcha_ray.errors import InputError
from captcha_ray.images.spec import ImageSpec
from captcha_ray.models import checkpoint
from captcha_ray.models.networks import build_model
from captcha_ray.models.spec import ModelSpec
from tests.factories import save_network
from tests.recognizer.conftest import SPEC

Pixels = npt.NDArray[np.uint8]


def pictures(n: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (n, 12, 20), np.uint8)


def png(array: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def test_images_of_different_content_are_read_differently(recognizer: Recognizer) -> None:
    assert len({prediction.text for prediction in recognizer.predict(list(pictures(30)))}) > 3


def test_a_path_a_pathlib_path_bytes_and_an_array_are_read_alike(recognizer: Recognizer, tmp_path: Path) -> None:
    array = pictures(1)[0]
    path = tmp_path / "ä b.png"
    path.write_bytes(png(array))
    expected = recognizer.predict(array)
    assert recognizer.predict(str(path)) == expected
    assert recognizer.predict(path) == expected
    assert recognizer.predict(f"file://{path}") == expected
    assert recognizer.predict(png(array)) == expected
    together = recognizer.predict([str(path), path, png(array), array])
    assert [prediction.text for prediction in together] == 4 * [expected.text]
    assert [prediction.confidence for prediction in together] == pytest.approx(4 * [expected.confidence], abs=1e-5)


def test_gray_rgb_and_opaque_rgba_of_one_picture_are_read_alike(recognizer: Recognizer) -> None:
    gray = pictures(1)[0]
    rgb = np.stack(3 * [gray], axis=2)
    rgba = np.concatenate([rgb, np.full((12, 20, 1), 255, np.uint8)], axis=2)
    expected = recognizer.predict(gray)
    assert [recognizer.predict(array) for array in (gray[:, :, None], rgb, rgba, rgb[:, ::-1][:, ::-1])] == 4 * [
        expected
    ]


def test_transparent_pixels_are_read_as_white(recognizer: Recognizer) -> None:
    rgba = np.zeros((12, 20, 4), np.uint8)
    rgba[3:6, 5:9, 3] = 255
    over_white = np.full((12, 20), 255, np.uint8)
    over_white[3:6, 5:9] = 0
    assert recognizer.predict(rgba) == recognizer.predict(over_white)


def test_an_array_of_one_color_is_an_error_and_no_prediction(recognizer: Recognizer) -> None:
    flat = np.full((12, 20), 255, np.uint8)
    assert recognizer.predict([flat])[0].error.startswith("Blank: ")
    with pytest.raises(InputError, match="Blank: all pixels have one color"):
        recognizer.predict(flat)


def test_other_sizes_are_resized_as_pillow_does(recognizer: Recognizer) -> None:
    large = np.random.default_rng(1).integers(0, 256, (31, 57), np.uint8)
    small = np.asarray(Image.fromarray(large).resize((20, 12), Image.Resampling.BILINEAR))
    assert recognizer.predict(large) == recognizer.predict(small)


def test_an_image_is_read_alike_alone_in_a_batch_and_in_many_batches(recognizer: Recognizer) -> None:
    """Not to the last bit: matrix products of another size are summed in another order."""
    images = list(pictures(23))
    alone = [recognizer.predict(image) for image in images]
    for batch_size in (1, 7, 256):
        together = recognizer.predict(images, batch_size=batch_size)
        assert [prediction.text for prediction in together] == [prediction.text for prediction in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.char_confidence == pytest.approx(other.char_confidence, abs=1e-5)


def test_an_engine_gets_large_images_a_few_at_a_time(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    height, width, channels = recognizer.spec.image.shape
    pixels = np.random.default_rng(0).integers(0, 256, (8, height, width, channels), np.uint8)
    expected, given = recognizer.log_probabilities(pixels), []
    compute = recognizer.engine.log_probabilities

    def counted(part: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        given.append(len(part))
        return compute(part)

    monkeypatch.setattr(recognizer.engine, "log_probabilities", counted)
    for most, numbers in ((3 * height * width, [3, 3, 2]), (1, [1] * 8), (8 * height * width, [8])):
        given.clear()
        monkeypatch.setattr("captcha_ray.engines.engine.MAX_PIXELS_AT_ONCE", most)
        np.testing.assert_allclose(recognizer.log_probabilities(pixels), expected, atol=1e-5)
        assert given == numbers
    assert len(recognizer.log_probabilities(pixels[:0])) == 0


def test_confidence_is_the_product_of_the_characters(recognizer: Recognizer) -> None:
    for prediction in recognizer.predict(list(pictures(10))):
        assert len(prediction.text) == len(prediction.char_confidence) == SPEC.max_length
        assert prediction.confidence == math.prod(prediction.char_confidence)
        assert all(1 / len(SPEC.charset) <= c <= 1 for c in prediction.char_confidence)
        assert prediction.error is None


def test_probabilities_add_up_to_one_and_the_largest_is_the_confidence(recognizer: Recognizer) -> None:
    images = pictures(6)
    probabilities = np.exp(recognizer.log_probabilities(images[:, :, :, None]))
    assert probabilities.shape == (6, 3, 5)
    np.testing.assert_allclose(probabilities.sum(2), 1, atol=1e-5)
    for row, prediction in zip(probabilities, recognizer.predict(list(images)), strict=True):
        assert row.max(1).tolist() == pytest.approx(prediction.char_confidence, abs=1e-6)
        assert prediction.text == "".join(SPEC.charset[k] for k in row.argmax(1))


def test_predictions_are_made_of_log_probabilities(recognizer: Recognizer) -> None:
    probabilities = np.full((1, 3, 5), 0.05, np.float32)
    probabilities[0, [0, 1, 2], [4, 0, 2]] = 0.8
    probabilities[0, 1, 0] = 0.5
    (prediction,) = recognizer.predictions(np.log(probabilities))
    assert prediction.text == "éac"
    assert prediction.char_confidence == pytest.approx((0.8, 0.5, 0.8))
    assert prediction.confidence == pytest.approx(0.8 * 0.5 * 0.8)


def test_losses_are_minus_the_sum_of_the_truths_log_probabilities(recognizer: Recognizer) -> None:
    probabilities = np.full((4, 3, 5), 0.1, np.float32)
    probabilities[:, :, 1] = 0.6
    losses = recognizer.losses(np.log(probabilities), ["bbb", "abé", "bbx", "bb"])
    assert losses[:2] == pytest.approx([-3 * math.log(0.6), -2 * math.log(0.1) - math.log(0.6)])
    assert math.isnan(losses[2]), "a character that the network does not know"
    assert math.isnan(losses[3]), "another length"


BAD: dict[str, tuple[Any, str]] = {
    "absent file": ("absent.png", "Missing: absent.png does not exist"),
    "folder": (Path(), "Unreadable"),
    "foreign scheme": ("ftp://host/a.png", "Unreadable: ftp://host/a.png"),
    "zero byte in the path": ("a\0.png", "Unreadable"),
    "empty bytes": (b"", "EmptyFile"),
    "no image": (b"hello", "NotAnImage"),
    "half an image": (png(pictures(1)[0])[:60], "Truncated|Damaged"),
    "float array": (np.zeros((12, 20), np.float32), "NotAnImage.*float32"),
    "two channels": (np.zeros((12, 20, 2), np.uint8), r"NotAnImage.*\(12, 20, 2\)"),
    "four dimensions": (np.zeros((1, 12, 20, 1), np.uint8), "NotAnImage"),
    "no pixels": (np.zeros((0, 20), np.uint8), "NotAnImage.*no pixels"),
}


@pytest.mark.parametrize(("source", "sentence"), BAD.values(), ids=BAD)
def test_a_single_image_that_cannot_be_read_raises_one_sentence(
    recognizer: Recognizer, source: Any, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        recognizer.predict(source)
    assert "\n" not in str(caught.value)


def test_in_a_list_unreadable_images_become_errors_and_the_others_are_read(recognizer: Recognizer) -> None:
    good = list(pictures(len(BAD)))
    mixed: list[Any] = [
        item for pair in zip(good, (source for source, _ in BAD.values()), strict=True) for item in pair
    ]
    predictions = recognizer.predict(mixed, batch_size=4)
    assert [prediction.text for prediction in predictions[::2]] == [
        prediction.text for prediction in recognizer.predict(good)
    ]
    assert all(prediction.error is None for prediction in predictions[::2])
    for prediction in predictions[1::2]:
        assert (prediction.text, prediction.confidence, prediction.char_confidence) == ("", 0.0, ())
        assert prediction.error


def test_a_list_of_none_or_of_unreadable_images_alone_is_answered(recognizer: Recognizer) -> None:
    assert recognizer.predict([]) == []
    assert [bool(prediction.error) for prediction in recognizer.predict([b"", b"x"])] == [True, True]


def test_pixels_of_another_size_are_not_taken_for_the_models(recognizer: Recognizer) -> None:
    with pytest.raises(AssertionError, match=r"\(20, 12, 1\) is not \(12, 20, 1\)"):
        recognizer.log_probabilities(np.zeros((1, 20, 12, 1), np.uint8))


def test_read_only_pixels_are_read_without_a_warning(recognizer: Recognizer) -> None:
    pixels = pictures(2)[:, :, :, None]
    expected = recognizer.log_probabilities(pixels)
    pixels.flags.writeable = False
    assert recognizer.log_probabilities(pixels).tolist() == expected.tolist()


def test_a_model_for_rgb_sees_colors() -> None:
    spec = ModelSpec(network="glyph_vgg", image=ImageSpec(height=8, width=8, channels=3), charset="ab", max_length=1)
    torch.manual_seed(0)
    rgb = Recognizer(TorchEngine(build_model(spec), spec, precision="fp32"), spec)
    red, blue = np.zeros((2, 8, 8, 3), np.uint8)
    red[:, :4, 0] = blue[:, :4, 2] = 255
    assert rgb.predict(red).confidence != rgb.predict(blue).confidence
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert rgb.predict(gray) == rgb.predict(np.stack([gray] * 3, 2))


def test_a_checkpoint_is_loaded_from_its_run_and_reads_as_the_network_did(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(SPEC)
    checkpoint.save_model(str(tmp_path / "checkpoint"), model, SPEC)
    loaded = Recognizer.load(str(tmp_path), device="cpu", precision="fp32", engine="torch")
    assert loaded.spec == SPEC
    images = list(pictures(4))
    assert loaded.predict(images) == Recognizer(TorchEngine(model, SPEC, precision="fp32"), SPEC).predict(images)


def test_loading_from_where_there_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint"):
        Recognizer.load(str(tmp_path))


def test_a_reading_is_a_value() -> None:
    assert Prediction("a", 0.5, (0.5,)) == Prediction("a", 0.5, (0.5,), None)


def test_the_package_offers_the_recognizer_without_torch_or_ray() -> None:
    program = (
        "import sys, captcha_ray; assert 'torch' not in sys.modules\n"
        "from captcha_ray import Recognizer, Prediction; assert 'torch' not in sys.modules\n"
        "assert 'ray' not in sys.modules\n"
        "try: captcha_ray.Recogniser\n"
        "except AttributeError as error: print(error, Recognizer.__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'captcha_ray' has no attribute 'Recogniser' captcha_ray.recognizer\n"


def drawn_truths(recognizer: Recognizer, images: Pixels, temperature: float) -> list[str]:
    """Texts as likely as the network's outputs, divided by the temperature, say."""
    log_p = recognizer.log_probabilities(images[..., None]) / temperature
    p = np.exp(log_p - log_p.max(2, keepdims=True))
    p /= p.sum(2, keepdims=True)
    rng = np.random.default_rng(7)
    return ["".join(rng.choice(list(SPEC.charset), p=position) for position in row) for row in p]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_one_that_truths_were_drawn_with(recognizer: Recognizer, temperature: float) -> None:
    images = pictures(1500, seed=3)
    truths = drawn_truths(recognizer, images, temperature)
    assert recognizer.fit_temperature(images[..., None], truths) == pytest.approx(temperature, rel=0.08)


def test_a_network_without_mistakes_on_few_images_is_not_made_certain(recognizer: Recognizer) -> None:
    images = pictures(50)
    truths = [prediction.text for prediction in recognizer.predict(list(images))]
    temperature = recognizer.fit_temperature(images[..., None], truths)
    assert 0.126 < temperature < 1
    assert recognizer.fit_temperature(images[:16, :, :, None], truths[:16]) == 1.0  # 48 characters
    with pytest.raises(InputError, match="'zzz' holds 'z'"):
        recognizer.fit_temperature(images[:1, :, :, None], ["zzz"])


def test_a_temperature_is_fitted_to_texts_of_several_lengths() -> None:
    image = ImageSpec(height=16, width=48)
    spec = ModelSpec(network="column_cnn", image=image, charset="abcd", max_length=3, variable=True, dropout=0.0)
    torch.manual_seed(1)
    columns = Recognizer(TorchEngine(build_model(spec), spec, precision="fp32"), spec)
    images = np.random.default_rng(0).integers(0, 256, (80, 16, 48, 1), np.uint8)
    rng = np.random.default_rng(1)
    truths = ["".join(rng.choice(list("abcd"), size=length)) for length in rng.integers(1, 4, 80)]
    log_p = columns.log_probabilities(images)
    assert log_p.shape == (80, 3, 5)
    found = columns.fit_temperature(images, truths)
    assert found > 1.5, "a network that knows nothing must not be sure of anything"


def test_probabilities_are_those_at_the_temperature_of_the_checkpoint(tmp_path: Path) -> None:
    save_network(tmp_path / "run", SPEC)
    images = pictures(5)[..., None]
    before = Recognizer.load(str(tmp_path / "run"), precision="fp32")
    checkpoint.set_temperature(str(tmp_path / "run"), 2.0)
    after = Recognizer.load(str(tmp_path / "run"), precision="fp32")
    half = before.log_probabilities(images) / 2
    expected = half - np.log(np.exp(half).sum(2, keepdims=True))
    np.testing.assert_allclose(after.log_probabilities(images), expected, atol=1e-5)
    assert after.spec.temperature == 2.0
    assert after.model_id != before.model_id
    checkpoint.set_temperature(str(tmp_path / "run"), 1.0)
    assert Recognizer.load(str(tmp_path / "run")).model_id == before.model_id


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(recognizer: Recognizer, batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}; it must be at least 1"):
        recognizer.predict([b"x"], batch_size=batch_size)


def test_losses_of_columns_are_those_of_ctc_among_all_texts_that_are_allowed() -> None:
    image = ImageSpec(height=16, width=24)
    spec = ModelSpec(network="column_cnn", image=image, charset="ab", max_length=2, variable=True, dropout=0.0)
    torch.manual_seed(4)
    columns = Recognizer(TorchEngine(build_model(spec), spec, precision="fp32"), spec)
    (outputs,) = columns.outputs(np.random.default_rng(0).integers(0, 256, (1, 16, 24, 1), np.uint8)) * 4
    outputs = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
    texts = ["a", "b", "aa", "ab", "ba", "bb"]
    repeated = torch.from_numpy(outputs)[None].expand(len(texts), -1, -1)
    targets = torch.tensor(["ab".index(character) for text in texts for character in text])
    lengths = torch.tensor([len(text) for text in texts])
    alone = F.ctc_loss(
        repeated.transpose(0, 1), targets, torch.full((len(texts),), len(outputs)), lengths, blank=2, reduction="none"
    )
    expected = -torch.log_softmax(-alone, 0)
    found = columns.losses(np.repeat(outputs[None], len(texts), 0), texts)
    assert found == pytest.approx(expected.tolist(), abs=1e-4)
