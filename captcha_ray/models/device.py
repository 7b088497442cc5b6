"""Choose where and how precisely a network computes."""

import contextlib
import dataclasses

import torch
from torch import Tensor

from captcha_ray.errors import InputError
from captcha_ray.models.spec import Precision


def find_device(name: str) -> torch.device:
    """Return the CPU or a GPU by torch's name for it. Raises InputError if there is none of that name here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device is {name!r}; it must be cpu, cuda, or cuda: and a number")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device is {name!r}; torch sees {torch.cuda.device_count()} GPUs here")
    return device


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Device and precision of a computation."""

    device: torch.device
    bf16: bool

    @classmethod
    def choose(cls, device: torch.device, precision: Precision) -> "Arithmetic":
        """Choose the precision on a device. Raises InputError if bf16 is requested and the device has none."""
        fast = has_fast_bf16(device)
        if precision == "bf16" and device.type == "cuda" and not fast:
            raise InputError("precision bf16 needs a GPU that computes in bf16; use fp32")
        return cls(device, fast if precision == "auto" else precision == "bf16")

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which matrix products and convolutions run in bf16, if that is the choice."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def put(self, tensor: Tensor) -> Tensor:
        """Copy a tensor of the CPU to the device. A GPU is not waited for."""
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def to_input(self, images: Tensor) -> Tensor:
        """Convert uint8 (N, H, W, C) on the CPU to float32 (N, C, H, W) in [0, 1], channels last, on the device."""
        images = self.put(images).permute(0, 3, 1, 2)
        return images.to(torch.float32, memory_format=torch.channels_last).div_(255)

    def to_colors(self, colors: Tensor | None) -> Tensor | None:
        """Convert uint8 colors on the CPU, of any shape, to float32 in [0, 1] on the device."""
        return None if colors is None else self.put(colors).float().div_(255)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device has bf16 instructions. Emulated, bf16 is ten times slower than fp32 on an AVX2 CPU."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
