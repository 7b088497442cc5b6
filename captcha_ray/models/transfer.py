"""Begin a network with the weights of another one, made for other characters or for images of another size."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor

from captcha_ray.errors import check
from captcha_ray.models import fingerprint
from captcha_ray.models.networks import Network
from captcha_ray.models.spec import ModelSpec

FIRST, HEIGHT = "features.0.weight", "columns.0.weight"
"""Parameters of `column_cnn` that depend on the images: the first convolution, and the one over the whole height."""


def check_source(spec: ModelSpec, uri: str) -> None:
    """Raise InputError if a network cannot begin with the weights at a URI, or there are none."""
    _check_fits(spec, fingerprint.load_spec(uri), uri)


def _check_fits(spec: ModelSpec, source: ModelSpec, uri: str) -> None:
    check(
        spec.network == source.network == "column_cnn",
        f"only column_cnn begins with weights of a column_cnn; this is {spec.network}, and {uri} {source.network}",
    )
    check(
        spec.filters == source.filters,
        f"{uri} has {source.filters} filters; pass --filters {source.filters} to begin with its weights",
    )
    check(
        spec.head == source.head,
        f"{uri} has a {source.head} head; pass --head {source.head} to begin with its weights",
    )


def begin_with(network: Network, spec: ModelSpec, uri: str) -> None:
    """Set the weights of a `column_cnn` to those of a run's network, as far as they mean the same.

    Characters that both networks know keep their part of the last layer, others get what they have here. The first
    convolution is summed or spread over color channels, the one over the height is stretched to another height.

    Raises:
        InputError: There is no checkpoint, or it is one of another architecture or number of filters.
    """
    source, _, weights = fingerprint.load_verified(fingerprint.find_checkpoint(uri))
    _check_fits(spec, source, uri)
    theirs, ours = load(weights), network.state_dict()
    theirs[FIRST] = _for_channels(theirs[FIRST], spec.image.channels)
    theirs[HEIGHT] = _for_height(theirs[HEIGHT], ours[HEIGHT].shape[2])
    shared = [k for k, character in enumerate(spec.charset) if character in source.charset]
    from_ = [source.charset.index(spec.charset[k]) for k in shared]
    for name in _last_layer(network):
        last = ours[name].clone()
        last[[*shared, -1]] = theirs[name][[*from_, -1]].to(last.device)  # the blank is the last class of both
        theirs[name] = last
    network.load_state_dict(theirs)


def known_unseen(spec: ModelSpec, uri: str, seen: Sequence[bool]) -> list[int]:
    """Return the classes of characters that the network at a URI knows, and no training image shows.

    seen: for each character of the charset, whether an image shows it.
    """
    known = fingerprint.load_spec(uri).charset
    return [k for k, character in enumerate(spec.charset) if character in known and not seen[k]]


def keep_classes(network: Network, classes: Sequence[int]) -> Callable[[], None]:
    """Set the gradients of the last layer's weights of some classes of a `column_cnn` to zero.

    Adam scales every gradient to about the same step, so a character that is never a target is soon unlearned, however
    small its gradients. Weight decay goes on.

    Returns:
        A function that lets all weights be trained again.
    """

    def mask(gradient: Tensor) -> Tensor:
        return gradient.index_fill(0, torch.tensor(classes, dtype=torch.int64, device=gradient.device), 0)

    parameters = dict(network.named_parameters())
    last = [parameters[name] for name in _last_layer(network)]
    handles = [parameter.register_hook(mask) for parameter in last]  # type: ignore[no-untyped-call]

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end


def _last_layer(network: Network) -> tuple[str, str]:
    """Return the names of weight and bias of the last layer of a `column_cnn`, which depend on the characters."""
    *_, weight, bias = (name for name, _ in network.named_parameters())
    return weight, bias


def _for_channels(weight: Tensor, channels: int) -> Tensor:
    """Return a first convolution (F, C, h, w) for another number of channels that does to gray images what it did."""
    if weight.shape[1] == channels:
        return weight
    return weight.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels


def _for_height(weight: Tensor, height: int) -> Tensor:
    """Return a convolution (F, C, h, 1) for maps of another height: each row's weight is shared among rows there."""
    known = weight.shape[2]
    if known == height:
        return weight
    shares = F.interpolate(torch.eye(known)[None, None], (height, known), mode="bilinear", antialias=True)[0, 0]
    return torch.einsum("fckx,hk->fchx", weight, shares / shares.sum(0))
