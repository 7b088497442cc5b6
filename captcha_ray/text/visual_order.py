"""Bring labels of right-to-left scripts into the order in which their characters stand in an image, and back.

A network finds characters from left to right, while Hebrew or Arabic text is stored in the order in which it is read.
The Unicode bidirectional algorithm (Unicode Standard Annex #9) tells both orders; numbers within stay left to right.
"""

import functools
import unicodedata

from bidi import algorithm

RIGHT_TO_LEFT = ("R", "AL", "AN")
"""Bidirectional classes of Hebrew and Arabic letters, and of Arabic digits."""


NOT_ORDERED = ("", "B", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN")
"""Classes of characters that are not assigned, part paragraphs or show nothing; a text with them keeps its order."""


def has_right_to_left(text: str) -> bool:
    """Return whether a character belongs to a right-to-left script."""
    return not text.isascii() and any(unicodedata.bidirectional(c) in RIGHT_TO_LEFT for c in text)


@functools.lru_cache(65_536)
def visual_order(text: str) -> tuple[int, ...]:
    """Return for each place in an image, from left to right, the index of its character in the text.

    Applied to a text in visual order, it gives the way back. Characters are not mirrored: a parenthesis keeps its
    class, however it is drawn.
    """
    if not has_right_to_left(text):
        return tuple(range(len(text)))
    storage = algorithm.get_empty_storage()
    storage["base_level"] = algorithm.get_base_level(text)
    storage["base_dir"] = "LR"[storage["base_level"]]
    algorithm.get_embedding_levels(text, storage, False)
    if any(character["orig"] in NOT_ORDERED for character in storage["chars"]):
        return tuple(range(len(text)))
    for index, character in enumerate(storage["chars"]):
        character["index"] = index
    for step in (
        algorithm.explicit_embed_and_overrides,
        algorithm.resolve_weak_types,
        algorithm.resolve_neutral_types,
        algorithm.resolve_implicit_levels,
        algorithm.reorder_resolved_levels,
    ):
        step(storage, False)
    return tuple(character["index"] for character in storage["chars"])


def in_visual_order(text: str) -> str:
    """Return the characters as they stand in an image from left to right; or the text, if they are in that order."""
    return "".join(text[index] for index in visual_order(text))


def canonical(text: str) -> str:
    """Return, of all texts that look the same in an image, the one that characters in visual order are turned into.

    A text of several scripts and numbers for which there is none is returned as it is.
    """
    if not has_right_to_left(text):
        return text
    seen = in_visual_order(text)
    back = in_visual_order(seen)
    return back if in_visual_order(back) == seen else text
