"""Represent a network's alphabet as a value. Its order matters: class k is character k."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from captcha_ray.errors import InputError
from captcha_ray.text.visual_order import in_visual_order


@dataclasses.dataclass(frozen=True)
class Charset:
    """An ordered set of single characters.

    Raises InputError if it is empty or holds a character twice.
    """

    characters: str

    def __post_init__(self) -> None:
        if not self.characters:
            raise InputError("the charset is empty")
        if len(set(self.characters)) != len(self.characters):
            raise InputError(f"the charset {self.characters!r} holds a character twice")

    @classmethod
    def found_in(cls, texts: Iterable[str]) -> "Charset":
        """Return the alphabet of all texts, sorted by code point. Raises InputError if there is no character."""
        return cls("".join(sorted(set().union(*texts))))

    def __len__(self) -> int:
        return len(self.characters)

    def unknown_in(self, text: str) -> str:
        """Return the characters of `text` that are not in the alphabet, each once, in order of appearance."""
        return "".join(dict.fromkeys(c for c in text if c not in self.characters))

    def encode(
        self, texts: list[str], max_length: int, *, variable: bool = False, bidirectional: bool = False
    ) -> npt.NDArray[np.int64]:
        """Encode texts as class indices.

        Args:
            texts: N texts of exactly `max_length` characters.
            max_length: Characters of a text.
            variable: Allow fewer characters, down to one; class K, one beyond the last character, fills the rows
                up.
            bidirectional: Encode characters as they stand in an image from left to right, see `visual_order`.

        Returns:
            int64 (N, max_length).

        Raises:
            InputError: A character is unknown or a length does not fit.
        """
        index = {c: i for i, c in enumerate(self.characters)}
        classes = np.full((len(texts), max_length), len(self), np.int64)
        for row, text in zip(classes, texts, strict=True):
            if not (1 if variable else max_length) <= len(text) <= max_length:
                reads = f"1 to {max_length}" if variable else f"{max_length}"
                raise InputError(f"label {text!r} has {len(text)} characters where the network recognizes {reads}")
            if unknown := self.unknown_in(text):
                raise InputError(f"label {text!r} holds {unknown!r}, which the charset {self.characters!r} lacks")
            row[: len(text)] = [index[c] for c in (in_visual_order(text) if bidirectional else text)]
        return classes

    def decode(self, classes: npt.NDArray[np.integer]) -> list[str]:
        """Decode class indices, integer (N, max_length), to N texts; each ends before its first class K."""
        characters = [*self.characters, ""]
        return ["".join(characters[k] for k in row[: _end(row, len(self))]) for row in classes.tolist()]


def _end(row: list[int], end: int) -> int:
    return row.index(end) if end in row else len(row)
