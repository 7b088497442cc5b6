"""Turn a corpus into shards with Ray Data.

Each task reads, decodes, hashes and writes a block of files and returns only what the driver needs to find duplicates:
hash, label, URI, about 200 bytes a file. Duplicates are rare, so they are removed afterwards from the few parts that
hold one.
"""

import collections
import dataclasses
import functools
import math
import time
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from captcha_ray import console
from captcha_ray.datasets import advice, decoding, image_choice, labels, schema
from captcha_ray.datasets.config import LabelRule, PreprocessConfig
from captcha_ray.datasets.shards import open_shards
from captcha_ray.datasets.splits import SPLITS, split_of
from captcha_ray.errors import InputError
from captcha_ray.images.spec import ImageSpec
from captcha_ray.runs.directory import read_json, to_json
from captcha_ray.runs.environment import versions
from captcha_ray.storage import filesystem, parquet
from captcha_ray.text.charset import Charset
from captcha_ray.text.visual_order import in_visual_order

QUARANTINE_ROWS = 1_000_000
"""Rows of one part of the quarantine."""

STARTED = "_STARTED.json"
"""Marks unfinished shards of this job, which it may overwrite."""

FILE_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("text", pa.string()),
        ("sha256", pa.binary(32)),
        ("split", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("aspect_ratio", pa.float64()),
        ("block", pa.int64()),
    ]
)
"""Rows that a task returns, one per file; reason and detail are empty if the file is in a part."""


def write_block(files: pa.Table, *, config: PreprocessConfig, image: ImageSpec) -> pa.Table:
    """Write one block of files to at most one part per split.

    Args:
        files: Columns uri, text, block (the block's number).
        config: Of the job.
        image: Images to produce.

    Returns:
        A row of `FILE_SCHEMA` per file.
    """
    shard, bad, ratios = decoding.decode_files(files, image, config.max_pixels)
    splits = pa.array([split_of(h, config.split_seed, config.splits) for h in shard["sha256"].to_pylist()], pa.string())
    for split in SPLITS if not config.check else ():
        rows = shard.filter(pc.equal(splits, split))
        if len(rows):
            write_part(part_uri(config.out, split, files["block"][0].as_py()), rows, image)
    good = [shard["uri"], shard["text"], shard["sha256"], splits, *[pa.repeat("", len(shard))] * 2, pa.array(ratios)]
    nothing = pa.nulls(len(bad))
    rejected = [bad["uri"], nothing, nothing, nothing, bad["reason"], bad["detail"], nothing]
    tables = [pa.table(dict(zip(FILE_SCHEMA.names, c, strict=False))) for c in (good, rejected)]
    rows = pa.concat_tables([table.cast(pa.schema(list(FILE_SCHEMA)[:-1])) for table in tables])
    return rows.append_column(FILE_SCHEMA.field("block"), pa.repeat(files["block"][0], len(rows)))


def write_part(uri: str, rows: pa.Table, image: ImageSpec) -> None:
    """Write a part: rows of `schema.shard_schema`, in row groups of `schema.row_group_rows`."""
    parquet.write(uri, rows, use_dictionary=False, row_group_size=schema.row_group_rows(image))


def part_name(split: str, block: int) -> str:
    """Return the name of a part, relative to the shards folder."""
    return f"split={split}/part-{block:05d}.parquet"


def quarantine_name(number: int) -> str:
    """Return the name of a part of the quarantine, relative to the shards folder."""
    return f"quarantine/part-{number:05d}.parquet"


def part_uri(out: str, split: str, block: int) -> str:
    """Return the URI of a part."""
    return filesystem.join(out, part_name(split, block))


