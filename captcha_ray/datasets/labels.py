"""Find the label of a file: by its folder, its name, or a table. Does not open images."""

import dataclasses
import posixpath
import re
import unicodedata

from captcha_ray.datasets import label_table
from captcha_ray.datasets.config import LabelRule, Labels
from captcha_ray.errors import check
from captcha_ray.storage import filesystem
from captcha_ray.storage.filesystem import is_hidden, speakable
from captcha_ray.text.visual_order import canonical

FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Characters that show nothing though Unicode counts them as letters, marks or symbols."""


VISIBLE_CONTROLS = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
"""Characters that Unicode counts as controls though they are drawn, around numbers (Prepended_Concatenation_Mark)."""

JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner."""

SHAPED = {
    "ADLAM", "ARABIC", "BALINESE", "BENGALI", "DEVANAGARI", "GUJARATI", "GURMUKHI", "HANIFI", "JAVANESE", "KANNADA",
    "KHMER", "MALAYALAM", "MANDAIC", "MANICHAEAN", "MONGOLIAN", "MYANMAR", "NKO", "ORIYA", "PHAGS-PA", "SINHALA",
    "SYRIAC", "TAMIL", "TELUGU", "TIBETAN",
}  # fmt: skip
"""Scripts whose letters joiners shape, by the first word of their characters' names; in others they show nothing."""


@dataclasses.dataclass(frozen=True)
class Listing:
    """Files of a corpus in listing order.

    Attributes:
        uris: Of the files.
        texts: Label of each, None if the rule finds none.
        num_hidden: Hidden and system files, passed over.
        num_cleaned: Labels that `clean` or `canonical` has changed.
        problems: Why there is no label, by place in the lists, where a table's row cannot be understood.
    """

    uris: list[str]
    texts: list[str | None]
    num_hidden: int
    num_cleaned: int = 0
    problems: dict[int, str] = dataclasses.field(default_factory=dict)


def list_corpus(corpus: str, rule: LabelRule) -> Listing:
    """List all files of a corpus with their labels; with a table, the files that it names.

    Raises InputError if the corpus is absent, or as `label_table.read_table` does.
    """
    num_hidden = 0
    problems: dict[int, str] = {}
    if rule.labels == "table":
        rows = list(label_table.read_table(rule.table, rule.path_column, rule.text_column))
        uris, texts = [row.uri for row in rows], [row.text for row in rows]
        problems = {place: row.problem for place, row in enumerate(rows) if row.problem}
    else:
        uris = []
        for uri in filesystem.list_files(corpus):
            if is_hidden(uri, corpus):
                num_hidden += 1
            else:
                uris.append(uri)
        pattern = re.compile(rule.pattern) if rule.pattern else None
        texts = [label_of(uri, corpus, rule.labels, pattern) for uri in uris]
        uris = [speakable(uri) for uri in uris]
    cleaned = texts if rule.keep_blanks else [text and (clean(text) or None) for text in texts]
    cleaned = [text and canonical(text) for text in cleaned]
    num_cleaned = sum(one != other for one, other in zip(texts, cleaned, strict=True))
    return Listing(uris, cleaned, num_hidden, num_cleaned, problems)


def clean(text: str) -> str:
    """Return a label as it is seen: in normal form C, without invisible characters, and without blanks at its ends.

    Normal form C writes a letter and its accent as one character where there is one: a Mac's file names part them.
    Blanks of every kind become the plain one. Joiners stay between letters of scripts that they shape.
    """
    if text.isascii() and text.isprintable() and text == text.strip():
        return text
    shown = "".join(c for c in text if not _is_invisible(c) or c in JOINERS)
    shown = "".join(c for k, c in enumerate(shown) if c not in JOINERS or _joins(shown, k))
    blanks = "".join(" " if c.isspace() else c for c in unicodedata.normalize("NFC", shown))
    return blanks.strip()


def _is_invisible(character: str) -> bool:
    is_selector = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    is_selector = is_selector or character in "\u180b\u180c\u180d\u180f"
    is_control = unicodedata.category(character) in ("Cc", "Cf") and not character.isspace()
    return (is_selector or is_control or character in FILLERS) and character not in VISIBLE_CONTROLS


def _joins(text: str, place: int) -> bool:
    """Return whether a joiner stands between two that it may shape: letters of such a script, or emoji."""
    around = [text[k] for k in (place - 1, place + 1) if 0 <= k < len(text)]
    return len(around) == 2 and all(
        unicodedata.name(c, " ").split(" ")[0] in SHAPED or unicodedata.category(c) in ("So", "Sk") for c in around
    )


def list_images(folder: str) -> list[str]:
    """Return the URIs of unlabeled images. Raises InputError if there are none."""
    uris = list_corpus(filesystem.absolute(folder), LabelRule("filename")).uris
    check(bool(uris), f"{folder} holds no images")
    return uris


def label_of(uri: str, corpus: str, labels: Labels, pattern: re.Pattern[str] | None) -> str | None:
    """Return the label of one file; None if the rule finds none or its name is not UTF-8.

    A file directly in the corpus, in no folder of it, has no label by folder.
    """
    if speakable(uri) != uri:
        return None
    folder, _, name = uri.rpartition("/")
    if labels == "folder":
        return (folder.rpartition("/")[2] or None) if folder != corpus.rstrip("/") else None
    stem = posixpath.splitext(name)[0]
    if pattern is None:
        return stem or None
    match = pattern.search(unicodedata.normalize("NFC", stem))  # a Mac's names part a letter and its accent
    return (match.group(1 if pattern.groups else 0) or None) if match else None
