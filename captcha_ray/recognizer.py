"""Predict texts and confidences of images with a trained network; evaluation and inference go through it.

Imports no torch: the engine that computes may need none.
"""

import dataclasses
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from captcha_ray.engines import choice
from captcha_ray.engines.engine import Engine, Name, Precision, images_at_once
from captcha_ray.errors import InputError
from captcha_ray.images import decoder
from captcha_ray.metrics import temperature
from captcha_ray.models.allocator import keep_freed_memory
from captcha_ray.models.ctc_decoding import log_softmax, text_log_probabilities
from captcha_ray.models.restriction import WHOLE, Restriction
from captcha_ray.models.spec import ModelSpec
from captcha_ray.storage import filesystem
from captcha_ray.text.charset import Charset
from captcha_ray.text.visual_order import visual_order

Source: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | npt.NDArray[np.uint8] | Image.Image
)
"""An image: its path or URI, its file's bytes, a file open for reading bytes, pixels uint8 (H, W[, C]), or a Pillow
image. An Arrow scalar of a path or of bytes, which pyarrow declares no type for, is taken too.
"""

TAKEN = "path, URI, bytes, file open for reading bytes, uint8 array, Pillow image or Arrow scalar of one"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The text of one image.

    confidence: probability of the text, 0 to 1. char_confidence: probability of each character, given those before it
    if the network's outputs are columns. error: why there is no text, as `Class: sentence`, with the classes of the
    table; else None.
    """

    text: str
    confidence: float
    char_confidence: tuple[float, ...]
    error: str | None = None


class Recognizer:
    """A trained network that predicts texts.

    model_id: fingerprint of its checkpoint and restriction; empty if it was not loaded.

    recognizer = Recognizer.load("runs/mine")
    recognizer.predict("a.png").text
    [one.text for one in recognizer.predict(["a.png", open("b.png", "rb").read(), array])]
    """

    def __init__(self, engine: Engine, spec: ModelSpec, model_id: str = "", restriction: Restriction = WHOLE) -> None:
        keep_freed_memory()
        self.engine = engine
        self.spec = restriction.spec(spec)
        self.model_id = restriction.model_id(model_id, spec)
        self._whole, self._restriction = spec, restriction
        self._charset = Charset(self.spec.charset)

    @classmethod
    def load(
        cls,
        uri: str,
        device: str = "cpu",
        precision: Precision = "auto",
        engine: Name = "auto",
        num_threads: int = 0,
        charset: str = "",
        length: int = 0,
    ) -> "Recognizer":
        """Load the network of a run or checkpoint folder.

        Args:
            uri: Local or in a bucket; or `builtin`, for the network that comes with the package.
            device: In torch's words, such as "cuda"; a visible GPU is not taken by itself.
            precision: int8, bf16, fp32, or auto for the fastest here that loses nothing; fp32 with onnxruntime.
            engine: openvino, onnxruntime, torch, or auto for OpenVINO on the CPU and torch on another device.
            num_threads: Of OpenVINO and ONNX Runtime; 0 for one per core.
            charset: Characters that texts may hold, of those that the network knows; empty for all.
            length: Characters of every text; 0 for as many as the network finds.

        Raises:
            InputError: There is no checkpoint, its parts do not belong together, there is no such device, the engine is
                not installed or cannot compute so, or the network cannot be restricted so.
        """
        return cls(*choice.load(uri, engine, precision, device, num_threads), Restriction(charset, length))

    @overload  # a str is a Sequence[str] too; the first overload takes it
    def predict(self, sources: Source, batch_size: int = ...) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, sources: Sequence[Source], batch_size: int = ...) -> list[Prediction]: ...
    def predict(self, sources: Source | Sequence[Source], batch_size: int = 256) -> Prediction | list[Prediction]:
        """Predict the text of one image or of several.

        Args:
            sources: One image or several, see `Source`.
            batch_size: Images per forward pass, at least 1.

        Returns:
            A prediction or a list of them; in a list, an unreadable image has an `error`.

        Raises:
            InputError: A single image cannot be decoded.
            TypeError: Something is no image, as `Source` says.
            ValueError: The batch size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if _is_source(sources):
            prediction = self.predict([sources])[0]  # type: ignore[list-item]
            if prediction.error:
                raise InputError(prediction.error)
            return prediction
        if not isinstance(sources, Iterable) or isinstance(sources, Mapping) or hasattr(sources, "columns"):
            raise TypeError(f"an image is a {TAKEN}, not a {type(sources).__name__}")
        decoded = [self._decode(source) for source in sources]
        good = [pixels for pixels in decoded if not isinstance(pixels, decoder.Unreadable)]
        read: list[Prediction] = []
        for start in range(0, len(good), batch_size):
            read += self.predictions(self.log_probabilities(np.stack(good[start : start + batch_size])))
        rest = iter(read)
        return [
            Prediction("", 0.0, (), item.error) if isinstance(item, decoder.Unreadable) else next(rest)
            for item in decoded
        ]

    def log_probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map uint8 (N, H, W, C) of the network's size to log-probabilities, float32 (N, max_length, classes)."""
        return self.at_positions(self.outputs(pixels))

    def outputs(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map such images to what the engine gives: log-probabilities of columns, if the network has some."""
        assert pixels.shape[1:] == self.spec.image.shape, f"{pixels.shape[1:]} is not {self.spec.image.shape}"
        at_once = images_at_once(pixels)
        starts = range(0, max(len(pixels), 1), at_once)
        parts = [self.engine.log_probabilities(pixels[k : k + at_once]) for k in starts]
        return self._restriction.apply(np.concatenate(parts), self._whole)

    def at_positions(
        self, outputs: npt.NDArray[np.float32], texts: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return log-probabilities of the classes at each position, float32 (N, max_length, classes).

        Args:
            outputs: As `outputs` gives them.
            texts: int64 (N, max_length), what comes before each position; None for the likeliest. Only a network of
                columns looks at it.
        """
        if not self.spec.has_columns:
            return outputs
        return text_log_probabilities(outputs, self.spec.max_length, variable=self.spec.variable, texts=texts)

    def fit_temperature(self, pixels: npt.NDArray[np.uint8], truths: list[str]) -> float:
        """Return the temperature at which the truths are likeliest, see `temperature.fit`.

        Args:
            pixels: uint8 (N, H, W, C).
            truths: N texts of the network's charset and length.
        """
        targets = self._encode(truths)
        starts = range(0, len(pixels), 256)
        outputs = np.concatenate([self.outputs(pixels[start : start + 256]) for start in starts])
        logits = outputs * np.float32(self.spec.temperature)  # up to a constant, which the softmax takes away

        def log_probabilities(divisor: float) -> npt.NDArray[np.float32]:
            return self.at_positions(log_softmax(logits / np.float32(divisor)), targets)

        return temperature.fit(log_probabilities, targets)

    def predictions(self, log_probabilities: npt.NDArray[np.float32]) -> list[Prediction]:
        """Decode log-probabilities, float32 (N, max_length, classes), by each position's likeliest character.

        The confidence is the product of the characters' and of that of the text's end, which is no character.
        """
        seen = self._charset.decode(log_probabilities.argmax(2))
        confidences = np.exp(log_probabilities.max(2)).tolist()
        orders = [visual_order(text) if self.spec.bidirectional else range(len(text)) for text in seen]
        return [
            Prediction("".join(text[k] for k in order), math.prod(c[: len(text) + 1]), tuple(c[k] for k in order))
            for text, c, order in zip(seen, confidences, orders, strict=True)
        ]

    def _encode(self, truths: list[str]) -> npt.NDArray[np.int64]:
        spec = self.spec
        return self._charset.encode(truths, spec.max_length, variable=spec.variable, bidirectional=spec.bidirectional)

    def losses(self, outputs: npt.NDArray[np.float32], truths: Sequence[str]) -> list[float]:
        """Return minus the logarithm of each truth's probability, nats; nan for one that the network cannot give.

        Args:
            outputs: As `outputs` gives them, for N images.
            truths: N texts.
        """
        fits = [self.spec.fits(len(one), len(one)) and not self._charset.unknown_in(one) for one in truths]
        losses = np.full(len(fits), np.nan)
        targets = self._encode([one for one, fit in zip(truths, fits, strict=True) if fit])
        log_probabilities = self.at_positions(outputs[fits], targets)
        losses[fits] = -np.take_along_axis(log_probabilities, targets[:, :, None], 2).sum((1, 2), dtype=np.float64)
        return losses.tolist()

    def _decode(self, source: Any) -> decoder.Pixels | decoder.Unreadable:
        if isinstance(source, pa.Scalar):
            source = source.as_py()
        elif isinstance(source, np.ndarray) and source.dtype.kind in "OSU" and source.ndim == 0:
            source = source.item()
        if not _is_source(source):
            raise TypeError(f"an image is a {TAKEN}, not a {type(source).__name__}")
        if isinstance(source, np.ndarray):
            try:
                return decoder.from_array(source, self.spec.image)
            except ValueError as error:
                return decoder.Unreadable("not_an_image", str(error))
        if isinstance(source, Image.Image):
            return decoder.from_image(source, self.spec.image)
        data = source if isinstance(source, bytes | bytearray | memoryview) else _read(source)
        return data if isinstance(data, decoder.Unreadable) else decoder.decode(bytes(data), self.spec.image)


def _read(source: Any) -> bytes | decoder.Unreadable:
    """Return the bytes of an open file, or of the file that a path or URI names."""
    if hasattr(source, "read"):
        return _read_file(source)
    try:
        return filesystem.read(filesystem.absolute(os.fsdecode(source)))
    except FileNotFoundError:
        return decoder.Unreadable("missing", f"{source} does not exist")
    except (InputError, OSError, ValueError) as error:  # no such scheme, no permission, a zero byte in the path
        return decoder.Unreadable("unreadable", f"{source}: {getattr(error, 'strerror', None) or error}")


def _read_file(file: Any) -> bytes | decoder.Unreadable:
    """Return what is left of an open file, or all of it if nothing is: an image was just written to it."""
    if isinstance(file, io.TextIOBase):
        raise TypeError("a file of an image must be open for reading bytes, by mode 'rb'")
    try:
        data = file.read()
        if data == b"" and file.seekable():
            file.seek(0)
            data = file.read()
    except (OSError, ValueError) as error:
        return decoder.Unreadable("unreadable", f"{type(error).__name__}: {error}")
    if not isinstance(data, bytes):
        raise TypeError("a file of an image must be open for reading bytes, by mode 'rb'")
    return data


def _is_source(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "OSU" or value.ndim == 0  # an array of paths or of bytes holds several
    return isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | pa.Scalar) or hasattr(
        value, "read"
    )