def preprocess(config: PreprocessConfig) -> schema.Manifest:
    """Write shards, quarantine, manifest and `_SUCCESS` below `config.out`; finished shards are left as they are.

    Needs a connected Ray. With `config.check` nothing is written. Raises InputError for a corpus that is absent, empty
    or of one class, for refused labels, and if `out` holds anything else.
    """
    started = time.monotonic()
    config = _absolute(config)
    if not config.check:
        if filesystem.exists(filesystem.join(config.out, "_SUCCESS")):
            return _finished(config)
        filesystem.check_writable(config.out)
    rule = config.label_rule
    listing = labels.list_corpus(config.corpus, rule)
    if not listing.uris:
        raise InputError(
            f"the table {config.table} has no rows" if config.table else f"{config.corpus} holds no images"
        )
    files, refused = _labeled_files(listing, config)
    image, files, too_long = image_choice.choose(config, files)
    if not config.check:
        _claim(config)
    results = _run_blocks(files, config, image)
    kept = results.filter(pc.equal(results["reason"], ""))
    bad = results.filter(pc.not_equal(results["reason"], "")).select(schema.QUARANTINE_SCHEMA.names)
    removed = find_repeats(kept)
    kept = _remove(kept, removed, image, "" if config.check else config.out)
    quarantine = pa.concat_tables([refused, too_long, bad.cast(schema.QUARANTINE_SCHEMA), removed])
    manifest = _manifest(config, image, rule, listing, kept, quarantine, time.monotonic() - started)
    advice.warn_of_unseen(manifest)
    if config.check:
        advice.advise(config, manifest, kept["text"].to_pylist(), quarantine)
        return manifest
    for number, start in enumerate(range(0, len(quarantine), QUARANTINE_ROWS)):
        part = quarantine.slice(start, QUARANTINE_ROWS)
        parquet.write(filesystem.join(config.out, quarantine_name(number)), part, use_dictionary=False)
    _clear(config.out, manifest, num_parts=math.ceil(len(quarantine) / QUARANTINE_ROWS))
    filesystem.write(filesystem.join(config.out, "manifest.json"), to_json(manifest.to_dict()))
    filesystem.write(filesystem.join(config.out, "_SUCCESS"), b"")
    filesystem.delete(filesystem.join(config.out, STARTED))
    return manifest


def _absolute(config: PreprocessConfig) -> PreprocessConfig:
    """Return the config with absolute paths; with a table, its folder is the corpus."""
    out = filesystem.absolute(config.out)
    if config.labels != "table":
        return dataclasses.replace(config, corpus=filesystem.absolute(config.corpus), out=out)
    table = filesystem.absolute(config.table)
    return dataclasses.replace(config, corpus=table.rpartition("/")[0], table=table, out=out)


def _finished(config: PreprocessConfig) -> schema.Manifest:
    manifest = open_shards(config.out).manifest
    for name, value in config.to_dict().items():
        found = manifest.config.get(name, getattr(PreprocessConfig(), name))  # shards may be older than a field
        if found != value:
            raise InputError(f"{config.out} holds shards made with {name} {found!r}, not {value!r}; name another --out")
    console.say(
        f"{config.out} is finished already; nothing to do (for what {config.corpus} has got since, name another --out)"
    )
    return manifest


def _claim(config: PreprocessConfig) -> None:
    """Mark the folder as begun. Raises InputError if it holds anything but unfinished work of this job."""
    marker = filesystem.join(config.out, STARTED)
    if filesystem.exists(marker):
        if PreprocessConfig.from_dict(read_json(marker)) != config:
            raise InputError(f"{config.out} holds shards begun with other settings; name another --out")
    elif not filesystem.is_empty(config.out):
        raise InputError(f"{config.out} is not empty and holds no shards; name another --out")
    filesystem.write(marker, to_json(config.to_dict()))


def _clear(out: str, manifest: schema.Manifest, num_parts: int) -> None:
    """Remove parts of an interrupted attempt that the finished shards do not have."""
    wanted = {part for parts in manifest.parts.values() for part in parts}
    wanted |= {quarantine_name(number) for number in range(num_parts)}
    for uri in list(filesystem.list_files(out)):
        name = uri.removeprefix(f"{out}/")
        if name.startswith(("split=", "quarantine/")) and name not in wanted:
            filesystem.delete(uri)


