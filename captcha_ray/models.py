"""The networks: float images in [0, 1], (N, C, H, W) -> logits, (N, slots, classes). Softmax belongs to the loss.

Shape letters: N images, C channels, H height, W width, S slots (characters), K classes (alphabet).
"""

import torch
from torch import Tensor, nn

from captcha_ray.config import ImageSpec, InputError
from captcha_ray.spec import ModelSpec


class GlyphVGG(nn.Module):
    """One character. Blocks of 1x32, 2x64 and 3x128 convolutions, then a dense layer of 512.

    After the Wmail project's network for digits of 18x60 (width x height) pixels. Any size from 8x8 works; the
    dense layer's inputs follow from it. Dropout is `dropout / 2` after each block and `dropout` before the output.
    """

    def __init__(self, image: ImageSpec, num_classes: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = image.channels
        for depth, width in ((1, 32), (2, 64), (3, 128)):
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(width)]
                channels = width
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout / 2)]
        self.features = nn.Sequential(*layers)
        flat = 128 * (image.height // 8) * (image.width // 8)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(flat, 512),
            nn.ReLU(),
            nn.BatchNorm1d(512),
            nn.Dropout(dropout),
            nn.Linear(512, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, C, H, W) in [0, 1] -> logits (N, 1, K)."""
        maps: Tensor = self.features(images)  # (N, 128, H // 8, W // 8)
        logits: Tensor = self.head(maps)  # (N, K)
        return logits.unsqueeze(1)


class MaxPool(nn.MaxPool2d):
    """Max-pooling over 2x2 that keeps odd edges; without gradients on a CPU at twice the speed of torch's own."""

    def __init__(self) -> None:
        super().__init__(2, ceil_mode=True)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H / 2), ceil(W / 2))."""
        if torch.is_grad_enabled() or maps.is_cuda:
            pooled: Tensor = super().forward(maps)
            return pooled
        for dim in (2, 3):  # whole rows first: contiguous memory, where channels are last
            index: list[slice] = [slice(None)] * dim
            even, odd = maps[*index, ::2], maps[*index, 1::2]
            if odd.shape[dim] < even.shape[dim]:  # the last one stays alone
                odd = torch.cat([odd, even.narrow(dim, -1, 1)], dim)
            maps = torch.maximum(even, odd)
        return maps


class MultiHeadCNN(nn.Module):
    """A fixed number of characters. Three convolutions, then two dense layers per character.

    After the Isfahan project's network for five characters in 200x50 (width x height) pixels: 16, 32 and 32 filters
    of 3x3, each followed by max-pooling that keeps odd edges, batch normalization after the third.
    """

    def __init__(self, image: ImageSpec, num_classes: int, slots: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(  # ReLU after max-pooling gives what it gives before it, at a quarter of the work
            nn.Conv2d(image.channels, 16, 3, padding=1),
            MaxPool(),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            MaxPool(),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(32),
            MaxPool(),
            nn.Flatten(),
        )
        flat = 32 * -(-image.height // 8) * -(-image.width // 8)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(flat, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, num_classes))
            for _ in range(slots)
        )

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, C, H, W) in [0, 1] -> logits (N, S, K)."""
        flat = self.features(images)  # (N, 32 * ceil(H / 8) * ceil(W / 8))
        return torch.stack([head(flat) for head in self.heads], dim=1)


def build_model(spec: ModelSpec) -> nn.Module:
    """The network of a spec, freshly initialized from torch's random state.

    Raises InputError where the architecture cannot read such images or so many characters.
    """
    if spec.network == "glyph_vgg":
        if spec.slots != 1:
            raise InputError(f"glyph_vgg reads one character an image, not {spec.slots}; multi_head_cnn reads several")
        if min(spec.image.height, spec.image.width) < 8:
            raise InputError(f"glyph_vgg needs images of at least 8x8 pixels, not {spec.image}")
        return GlyphVGG(spec.image, len(spec.charset), spec.dropout)
    return MultiHeadCNN(spec.image, len(spec.charset), spec.slots, spec.dropout)
