"""Restrict a network to some of its characters or to texts of one length, where a user knows more than it does."""

import dataclasses
import hashlib

import numpy as np
import numpy.typing as npt

from captcha_ray.errors import check
from captcha_ray.models.ctc_decoding import log_softmax
from captcha_ray.models.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Restriction:
    """A restriction of texts. charset: all characters that they may hold, empty for any. length: theirs, 0 for any."""

    charset: str = ""
    length: int = 0

    def spec(self, spec: ModelSpec) -> ModelSpec:
        """Return the description of the restricted network.

        Raises InputError if it does not know such characters, or does not give texts of this length.
        """
        unknown = "".join(character for character in self.charset if character not in spec.charset)
        check(not unknown, f"charset holds {unknown!r}, which the network's charset {spec.charset!r} lacks")
        if self.charset:
            spec = dataclasses.replace(spec, charset="".join(c for c in spec.charset if c in self.charset))
        if self.length:
            check(
                spec.fits(self.length, self.length) and (spec.has_columns or self.length == spec.max_length),
                f"length is {self.length}; the network recognizes {spec.length_range} characters an image",
            )
            spec = dataclasses.replace(spec, max_length=self.length, variable=False)
        return spec

    def model_id(self, model_id: str, spec: ModelSpec) -> str:
        """Return the fingerprint of the restricted network: its predictions are not those of the whole one."""
        restricted = self.spec(spec)
        if restricted == spec:
            return model_id
        characters = "".join(sorted(restricted.charset)) if restricted.charset != spec.charset else ""
        return hashlib.sha256(f"{model_id} {self.length} {characters}".encode()).hexdigest()

    def apply(self, log_probabilities: npt.NDArray[np.float32], spec: ModelSpec) -> npt.NDArray[np.float32]:
        """Return the log-probabilities of the classes that are left, given that it is one of them.

        Args:
            log_probabilities: Of an engine, float32 (N, T or S, classes of the whole network).
            spec: Of the whole network. Classes after its characters, for blanks, are kept.
        """
        if not self.charset:
            return log_probabilities
        others = range(len(spec.charset), log_probabilities.shape[2])
        classes = [*(k for k, character in enumerate(spec.charset) if character in self.charset), *others]
        return log_softmax(log_probabilities[:, :, classes])


WHOLE = Restriction()
"""Leaves a network as it is."""
