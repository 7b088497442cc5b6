"""Make one untrained recognizer for all tests."""

import pytest
import torch

from captcha_ray import Recognizer
from captcha_ray.engines.torch_engine import TorchEngine
from captcha_ray.images.spec import ImageSpec
from captcha_ray.models.networks import build_model
from captcha_ray.models.spec import ModelSpec

SPEC = ModelSpec(network="multi_head_cnn", image=ImageSpec(height=12, width=20), charset="abcdé", max_length=3)


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    """Untrained, but with large last layers, so that it has opinions that differ from image to image."""
    torch.manual_seed(0)
    model = build_model(SPEC)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("3.weight"):
                parameter.mul_(20)
    return Recognizer(TorchEngine(model, SPEC, precision="fp32"), SPEC)
