"""Tell a useless network from one that recognizes text, and say what may make either better. Pure arithmetic.

Every sentence has this corpus' own figures, in the order in which the causes are worth looking at.
"""

import collections
import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.datasets.schema import Manifest
from captcha_ray.metrics.counts import guess_loss
from captcha_ray.recipes import auto_config
from captcha_ray.recipes.config import TrainConfig

MIN_GAIN = 0.01
"""Share of whole strings by which something must help to be suggested."""

HARDLY_ANY = 0.02
"""Share of whole strings at or below which a network counts as useless."""

FEW_STRINGS, MANY_CHARACTERS = 10, 0.5
"""A network with this share of characters may miss so few whole strings by bad luck."""

MIN_PIXELS = 12
"""Pixels of width a character below which networks seldom work: none recognized eight letters in 64 pixels."""

FEW_PIXELS = 16
"""Pixels of width a character below which larger images may help."""

GOOD_PIXELS = 24
"""Pixels of width a character to try instead."""

MIN_OCCURRENCES = 20
"""Times that the rarest character should occur in training: 50 captchas with 13 a character are recognized."""

LEARNED = 0.5
"""Share of the loss of guessing below which a network has learned its training images."""

NO_LABEL_AT_ALL = 0.1
"""Share of files kept out for their labels above which the label rule is suspected first."""

GOOD_STRINGS = 0.98
"""Share of whole strings from which on nothing is suggested."""

NUM_PAIRS = 5
"""Pairs of confused characters that a sentence names."""

ENOUGH_FOR_FOLDS = 50
"""Least images for which cross-validation is suggested."""

OWN_SPLITS = ("train", "val", "test", "cross_validation")
"""Evaluations of the run's own images; others say nothing about its training."""

LABEL_REASONS = (
    "no_label",
    "unknown_character",
    "wrong_length",
    "too_long",
    "bad_row",
    "right_to_left",
    "conflicting_labels",
)
"""Reasons in a quarantine that are about labels."""


def diagnose(
    splits: Mapping[str, Mapping[str, Any]],
    epochs: Sequence[Mapping[str, Any]],
    config: TrainConfig,
    manifest: Manifest,
) -> list[str]:
    """Return sentences for a person: what is useless, likely causes, and last the next command. Empty if all is well.

    Args:
        splits: `counts.PredictionCounts.summary()` by split.
        epochs: Lines of `metrics.jsonl`.
        config: Of the run, resolved.
        manifest: Of the shards.
    """
    useless = [said for name in OWN_SPLITS if name in splits and (said := describe_useless(name, splits[name]))]
    strings, characters = (_best(epochs, name) for name in ("val_exact_match", "val_char_accuracy"))
    if strings is not None and _reads_nothing(strings, characters or 0.0, manifest.num_images["val"]):
        useless.append(f"in the best of {len(epochs)} epochs it has recognized {strings:.2%} of the validation strings")
    counts = manifest.num_characters.get("val", {}).values()
    commonest = max(counts, default=0) / max(sum(counts), 1)
    if not useless and characters is not None and characters <= commonest < 1:
        useless.append(
            f"in the best of {len(epochs)} epochs it has recognized {characters:.2%} of the validation characters, of "
            f"which the commonest alone are {commonest:.2%}"
        )
    if len(manifest.charset) == 1 and manifest.min_length == manifest.max_length:
        useless.append(f"every label is {manifest.charset * manifest.max_length!r}: there is nothing to tell apart")
    if not useless:
        return []
    causes = [_pixels(manifest), _images(manifest), _labels(manifest), _loss(epochs, manifest)]
    return [f"this network is of no use: {'; '.join(useless)}", *causes, f"next: {_next(epochs, config, manifest)}"]


def suggest(results: Mapping[str, Any], config: TrainConfig, manifest: Manifest) -> list[str]:
    """Return sentences on what may make a network better that recognizes some strings, but not all.

    Args:
        results: What `results.json` holds. The split with the most images counts.
        config: Of the run, resolved.
        manifest: Of the shards.
    """
    order = ("val", "cross_validation", "test")  # of as many images the last is taken
    splits = [(results[name]["num_images"], order.index(name)) for name in order if name in results]
    if not splits:
        return []
    name = order[max(splits)[1]]
    summary = results[name]
    if summary["exact_match"] is None or summary["exact_match"] >= GOOD_STRINGS:
        return []
    said = [*_confused(summary), *_case(summary), *_rare(manifest)]
    if _pixels_each(manifest) < FEW_PIXELS and not manifest.image_spec.two_lines:
        each = _pixels_each(manifest)
        said.append(f"size: {each:.0f} pixels of width a character are few; larger images: {_larger(config, manifest)}")
    if "cross_validation" not in results and sum(manifest.num_images.values()) >= ENOUGH_FOR_FOLDS:
        folds = _command("evaluate", run=config.run, folds="5")
        said.append(f"labels: cross-validation shows those that are probably wrong: {folds}")
    if curve := results.get("learning_curve"):
        said.append(f"more labels: {curve['answer']}")
    else:
        command = _command("evaluate", run=config.run, learning_curve=True)
        said.append(f"more labels: a learning curve estimates how many would reach 99 %: {command}")
    return said


