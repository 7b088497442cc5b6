"""The Ray Data graph from a corpus to shards, and from shards back to a Dataset.

Each task reads, decodes, hashes and writes a block of files at once and returns only what the driver needs to find
duplicates: hash, label, URI. Duplicates are rare, so they are taken out of the few parts that hold one afterwards.
The driver keeps about 200 bytes per file. Does not train, does not draw images.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from captcha_ray import console, images, labels, runs, schema, storage
from captcha_ray.charset import Charset
from captcha_ray.config import EvaluateConfig, ImageSpec, InputError, PreprocessConfig, check
from captcha_ray.spec import ModelSpec

T = TypeVar("T")

NUM_FETCH_THREADS = 16
"""Concurrent reads a task keeps in flight against an object store; local files are read one after another."""

BLOCK_BYTES = 256 << 20
"""Pixels a task holds at most; it needs about three times as much memory while it writes them."""

QUARANTINE_ROWS = 1_000_000
"""Rows of one part of the quarantine."""

NUM_SAMPLED = 512
"""Files that are looked at for the size and color of a corpus."""

HEIGHTS = (32, 64)
"""Images of a corpus become at least and at most so high, pixels, where nothing else is asked for: less hides strokes
from convolutions, more is work without use."""

STARTED = "_STARTED.json"
"""Marks shards that a job began and has not finished; they are this project's to overwrite."""


FILE_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("text", pa.string()),
        ("sha256", pa.binary(32)),
        ("split", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("block", pa.int64()),
    ]
)
"""What a task returns of each file; reason and detail are empty for one that is in a part."""


