"""Define the networks: float images in [0, 1], (N, C, H, W), to outputs, and from these to losses and probabilities.

Shape letters: N images, C channels, H height, W width, S positions (`max_length`), K classes (alphabet), T columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captcha_ray.errors import InputError
from captcha_ray.images.spec import ImageSpec, columns_for
from captcha_ray.models.ctc import ctc_losses, uniform_alignment_loss
from captcha_ray.models.ctc_decoding import text_log_probabilities
from captcha_ray.models.spec import Head, ModelSpec


class Network(nn.Module):
    """A network whose outputs are logits of the characters at each position, (N, S, K), unless it says otherwise.

    num_characters: K. Class K, if there is one, means that the text has ended.
    """

    def __init__(self, num_characters: int) -> None:
        super().__init__()
        self.num_characters = num_characters

    def losses(self, outputs: Tensor, targets: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the negative log-likelihood of each image's text, float32 (N,), nats, summed over positions.

        The arguments are those of `loss_pair`.
        """
        return self.loss_pair(outputs, targets, lengths)[0]

    def loss_pair(
        self,
        outputs: Tensor,
        targets: Tensor,
        lengths: Tensor | None = None,
        label_smoothing: float = 0.0,
        alignment_prior: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of `losses`, and those that the gradient follows.

        Args:
            outputs: Of `forward`.
            targets: int64 (N, S), on the outputs' device.
            lengths: int64 (N,) on the CPU, the characters of each text; None to count them, for which a GPU is waited.
            label_smoothing: Share of the target that is spread over all classes (C. Szegedy et al., "Rethinking the
                Inception Architecture", 2016).
            alignment_prior: Weight, 0 to 1, of the uniform-alignment loss in networks that must find where
                characters stand.
        """
        logits = outputs.float().transpose(1, 2)
        losses = F.cross_entropy(logits, targets, reduction="none").sum(1)
        if not label_smoothing:
            return losses, losses
        return losses, F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing).sum(1)

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Return the classes' log-probabilities at each position, float32 (N, S, K)."""
        return outputs.float().log_softmax(2)

    def greedy(self, outputs: Tensor) -> Tensor:
        """Return a quick guess of the texts, int64 (N, S), to show how a training gets on."""
        return outputs.argmax(2)


class GlyphVGG(Network):
    """A network for one character: blocks of 1x32, 2x64 and 3x128 convolutions, then a dense layer of 512.

    After the Wmail project's network for digits of 18x60 (width x height) pixels. Any size from 8x8 works; the dense
    layer's inputs follow from it. Dropout is `dropout / 2` after each block and `dropout` before the output.
    """

    def __init__(self, image: ImageSpec, num_classes: int, dropout: float) -> None:
        super().__init__(num_classes)
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
        """Map float32 (N, C, H, W) in [0, 1] to logits (N, 1, K)."""
        maps: Tensor = self.features(images)  # (N, 128, H // 8, W // 8)
        logits: Tensor = self.head(maps)  # (N, K)
        return logits.unsqueeze(1)


class MaxPool(nn.MaxPool2d):
    """Max-pooling over 2x2 that keeps odd edges; without gradients twice as fast on a CPU as torch's own."""

    def __init__(self) -> None:
        super().__init__(2, ceil_mode=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""
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


class MultiHeadCNN(Network):
    """A network for a fixed number of characters: three convolutions, then two dense layers per character.

    After the Isfahan project's network for five characters in 200x50 (width x height) pixels: 16, 32 and 32 filters of
    3x3, each followed by max-pooling that keeps odd edges, and batch normalization after the third.
    """

    def __init__(self, image: ImageSpec, num_classes: int, max_length: int, dropout: float) -> None:
        super().__init__(num_classes)
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
            for _ in range(max_length)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 (N, C, H, W) in [0, 1] to logits (N, S, K)."""
        flat = self.features(images)  # (N, 32 * ceil(H / 8) * ceil(W / 8))
        return torch.stack([head(flat) for head in self.heads], dim=1)


class BatchNorm(nn.BatchNorm2d):
    """Normalizes batches without counting them: nobody reads the count, and it costs an operation a step."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalize (N, C, H, W) by the batch in training, else by the running mean and variance."""
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.batch_norm(maps, *statistics, self.training, self.momentum or 0.0, self.eps)


class ColumnCNN(Network):
    """A network for any number of characters: convolutions to a row of columns, each a character or blank.

    All columns share the last layers and see little more than one character, so the network learns characters and not
    strings, from few images. Trained by CTC; predicts the characters of a text one after another, by their probability
    over all alignments. Outputs: logits (N, T, K + 1), the blank last. `variable`: an image holds 1 to S characters;
    class K at a position means that the text has ended. `filters`: F, those of the first convolution. `head`: see
    `ModelSpec`.
    """

    def __init__(
        self,
        image: ImageSpec,
        num_classes: int,
        max_length: int,
        dropout: float,
        *,
        variable: bool,
        filters: int,
        head: Head,
    ) -> None:
        super().__init__(num_classes)
        self._max_length, self._variable = max_length, variable
        stride = column_stride(image, max_length)
        few, more, most = filters, 2 * filters, 4 * filters
        self.features = nn.Sequential(
            *_convolution(image.channels, few, 5, stride=2),
            *_convolution(few, few, 3),
            nn.MaxPool2d((2, stride // 2)),
            *_convolution(few, more, 3),
            *_convolution(more, more, 3),
            nn.Dropout2d(dropout / 3),
            nn.MaxPool2d((2, 1)),
            *_convolution(more, most, 3),
            *_convolution(most, most, 3),
            nn.Dropout2d(dropout / 3),
        )
        height = (image.height + 1) // 2 // 2 // 2
        width, depth = (10 * filters, 2) if head == "deep" else (most, 1)
        self.columns = nn.Sequential(
            *_convolution(most, width, (height, 1), padding=0),
            *(layer for _ in range(depth) for layer in _convolution(width, width, (1, 3), padding=(0, 1))),
            nn.Dropout(dropout),
            nn.Conv2d(width, num_classes + 1, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 (N, C, H, W) in [0, 1] to logits (N, T, K + 1)."""
        maps = self.features(images)  # (N, 4 F, H // 8, T)
        columns: Tensor = self.columns(maps)  # (N, K + 1, 1, T)
        return columns.squeeze(2).transpose(1, 2)

    def loss_pair(
        self,
        outputs: Tensor,
        targets: Tensor,
        lengths: Tensor | None = None,
        label_smoothing: float = 0.0,
        alignment_prior: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of `Network.loss_pair`, over all alignments. Targets are K after the text's end.

        Without an alignment prior such networks stay long where every column is blank.
        """
        columns = outputs.float().log_softmax(2)
        lengths = (targets < columns.shape[2] - 1).sum(1) if lengths is None else lengths
        losses = followed = ctc_losses(columns, targets, lengths)
        if (alignment_prior or label_smoothing) and lengths.device != targets.device:
            lengths = (targets < columns.shape[2] - 1).sum(1)  # counted again: a copy would wait for the GPU
        if alignment_prior:
            followed = torch.lerp(followed, uniform_alignment_loss(columns, targets, lengths), alignment_prior)
        if label_smoothing:
            followed = torch.lerp(followed, -columns.mean((1, 2)) * lengths, label_smoothing)
        return losses, followed

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Return log-probabilities as `Network` does, (N, S, K), or (N, S, K + 1) if the length varies."""
        columns = outputs.float().log_softmax(2).detach().cpu().numpy()
        found = text_log_probabilities(columns, self._max_length, variable=self._variable)
        return torch.from_numpy(found).to(outputs.device)

    def greedy(self, outputs: Tensor) -> Tensor:
        """Return the characters of the likeliest class of each column, int64 (N, S); -1 ends a text that is too long.

        This is CTC's best path (A. Graves et al., "Connectionist Temporal Classification", 2006): equal neighbors are
        one character, blanks none. Exact probabilities take as long as the network itself, see `log_probabilities`.
        """
        path, blank, longest = outputs.argmax(2), outputs.shape[2] - 1, self._max_length
        begins = (path != blank) & (path != F.pad(path[:, :-1], (1, 0), value=blank))
        position = begins.cumsum(1) - 1  # (N, T)
        texts = path.new_full((len(path), longest + 1), blank)  # what is no character, or too many, goes to the last
        texts.scatter_(1, torch.where(begins, position.clamp(max=longest), longest), path)
        texts[:, longest - 1].masked_fill_(position[:, -1] >= longest, -1)
        return texts[:, :longest]


def _convolution(
    channels: int,
    width: int,
    size: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int | tuple[int, int] | None = None,
) -> list[nn.Module]:
    if padding is None:
        assert isinstance(size, int)
        padding = size // 2
    return [
        nn.Conv2d(channels, width, size, stride, padding, bias=False),
        BatchNorm(width),
        nn.ReLU(inplace=True),
    ]


def column_stride(image: ImageSpec, max_length: int) -> int:
    """Return the pixels from one column to the next: 4, or 2 if 4 leaves fewer than 3 columns a character."""
    return 4 if image.width // 4 >= 3 * max_length else 2


def num_columns(image: ImageSpec, max_length: int) -> int:
    """Return the columns that `ColumnCNN` makes of an image."""
    return image.most_columns // (column_stride(image, max_length) // 2)


def build_model(spec: ModelSpec) -> Network:
    """Return the network of a spec, initialized from torch's random state.

    Raises InputError if the architecture cannot take such images or so many characters.
    """
    if spec.network == "glyph_vgg":
        if spec.max_length != 1:
            raise InputError(f"glyph_vgg recognizes one character an image, not {spec.max_length}; use multi_head_cnn")
        if min(spec.image.height, spec.image.width) < 8:
            raise InputError(f"glyph_vgg needs images of at least 8x8 pixels, not {spec.image}")
        return GlyphVGG(spec.image, len(spec.charset), spec.dropout)
    if spec.network == "column_cnn":
        columns, needed = num_columns(spec.image, spec.max_length), columns_for(spec.max_length)
        if spec.image.height < 7 or columns < needed:
            raise InputError(
                f"column_cnn recognizes {spec.max_length} characters in images of at least {2 * needed}x7 pixels "
                f"(width x height), not {spec.image}"
            )
        return ColumnCNN(
            spec.image,
            len(spec.charset),
            spec.max_length,
            spec.dropout,
            variable=spec.variable,
            filters=spec.filters,
            head=spec.head,
        )
    return MultiHeadCNN(spec.image, len(spec.charset), spec.max_length, spec.dropout)