def _confused(summary: Mapping[str, Any]) -> list[str]:
    """Say which characters are taken for one another in strings that are right otherwise, and what that costs."""
    pairs = collections.Counter[tuple[str, str]]()
    for truth, prediction, number in summary.get("single_confusions", ()):
        pairs[min(truth, prediction), max(truth, prediction)] += number
    wrong = summary["num_images"] - summary["num_exact_match"]
    if not pairs:
        return []
    named = ", ".join(f"{a!r} and {b!r} ({number:,})" for (a, b), number in pairs.most_common(NUM_PAIRS))
    strings = summary["exact_match"]
    better = strings + sum(number for _, number in pairs.most_common(NUM_PAIRS)) / summary["num_images"]
    return [
        f"characters: {pairs.total():,} of {wrong:,} wrong strings are wrong in one character alone, most often "
        f"{named}; if these were told apart, {better:.1%} of the strings would be right instead of {strings:.1%}; the "
        "pictures of the mistakes show whether people can"
    ]


def _case(summary: Mapping[str, Any]) -> list[str]:
    strings, loosely = summary["exact_match"], summary.get("exact_match_ignoring_case") or 0.0
    if loosely - strings < MIN_GAIN:
        return []
    return [
        f"case: {loosely:.1%} of the strings are right if upper and lower case count as one, {strings:.1%} if not; "
        "where case has no meaning, write all labels in one case and train again"
    ]


def _rare(manifest: Manifest) -> list[str]:
    counts = manifest.num_characters["train"]
    rare = sorted((c for c in manifest.charset if counts.get(c, 0) < MIN_OCCURRENCES), key=lambda c: counts.get(c, 0))
    if not rare:
        return []
    named = ", ".join(f"{c!r} ({counts.get(c, 0):,})" for c in rare[:NUM_PAIRS])
    return [
        f"images: {len(rare):,} of {len(manifest.charset):,} characters stand fewer than {MIN_OCCURRENCES} times in "
        f"the training images, such as {named}; label more images that hold them"
    ]