def _labeled_files(listing: labels.Listing, config: PreprocessConfig) -> tuple[pa.Table, pa.Table]:
    """Return the files to read (uri, text), and quarantine rows for the others, and say how many there are.

    Raises InputError if there is none, or as `_check_labels` does.
    """
    files, refused = _check_labels(listing, config)
    if not len(files):
        raise InputError(
            f"none of the {len(listing.uris):,} files of {config.corpus} has a label that can be used "
            f"(--labels {config.labels}); {refused['uri'][0]}: {refused['detail'][0]}"
        )
    first = files.slice(0, 1).to_pylist()[0]
    console.say(f"{len(files):,} labels by --labels {config.labels}, such as {first['text']!r} of {first['uri']}")
    if listing.num_cleaned:
        console.warn(
            f"{listing.num_cleaned:,} labels had blanks at their ends, invisible characters, accents apart from their "
            "letters, or right-to-left text that looks the same in another order, and were mended; --keep-blanks "
            "leaves all but the last as they are"
        )
    if listing.problems:
        console.warn(
            f"{len(listing.problems):,} rows of the table cannot be understood; the first: "
            f"{next(iter(listing.problems.values()))}"
        )
    return files, refused


def _check_labels(listing: labels.Listing, config: PreprocessConfig) -> tuple[pa.Table, pa.Table]:
    """Return the files to read (uri, text), and quarantine rows for those with a bad label.

    Raises InputError for the first bad label if they are to be refused.
    """
    charset = Charset(_alphabet(config)) if config.charset else None
    good: list[tuple[str, str]] = []
    bad: list[tuple[str, str, str]] = []
    seen: set[tuple[str, str | None]] = set()
    for place, (uri, text) in enumerate(zip(listing.uris, listing.texts, strict=True)):
        if problem := listing.problems.get(place):
            bad.append((uri, "bad_row", problem))
            continue
        if (uri, text) in seen:
            continue  # a table may name a file twice; it is one file
        seen.add((uri, text))
        if text is None:
            bad.append((uri, "no_label", "the label rule finds nothing, or only blanks; or the name is not UTF-8"))
        elif (given_back := in_visual_order(in_visual_order(text))) != text:
            bad.append((uri, "right_to_left", f"label {text!r}, in the order of its image, is also {given_back!r}"))
        elif charset and (unknown := charset.unknown_in(text)):
            bad.append((uri, "unknown_character", f"label {text!r} holds {unknown!r}"))
        elif config.length and len(text) != config.length:
            bad.append((uri, "wrong_length", f"label {text!r} has {len(text)} characters, not {config.length}"))
        elif config.max_length and len(text) > config.max_length:
            bad.append((uri, "too_long", f"label {text!r} has {len(text)} characters, more than {config.max_length}"))
        else:
            good.append((uri, text))
    if bad and config.bad_labels == "refuse":
        raise InputError(
            f"{len(bad):,} of {len(listing.uris):,} labels are refused; the first, of {bad[0][0]}: {bad[0][2]}"
        )
    columns = zip(*good, strict=True) if good else ((), ())
    return pa.table([pa.array(list(c), pa.string()) for c in columns], names=["uri", "text"]), schema.quarantine(bad)


def _alphabet(config: PreprocessConfig) -> str:
    """Return the charset that was requested, in the form that labels have."""
    return config.charset if config.keep_blanks else unicodedata.normalize("NFC", config.charset)