def block_rows(num_files: int, image: ImageSpec) -> int:
    """Files per task and part: a function of the corpus alone, so that parts are the same for any cluster."""
    fitting = max(BLOCK_BYTES // math.prod(image.shape), 1)
    return min(max(-(-num_files // 64), 2048), 16_384, fitting)  # a task costs Ray Data about 0.1 s


def choose_image(config: PreprocessConfig, uris: list[str]) -> ImageSpec:
    """The pixels to produce; what the config leaves open follows from a sample of the corpus.

    The median height, within `HEIGHTS`, and the median of width by height; RGB where more than a tenth are in color.
    Raises InputError where nothing of the sample can be read.
    """
    given = (config.height, config.width, config.channels)
    if all(given):
        return config.image(*given)
    sample = [uris[k * len(uris) // NUM_SAMPLED] for k in range(NUM_SAMPLED)] if len(uris) > NUM_SAMPLED else uris
    with concurrent.futures.ThreadPoolExecutor(NUM_FETCH_THREADS) as pool:
        seen = list(pool.map(lambda uri: _of_file(uri, lambda data: images.look(data, config.max_pixels)), sample))
    looks = [one for one in seen if isinstance(one, images.Look)]
    if not looks:
        reasons = collections.Counter(one.reason for one in seen if isinstance(one, images.Unreadable))
        raise InputError(f"{config.corpus} holds no image that can be used: {_counted(reasons)}")
    height = config.height or min(max(round(statistics.median(one.height for one in looks)), HEIGHTS[0]), HEIGHTS[1])
    width = round(height * statistics.median(one.width / one.height for one in looks))
    colored = sum(one.colored for one in looks) > len(looks) / 10 and not config.binarize
    return config.image(height, config.width or min(max(width, 4), 4096), config.channels or (3 if colored else 1))


def decode_files(files: pa.Table, spec: ImageSpec, max_pixels: int) -> tuple[pa.Table, pa.Table]:
    """Reads and decodes files. files: columns uri, text -> (shard rows, quarantine rows), both in the order given."""
    uris = files["uri"].to_pylist()
    if uris and storage.is_remote(uris[0]):
        with concurrent.futures.ThreadPoolExecutor(NUM_FETCH_THREADS) as pool:
            results = list(pool.map(lambda uri: _decode_file(uri, spec, max_pixels), uris))
    else:
        results = [_decode_file(uri, spec, max_pixels) for uri in uris]
    readable = [not isinstance(result, images.Unreadable) for result in results]
    good = [result for result in results if not isinstance(result, images.Unreadable)]
    pixels = np.stack(good) if good else np.zeros((0, *spec.shape), np.uint8)
    kept = files.filter(pa.array(readable, pa.bool_()))
    shard = pa.table(
        [
            schema.pack_images(pixels),
            kept["text"],
            kept["uri"],
            pa.array([hashlib.sha256(image).digest() for image in pixels], pa.binary(32)),
        ],
        schema=schema.shard_schema(spec),
    )
    bad = [(uri, r.reason, r.detail) for uri, r in zip(uris, results, strict=True) if isinstance(r, images.Unreadable)]
    return shard, _quarantine(bad)


def _decode_file(uri: str, spec: ImageSpec, max_pixels: int) -> images.Pixels | images.Unreadable:
    return _of_file(uri, lambda data: images.decode(data, spec, max_pixels))


def _of_file(uri: str, make: Callable[[bytes], T | images.Unreadable]) -> T | images.Unreadable:
    """What is made of a file's bytes, or why they cannot be had."""
    try:
        data = storage.read(uri)
    except FileNotFoundError:
        return images.Unreadable("missing", "there is no such file")
    except (OSError, ValueError, InputError) as error:
        sentence = getattr(error, "strerror", None) or str(error)
        return images.Unreadable("unreadable", f"{type(error).__name__}: {sentence}")
    return make(data)


def _quarantine(rows: list[tuple[str, str, str]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table([pa.array(list(c), pa.string()) for c in columns], schema=schema.QUARANTINE_SCHEMA)


def write_block(files: pa.Table, *, config: PreprocessConfig, image: ImageSpec) -> pa.Table:
    """One task: files of one block -> up to one part per split.

    files: columns uri, text, block (the block's number). Returns a row of `FILE_SCHEMA` per file.
    """
    shard, bad = decode_files(files, image, config.max_pixels)
    splits = pa.array(
        [schema.split_of(h, config.split_seed, config.splits) for h in shard["sha256"].to_pylist()], pa.string()
    )
    for split in schema.SPLITS:
        rows = shard.filter(pc.equal(splits, split))
        if len(rows):
            _write_part(part_uri(config.out, split, files["block"][0].as_py()), rows)
    good = [shard["uri"], shard["text"], shard["sha256"], splits, *[pa.repeat("", len(shard))] * 2]
    nothing = pa.nulls(len(bad))
    rejected = [bad["uri"], nothing, nothing, nothing, bad["reason"], bad["detail"]]
    tables = [pa.table(dict(zip(FILE_SCHEMA.names, c, strict=False))) for c in (good, rejected)]
    rows = pa.concat_tables([table.cast(pa.schema(list(FILE_SCHEMA)[:-1])) for table in tables])
    return rows.append_column(FILE_SCHEMA.field("block"), pa.repeat(files["block"][0], len(rows)))


def part_name(split: str, block: int) -> str:
    """Name of a part, relative to the shards folder."""
    return f"split={split}/part-{block:05d}.parquet"


def quarantine_name(number: int) -> str:
    """Name of a part of the quarantine, relative to the shards folder."""
    return f"quarantine/part-{number:05d}.parquet"


def part_uri(out: str, split: str, block: int) -> str:
    """URI of a part."""
    return storage.join(out, part_name(split, block))


def _write_part(uri: str, rows: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd", use_dictionary=False)
    storage.write(uri, buffer.getbuffer())


def _read_part(uri: str, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read(uri)), columns=columns)


def preprocess(config: PreprocessConfig) -> schema.Manifest:
    """Writes shards, quarantine, manifest and `_SUCCESS` below `config.out`; finished shards are left as they are.

    Raises InputError for a corpus that is absent, empty or of one class, for refused labels, and for an `out` that
    holds anything else. Needs a connected Ray.
    """
    started = time.monotonic()
    config = _absolute(config)
    if storage.exists(storage.join(config.out, "_SUCCESS")):
        return _finished(config)
    storage.check_writable(config.out)
    rule = labels.LabelRule(config.labels, config.label_pattern, config.table)
    listing = labels.list_corpus(config.corpus, rule)
    if not listing.uris:
        raise InputError(f"{config.corpus} holds no images to read")
    files, refused = _check_labels(listing, config)
    if not len(files):
        raise InputError(
            f"none of the {len(listing.uris):,} files of {config.corpus} has a label by --labels {config.labels}; "
            f"{listing.uris[0]}: {refused['detail'][0]}"
        )
    first = files.slice(0, 1).to_pylist()[0]
    console.say(f"{len(files):,} labels by --labels {rule.labels}, such as {first['text']!r} of {first['uri']}")
    image = choose_image(config, files["uri"].to_pylist())
    _claim(config)
    results = _run_blocks(files, config, image)
    kept = results.filter(pc.equal(results["reason"], ""))
    bad = results.filter(pc.not_equal(results["reason"], "")).select(schema.QUARANTINE_SCHEMA.names)
    removed = find_repeats(kept)
    kept = _remove(kept, removed, config.out)
    quarantine = pa.concat_tables([refused, bad.cast(schema.QUARANTINE_SCHEMA), removed])
    manifest = _manifest(config, image, rule, listing, kept, quarantine, time.monotonic() - started)
    for number, start in enumerate(range(0, len(quarantine), QUARANTINE_ROWS)):
        _write_part(storage.join(config.out, quarantine_name(number)), quarantine.slice(start, QUARANTINE_ROWS))
    _clear(config.out, manifest, number_of_quarantine_parts=math.ceil(len(quarantine) / QUARANTINE_ROWS))
    storage.write(storage.join(config.out, "manifest.json"), runs.to_json(manifest.to_dict()))
    storage.write(storage.join(config.out, "_SUCCESS"), b"")
    storage.delete(storage.join(config.out, STARTED))
    return manifest


def _absolute(config: PreprocessConfig) -> PreprocessConfig:
    """The config as another process must read it; with a table, its folder is the corpus."""
    out = storage.absolute(config.out)
    if config.labels != "table":
        return dataclasses.replace(config, corpus=storage.absolute(config.corpus), out=out)
    table = storage.absolute(config.table)
    return dataclasses.replace(config, corpus=table.rpartition("/")[0], table=table, out=out)


def _finished(config: PreprocessConfig) -> schema.Manifest:
    manifest = open_shards(config.out).manifest
    for name, value in config.to_dict().items():
        if manifest.config.get(name) != value:
            found = manifest.config.get(name)
            raise InputError(f"{config.out} holds shards made with {name} {found!r}, not {value!r}; name another --out")
    console.say(
        f"{config.out} is finished already; nothing to do (for what {config.corpus} has got since, name another --out)"
    )
    return manifest


def _claim(config: PreprocessConfig) -> None:
    """Marks the folder as begun. Raises InputError where it holds anything but this job's own unfinished work."""
    marker = storage.join(config.out, STARTED)
    if storage.exists(marker):
        if runs.read_json(marker) != config.to_dict():
            raise InputError(f"{config.out} holds shards begun with other settings; name another --out")
    elif not storage.is_empty(config.out):
        raise InputError(f"{config.out} is not empty and holds no shards; name another --out")
    storage.write(marker, runs.to_json(config.to_dict()))


def _clear(out: str, manifest: schema.Manifest, number_of_quarantine_parts: int) -> None:
    """Removes parts that an interrupted try of this job left and the finished one has no use for."""
    wanted = {part for parts in manifest.parts.values() for part in parts}
    wanted |= {quarantine_name(number) for number in range(number_of_quarantine_parts)}
    for uri in list(storage.list_files(out)):
        name = uri.removeprefix(f"{out}/")
        if name.startswith(("split=", "quarantine/")) and name not in wanted:
            storage.delete(uri)


def _check_labels(listing: labels.Listing, config: PreprocessConfig) -> tuple[pa.Table, pa.Table]:
    """(files to read: uri, text; quarantine rows of those with a bad label)."""
    charset = Charset(config.charset) if config.charset else None
    good: list[tuple[str, str]] = []
    bad: list[tuple[str, str, str]] = []
    seen: set[tuple[str, str | None]] = set()
    for uri, text in zip(listing.uris, listing.texts, strict=True):
        if (uri, text) in seen:
            continue  # a table may name a file twice; it is one file
        seen.add((uri, text))
        if text is None:
            bad.append((uri, "no_label", "the label rule finds no label, or the name is not UTF-8"))
        elif charset and (unknown := charset.unknown_in(text)):
            bad.append((uri, "unknown_character", f"label {text!r} holds {unknown!r}"))
        elif config.length and len(text) != config.length:
            bad.append((uri, "wrong_length", f"label {text!r} has {len(text)} characters, not {config.length}"))
        else:
            good.append((uri, text))
    if bad and config.bad_labels == "refuse":
        raise InputError(
            f"{len(bad):,} of {len(listing.uris):,} labels are refused; the first, of {bad[0][0]}: {bad[0][2]}"
        )
    columns = zip(*good, strict=True) if good else ((), ())
    return pa.table([pa.array(list(c), pa.string()) for c in columns], names=["uri", "text"]), _quarantine(bad)


def _run_blocks(files: pa.Table, config: PreprocessConfig, image: ImageSpec) -> pa.Table:
    rows = block_rows(len(files), image)
    blocks = [
        files.slice(start, rows).append_column(
            "block", pa.repeat(pa.scalar(number, pa.int64()), min(rows, len(files) - start))
        )
        for number, start in enumerate(range(0, len(files), rows))
    ]
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
    """Quarantine rows for files with the same pixels as another: `duplicate` but for the first URI, or
    `conflicting_labels` for all of them where their labels differ. kept: columns uri, text, sha256."""
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
            texts = ", ".join(sorted({repr(t) for _, t in group}))
            bad += [(uri, "conflicting_labels", f"the same pixels are labeled {texts}") for uri, _ in group]
    return _quarantine(sorted(bad))


def _remove(kept: pa.Table, removed: pa.Table, out: str) -> pa.Table:
    """Takes the removed files out of the parts that hold them; returns the rows that stay."""
    gone = pc.is_in(kept["uri"], value_set=removed["uri"].combine_chunks())
    for part in kept.filter(gone).select(["split", "block"]).group_by(["split", "block"]).aggregate([]).to_pylist():
        uri = part_uri(out, part["split"], part["block"])
        rows = _read_part(uri)
        rows = rows.filter(pc.invert(pc.is_in(rows["uri"], value_set=removed["uri"].combine_chunks())))
        if len(rows):
            _write_part(uri, rows)
        else:
            storage.delete(uri)
    return kept.filter(pc.invert(gone))


def _counted(reasons: collections.Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())


def _manifest(
    config: PreprocessConfig,
    image: ImageSpec,
    rule: labels.LabelRule,
    listing: labels.Listing,
    kept: pa.Table,
    quarantine: pa.Table,
    seconds: float,
) -> schema.Manifest:
    reasons = collections.Counter(quarantine["reason"].to_pylist())
    if not len(kept):
        raise InputError(f"{config.corpus} holds no image that can be used: {_counted(reasons)}")
    texts = {s: kept.filter(pc.equal(kept["split"], s))["text"].to_pylist() for s in schema.SPLITS}
    every = [text for split in texts.values() for text in split]
    charset = Charset(config.charset) if config.charset else Charset.found_in(every)
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
        num_junk=listing.num_junk,
        parts={s: sorted(part_name(s, p["block"]) for p in parts if p["split"] == s) for s in texts},
        seconds=round(seconds, 3),
        config=config.to_dict(),
        versions=runs.versions(),
    )


@dataclasses.dataclass(frozen=True)
class Labeled:
    """Labeled images to measure a network on. num_files: rows the Dataset has if every file can be read."""

    name: str
    source: str
    dataset: ray.data.Dataset
    num_files: int

    def sample(self, at_most: int) -> pa.Table:
        """About so many of them, in this process."""
        thin = functools.partial(schema.thin, at_most=at_most, of=self.num_files)
        few = self.dataset.map_batches(thin, batch_size=None, batch_format="pyarrow")
        return pa.concat_tables(few.iter_batches(batch_size=None, batch_format="pyarrow"))


@dataclasses.dataclass(frozen=True)
class Shards:
    """Finished shards: where they are and what is in them."""

    uri: str
    manifest: schema.Manifest

    def labeled(self, split: schema.Split) -> Labeled:
        """The split, to measure a network on. Raises InputError where it is empty."""
        return Labeled(split, self.uri, self.read(split), self.manifest.num_images[split])

    def read(self, split: schema.Split | None = None, columns: list[str] | None = None) -> ray.data.Dataset:
        """A Dataset of the split's rows as `schema.shard_schema` names them, one block per part, in a fixed order.

        split, columns: None for all of them. Raises InputError where the split is empty.
        """
        parts = [part for name in schema.SPLITS if split in (None, name) for part in self.manifest.parts[name]]
        if not parts:
            raise InputError(f"the {split} split of {self.uri} is empty; preprocess more images or other --splits")
        uris = [{"uri": storage.join(self.uri, part)} for part in parts]
        dataset = ray.data.from_items(uris, override_num_blocks=len(uris))  # unlike from_arrow, needs no task for it
        read = functools.partial(_read_parts, columns=columns)
        return dataset.map_batches(read, batch_size=None, batch_format="pyarrow")


def _read_parts(table: pa.Table, *, columns: list[str] | None) -> pa.Table:
    return pa.concat_tables([_read_part(uri, columns) for uri in table["uri"].to_pylist()])


def open_shards(uri: str) -> Shards:
    """Finished shards. Raises InputError where there are none, or their job has not finished."""
    uri = storage.absolute(uri)
    if not storage.exists(storage.join(uri, "_SUCCESS")):
        raise InputError(f"{uri} holds no finished shards; jobs/preprocess.py makes them")
    manifest: dict[str, Any] = runs.read_json(storage.join(uri, "manifest.json"))
    return Shards(uri, schema.Manifest.from_dict(manifest))


def open_labeled(config: EvaluateConfig, own_shards: str, spec: ModelSpec) -> Labeled:
    """A split of shards, or the images of `config.corpus` decoded on the fly to what the network reads.

    own_shards: URI of those the network was trained on, the default, or "" for unknown; only their splits go by their
    own names, others are "shards". Files of a corpus that have no label or cannot be decoded are left out of the
    Dataset. Raises InputError where there is nothing to read, or the shards are not for such a network.
    """
    if config.corpus or config.table:
        rule = labels.LabelRule(config.labels, config.label_pattern, config.table)
        return read_corpus(config.corpus, rule, spec.image)
    if not config.shards and not own_shards:
        raise InputError("there is no run to tell which shards to read; name --shards or --corpus")
    shards = open_shards(config.shards or own_shards)
    manifest = shards.manifest
    if foreign := Charset(spec.charset).unknown_in(manifest.charset):
        raise InputError(f"labels of {shards.uri} hold {foreign!r}, which the network's charset {spec.charset!r} lacks")
    if not spec.holds(manifest.min_length, manifest.max_length):
        lengths = f"{manifest.min_length} to {manifest.max_length}"
        raise InputError(f"labels of {shards.uri} have {lengths} characters, the network reads {spec.reads}")
    if manifest.image_spec != spec.image:
        raise InputError(f"{shards.uri} holds images of {manifest.image_spec}, the network reads {spec.image}")
    labeled = shards.labeled(config.split)
    return labeled if shards.uri == own_shards else dataclasses.replace(labeled, name="shards")


def read_corpus(corpus: str, rule: labels.LabelRule, spec: ImageSpec) -> Labeled:
    """A labeled corpus, decoded on the fly. Raises InputError where it is absent or holds no labeled file."""
    listing = labels.list_corpus(storage.absolute(corpus), rule)
    labeled = ((u, t) for u, t in zip(listing.uris, listing.texts, strict=True) if t is not None)
    files = list(dict.fromkeys(labeled))  # a table may name a file twice
    if not files:
        raise InputError(f"{corpus} holds no labeled images")
    table = pa.table({"uri": [uri for uri, _ in files], "text": [text for _, text in files]})
    return Labeled("corpus", storage.absolute(corpus or rule.table), decoded(table, spec), len(set(listing.uris)))


def list_images(folder: str) -> list[str]:
    """URIs of images without labels. Raises InputError where there are none."""
    uris = labels.list_corpus(storage.absolute(folder), labels.LabelRule("filename")).uris
    check(bool(uris), f"{folder} holds no images to read")
    return uris


def in_blocks(files: pa.Table, spec: ImageSpec) -> ray.data.Dataset:
    """A Dataset of the table's rows, in blocks of as many as a task can decode."""
    rows = block_rows(len(files), spec)
    return ray.data.from_arrow([files.slice(start, rows) for start in range(0, max(len(files), 1), rows)])


def decoded(files: pa.Table, spec: ImageSpec) -> ray.data.Dataset:
    """Rows of shards, made on the fly; files that cannot be decoded are left out. files: columns uri, text."""
    return in_blocks(files, spec).map_batches(
        functools.partial(_decode_only, spec=spec), batch_size=None, batch_format="pyarrow", zero_copy_batch=True
    )


def _decode_only(files: pa.Table, *, spec: ImageSpec) -> pa.Table:
    return decode_files(files, spec, images.MAX_PIXELS)[0]