def _best(epochs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the largest value of any epoch; None if none has one."""
    return max((epoch[name] for epoch in epochs if epoch.get(name) is not None), default=None)


def _reads_nothing(strings: float, characters: float, num_images: int) -> bool:
    return strings <= HARDLY_ANY and (num_images >= FEW_STRINGS or characters < MANY_CHARACTERS)


def describe_useless(name: str, summary: Mapping[str, Any]) -> str:
    """Return why a network with such results is of no use; "" if it is of some."""
    strings, characters = summary.get("exact_match"), summary.get("char_accuracy")
    if strings is None or characters is None:
        return ""
    support = [row["support"] for row in summary["classes"].values()]
    commonest = max(support) / max(sum(support), 1)
    guessed = characters <= commonest < 1
    if not guessed and not _reads_nothing(strings, characters, summary["num_images"]):
        return ""
    return (
        f"it recognizes {strings:.2%} of the {summary['num_images']:,} strings of {name} and {characters:.2%} of their "
        f"characters, of which the commonest alone are {commonest:.2%}"
    )


def _pixels_each(manifest: Manifest) -> float:
    return manifest.image_spec.width / manifest.max_length


def _pixels(manifest: Manifest) -> str:
    each, image = _pixels_each(manifest), manifest.image_spec
    few = f"; fewer than {MIN_PIXELS} are seldom enough" if each < MIN_PIXELS else ", usually enough"
    return (
        f"pixels: images of {image.width}x{image.height} leave {each:.0f} pixels of width to each of up to "
        f"{manifest.max_length} characters{few}"
    )


def _rarest(manifest: Manifest) -> tuple[str, int]:
    counts = manifest.num_characters["train"]
    character = min(manifest.charset, key=lambda c: counts.get(c, 0))
    return character, counts.get(character, 0)


def _images(manifest: Manifest) -> str:
    character, count = _rarest(manifest)
    few = f"; fewer than {MIN_OCCURRENCES} are seldom enough" if count < MIN_OCCURRENCES else ", usually enough"
    return (
        f"images: {manifest.num_images['train']:,} to train on, in which the rarest of {len(manifest.charset)} "
        f"characters, {character!r}, stands {count:,} times{few}"
    )


def _misfits(manifest: Manifest) -> tuple[int, int]:
    """Count the files that were kept out for their labels, and all files."""
    kept_out = sum(manifest.num_quarantined.get(reason, 0) for reason in LABEL_REASONS)
    return kept_out, sum(manifest.num_images.values()) + sum(manifest.num_quarantined.values())


def _labels(manifest: Manifest) -> str:
    kept_out, files = _misfits(manifest)
    rule = f"--labels {manifest.label_rule['labels']}"
    if pattern := manifest.label_rule.get("label_pattern"):
        rule += f" --label-pattern {shlex.quote(pattern)}"
    return (
        f"labels: {kept_out:,} of {files:,} files were kept out because their labels do not fit ({rule}); look at the "
        "pictures in the report to see whether the other labels are right"
    )


def _guess_loss(manifest: Manifest) -> float:
    """Return the loss, nats per image, of always guessing each character as often as it occurs."""
    counts = np.array([list(manifest.num_characters["train"].values())], np.int64)
    return guess_loss(counts) * int(counts.sum()) / max(manifest.num_images["train"], 1)


def _losses(epochs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the least training loss and the least validation loss of any epoch; nan where there is none."""
    least = []
    for name in ("train_loss", "val_loss"):
        known = [epoch[name] for epoch in epochs if epoch.get(name) is not None]
        least.append(min(known, default=math.nan))
    return least[0], least[1]


def _loss(epochs: Sequence[Mapping[str, Any]], manifest: Manifest) -> str:
    guess = _guess_loss(manifest)
    train, val = _losses(epochs)
    if math.isnan(train):
        return f"loss: unknown; guessing costs {guess:.2f} nats an image"
    found = f"{train:.2f} nats an image in training" + ("" if math.isnan(val) else f", {val:.2f} in validation")
    meaning = "the training images were learned by heart" if train < LEARNED * guess else "next to nothing was learned"
    chosen = auto_config.epochs(manifest)
    short = f" in {len(epochs)} epochs, where {chosen} would be chosen" if len(epochs) < chosen else ""
    return f"loss: {found}; guessing costs {guess:.2f}, so {meaning}{short}"


def _next(epochs: Sequence[Mapping[str, Any]], config: TrainConfig, manifest: Manifest) -> str:
    """Return the command to try, for the first cause that applies."""
    kept_out, files = _misfits(manifest)
    if _pixels_each(manifest) < MIN_PIXELS and not manifest.image_spec.two_lines:
        return _larger(config, manifest)
    if config.network != "column_cnn":
        return _command("train", shards=config.shards, run=f"{config.run}-auto")
    if _rarest(manifest)[1] < MIN_OCCURRENCES or _losses(epochs)[0] < LEARNED * _guess_loss(manifest):
        return _command("evaluate", run=config.run, learning_curve=True)
    if kept_out > NO_LABEL_AT_ALL * files:
        rows = f"pq.read_table({config.shards + '/quarantine'!r}, columns=['reason', 'uri']).slice(0, 20).to_pylist()"
        return shlex.join(["python", "-c", f"import pyarrow.parquet as pq; print(*{rows}, sep='\\n')"])
    longest = config.max_epochs or config.epochs
    if longest < auto_config.LONGEST * auto_config.epochs(manifest):
        return _command("train", shards=config.shards, run=f"{config.run}-longer")
    return _command("train", shards=config.shards, run=f"{config.run}-longer", max_epochs=str(2 * longest))


def _larger(config: TrainConfig, manifest: Manifest) -> str:
    """Return the command that makes shards of images of `GOOD_PIXELS` a character."""
    factor = GOOD_PIXELS / _pixels_each(manifest)
    image = manifest.image_spec
    left, top, right, bottom = image.crop or (0.0, 0.0, 1.0, 1.0)  # a size that is given is the whole picture's
    width, height = round(image.width * factor / (right - left)), round(image.height * factor / (bottom - top))
    return _preprocess(manifest, width, height, f"{config.shards}-{width}x{height}")


def _preprocess(manifest: Manifest, width: int, height: int, out: str) -> str:
    """Return the command that made the shards, with another size and another place."""
    known = {field.name for field in dataclasses.fields(PreprocessConfig)}
    made = PreprocessConfig.from_dict({name: value for name, value in manifest.config.items() if name in known})
    said = dataclasses.replace(made, width=width, height=height, out=out).to_dict()
    default = PreprocessConfig().to_dict()
    return _command("preprocess", **{name: value for name, value in said.items() if value != default[name]})


def _command(job: str, **flags: Any) -> str:
    words = ["python", f"jobs/{job}.py"]
    for name, value in flags.items():
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words += [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return shlex.join(words)
