"""Run a network with torch, on the CPU or a GPU."""

import numpy as np
import numpy.typing as npt
import torch

from captcha_ray.models.device import Arithmetic, find_device
from captcha_ray.models.networks import Network
from captcha_ray.models.spec import ModelSpec, Precision


class TorchEngine:
    """A network on a device. spec: its description. device: in torch's words. precision: as in training."""

    def __init__(self, model: Network, spec: ModelSpec, device: str = "cpu", precision: Precision = "auto") -> None:
        self._arithmetic = Arithmetic.choose(find_device(device), precision)
        self._model = model.to(self._arithmetic.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._temperature = spec.temperature
        self.name = f"torch {'bf16' if self._arithmetic.bf16 else 'fp32'}"

    @torch.inference_mode()
    def log_probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map pixels to log-probabilities, see `Engine`."""
        inputs = self._arithmetic.to_input(torch.from_numpy(np.require(pixels, requirements="W")))
        with self._arithmetic.autocast():
            outputs: torch.Tensor = self._model(inputs)
        found: npt.NDArray[np.float32] = (outputs.float() / self._temperature).log_softmax(2).cpu().numpy()
        return found
