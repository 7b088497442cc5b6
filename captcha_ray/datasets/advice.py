"""Say what is wrong with a corpus, what looks like a mistake in its labels, and which command follows."""

import collections
import dataclasses
import shlex

import pyarrow as pa
import pyarrow.compute as pc

from captcha_ray import console
from captcha_ray.datasets import schema
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.storage import filesystem

LOOK_ALIKE = ("0Oo", "1lI|", "5S", "2Z", "8B", "vV", "wW", "xX", "cC", "sS", "zZ", "uU", "pP", "kK")
"""Characters that people who label take for one another."""

RARE = 0.02
"""Share of occurrences below which one of them may be a mistake."""

NUM_NAMED = 20
"""Characters that a warning names."""


def warn_of_unseen(manifest: schema.Manifest) -> None:
    """Warn of characters that cannot be learned, as no training image shows them."""
    unseen = [c for c, number in manifest.num_characters["train"].items() if not number]
    if unseen:
        some = ", ".join(map(repr, unseen[:NUM_NAMED])) + (", ..." if len(unseen) > NUM_NAMED else "")
        console.warn(f"{len(unseen):,} of {len(manifest.charset):,} characters have no training image: {some}")


def advise(config: PreprocessConfig, manifest: schema.Manifest, texts: list[str], quarantine: pa.Table) -> None:
    """Say what would be in the shards, what looks like a mistake, what would be left out, and which command follows.

    config: with absolute paths.
    """
    for line in manifest.describe():
        console.say(line)
    lengths = sorted(collections.Counter(map(len, texts)).items())
    console.say("labels by length: " + ", ".join(f"{number:,} of {length}" for length, number in lengths))
    for sentence in suspicions(texts):
        console.warn(sentence)
    for reason in sorted(set(quarantine["reason"].to_pylist())):
        rows = quarantine.filter(pc.equal(quarantine["reason"], reason))
        console.say(f"{reason}: {len(rows):,} files, such as {rows['uri'][0]}: {rows['detail'][0]}")
    console.say(f"nothing was written; this makes the shards: {command(config)}")


def command(config: PreprocessConfig) -> str:
    """Return the command line of a config, without `--check`."""
    words = ["captcha-ray", "preprocess"]
    if config.out == filesystem.absolute(PreprocessConfig.out):  # nobody has named a place yet
        config = dataclasses.replace(config, out=f"shards/{config.corpus.rpartition('/')[2] or 'corpus'}")
    defaults = PreprocessConfig().to_dict()
    for name, value in config.to_dict().items():
        if name == "check" or value == defaults[name] or (name == "corpus" and config.labels == "table"):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words += map(str, value if isinstance(value, list | tuple) else [value])
    return shlex.join(words)


def suspicions(texts: list[str]) -> list[str]:
    """Return sentences on what may be mistakes in labels: characters that look alike, and two cases of a letter."""
    counts = collections.Counter("".join(texts))
    found = []
    for pair in LOOK_ALIKE:
        there = [c for c in pair if counts[c]]
        if len(there) > 1:
            rare = min(there, key=lambda c: counts[c])
            if counts[rare] < RARE * sum(counts[c] for c in there):
                numbers = ", ".join(f"{c!r} {counts[c]:,} times" for c in there)
                found.append(f"labels hold {numbers}: look whether the rare one is a mistake")
    letters = [c for c in counts if c.lower() != c.upper()]
    lower = sum(counts[c] for c in letters if c == c.lower())
    upper = sum(counts[c] for c in letters if c != c.lower())
    if 0 < min(lower, upper) < RARE * (lower + upper):
        few, many = ("lower", "upper") if lower < upper else ("upper", "lower")
        found.append(f"{min(lower, upper):,} letters are {few} case, {max(lower, upper):,} {many}: look at the few")
    return found
