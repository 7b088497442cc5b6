"""Large images are quantized by few at a time, and all of them count."""

import numpy as np
import pytest

from captcha_ray.engines import engine, quantize
from captcha_ray.engines.quantize import to_int8
from captcha_ray.images.spec import ImageSpec
from captcha_ray.models.export import to_onnx
from captcha_ray.models.networks import build_model
from captcha_ray.models.spec import ModelSpec

SPEC = ModelSpec(network="column_cnn", image=ImageSpec(height=16, width=24), charset="abc", max_length=2, filters=4)


@pytest.mark.parametrize(("room", "sizes"), [(4 << 20, [64, 6]), (16 * 24 * 30, [30, 30, 10]), (1, [1] * 70)])
def test_ranges_are_those_of_all_images_however_many_fit_at_once(
    room: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = to_onnx(build_model(SPEC).eval(), SPEC)
    pixels = np.random.default_rng(0).integers(0, 256, (70, *SPEC.image.shape), np.uint8)
    pixels[-1] = np.linspace(0, 255, 24)[:, None]
    expected = to_int8(model, pixels)
    seen: list[int] = []
    original = quantize._Images.get_next

    def note(self: quantize._Images) -> dict[str, np.ndarray] | None:
        batch = original(self)
        seen.extend(len(images) for images in (batch or {}).values())
        return batch

    monkeypatch.setattr(quantize._Images, "get_next", note)
    monkeypatch.setattr(engine, "MAX_PIXELS_AT_ONCE", room)
    assert to_int8(model, pixels) == expected
    assert seen == sizes
