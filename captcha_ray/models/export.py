"""Write a network as an ONNX model, which other programs run without torch and without this project."""

import io
import json
import warnings

import onnx
import torch
from torch import Tensor, nn

from captcha_ray.models.networks import Network
from captcha_ray.models.spec import ModelSpec

OPSET = 17
"""Version of ONNX's operators; runtimes since 2022 know it."""

IMAGES, LOG_PROBABILITIES = "images", "log_probabilities"
"""Names of the model's input and output."""


class _Calibrated(nn.Module):
    """A network from pixels, uint8 (N, H, W, C), to log-probabilities at its temperature, float32 (N, T or S, K)."""

    def __init__(self, model: Network, temperature: float) -> None:
        super().__init__()
        self._model, self._temperature = model, temperature

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self._model(images.permute(0, 3, 1, 2).to(torch.float32) / 255)
        return torch.log_softmax(outputs / self._temperature, 2)


def to_onnx(model: Network, spec: ModelSpec) -> bytes:
    """Return a network as an ONNX model.

    Its input `images` is uint8 (N, H, W, C) of the network's size, its output `log_probabilities` is float32: for
    `column_cnn` of each column, (N, T, K + 1), the blank last; for others of each position, (N, S, K). They are at the
    network's temperature. The metadata `model` holds the spec as JSON.

    model: in evaluation mode.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # torch calls this exporter old; the newer one needs two more packages, and int8 of its graphs was not measured.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            _Calibrated(model, spec.temperature).eval(),
            (torch.zeros((2, *spec.image.shape), dtype=torch.uint8),),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=[IMAGES],
            output_names=[LOG_PROBABILITIES],
            dynamic_axes={IMAGES: {0: "N"}, LOG_PROBABILITIES: {0: "N"}},
        )
    exported = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(exported, {"model": json.dumps(spec.to_dict())})
    return exported.SerializeToString()  # type: ignore[no-any-return]