def _run_blocks(files: pa.Table, config: PreprocessConfig, image: ImageSpec) -> pa.Table:
    num_blocks = -(-len(files) // decoding.block_rows(len(files), image))
    blocks = []
    for number in range(num_blocks):  # from all over the corpus, which may be sorted by label
        block = files.take(np.arange(number, len(files), num_blocks))
        blocks.append(block.append_column("block", pa.repeat(pa.scalar(number, pa.int64()), len(block))))
    dataset = ray.data.from_arrow(blocks).map_batches(
        functools.partial(write_block, config=config, image=image),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
    )
    results = []
    with console.progress("preprocess", len(files), "images") as advance:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            results.append(table)
            advance(len(table))
    return pa.concat_tables(results)


def find_repeats(kept: pa.Table) -> pa.Table:
    """Return quarantine rows for files with the same pixels as another.

    `duplicate`, except for the first URI; `conflicting_labels`, for all of them, if their labels differ. kept: columns
    uri, text, sha256.
    """
    groups = kept.group_by("sha256").aggregate([("uri", "count")])
    repeated = groups.filter(pc.greater(groups["uri_count"], 1))["sha256"]
    members = kept.filter(pc.is_in(kept["sha256"], value_set=repeated.combine_chunks())).sort_by("uri")
    by_hash: dict[bytes, list[tuple[str, str]]] = collections.defaultdict(list)
    for row in members.select(["sha256", "uri", "text"]).to_pylist():
        by_hash[row["sha256"]].append((row["uri"], row["text"]))
    bad: list[tuple[str, str, str]] = []
    for group in by_hash.values():
        first, text = group[0]
        if all(t == text for _, t in group):
            bad += [(uri, "duplicate", f"same pixels and label as {first}") for uri, _ in group[1:]]
        else:
            for uri, own in group:
                other, its = next(one for one in group if one[1] != own)
                bad.append((uri, "conflicting_labels", f"labeled {own!r}, but {other} with the same pixels {its!r}"))
    return schema.quarantine(sorted(bad))


def _remove(kept: pa.Table, removed: pa.Table, image: ImageSpec, out: str) -> pa.Table:
    """Remove files from the parts that hold them, if there are any, and return the rows that stay."""
    gone = pc.is_in(kept["uri"], value_set=removed["uri"].combine_chunks())
    if not out:
        return kept.filter(pc.invert(gone))
    for part in kept.filter(gone).select(["split", "block"]).group_by(["split", "block"]).aggregate([]).to_pylist():
        uri = part_uri(out, part["split"], part["block"])
        rows = parquet.read(uri)
        rows = rows.filter(pc.invert(pc.is_in(rows["uri"], value_set=removed["uri"].combine_chunks())))
        if len(rows):
            write_part(uri, rows, image)
        else:
            filesystem.delete(uri)
    return kept.filter(pc.invert(gone))


def _manifest(
    config: PreprocessConfig,
    image: ImageSpec,
    rule: LabelRule,
    listing: labels.Listing,
    kept: pa.Table,
    quarantine: pa.Table,
    seconds: float,
) -> schema.Manifest:
    reasons = collections.Counter(quarantine["reason"].to_pylist())
    if not len(kept):
        first = f"; {quarantine['uri'][0]}: {quarantine['detail'][0]}" if len(quarantine) else ""
        raise InputError(f"{config.corpus} holds no image that can be used: {decoding.counted(reasons)}{first}")
    texts = {s: kept.filter(pc.equal(kept["split"], s))["text"].to_pylist() for s in SPLITS}
    every = [text for split in texts.values() for text in split]
    charset = Charset(_alphabet(config)) if config.charset else Charset.found_in(every)
    if len(set(every)) == 1:
        raise InputError(f"{config.corpus} holds one class: every label is {every[0]!r}, so there is nothing to learn")
    counts = {s: collections.Counter("".join(t)) for s, t in texts.items()}
    parts = kept.select(["split", "block"]).group_by(["split", "block"]).aggregate([]).to_pylist()
    return schema.Manifest(
        source=config.corpus,
        label_rule=rule.to_dict(),
        image=image.to_dict(),
        charset=charset.characters,
        min_length=min(map(len, every)),
        max_length=max(map(len, every)),
        splits=config.splits,
        split_seed=config.split_seed,
        num_images={s: len(t) for s, t in texts.items()},
        num_characters={s: {c: counts[s][c] for c in charset.characters} for s in texts},
        num_quarantined=dict(reasons),
        num_hidden=listing.num_hidden,
        parts={s: sorted(part_name(s, p["block"]) for p in parts if p["split"] == s) for s in texts},
        seconds=round(seconds, 3),
        config=config.to_dict(),
        versions=versions(),
        aspect_ratios=tuple(round(float(x), 4) for x in np.quantile(kept["aspect_ratio"], [0.01, 0.99])),
    )
