"""Labeled images as Ray Datasets: the splits of finished shards, or a corpus decoded on the fly.

Writes nothing, and trains and measures nothing.
"""

import dataclasses
import functools
import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.data.dataset import MaterializedDataset

from captcha_ray import decoding, images, labels, room, runs, schema, storage
from captcha_ray.charset import Charset
from captcha_ray.config import EvaluateConfig, ImageSpec, InputError
from captcha_ray.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Labeled:
    """Labeled images to measure a network on: rows as `schema.shard_schema` names them. Those of a corpus have a
    `reason` too, null but for files that cannot be read, which have no image. num_unlabeled: files that are no rows."""

    name: str
    source: str
    dataset: ray.data.Dataset
    num_files: int
    num_unlabeled: int = 0

    def sample(self, at_most: int) -> pa.Table:
        """About so many of them, in this process."""
        thin = functools.partial(schema.thin, at_most=at_most, of=self.num_files)
        few = self.dataset.map_batches(thin, batch_size=None, batch_format="pyarrow", num_cpus=room.asked_of_ray(1))
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
        return map_tables(dataset, functools.partial(_read_parts, columns=columns))


def read_part(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Rows of one part; columns: None for all of them."""
    return pq.read_table(io.BytesIO(storage.read(uri)), columns=columns)


def _read_parts(table: pa.Table, *, columns: list[str] | None) -> pa.Table:
    return pa.concat_tables([read_part(uri, columns) for uri in table["uri"].to_pylist()])


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
    own names, others are "shards". Raises InputError where there is nothing to read, or the shards are not for such a
    network.
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
    decoded = map_tables(in_blocks(table, spec), functools.partial(_decode_only, spec=spec))
    return Labeled("corpus", storage.absolute(corpus or rule.table), decoded, len(files), listing.texts.count(None))


def in_blocks(files: pa.Table, spec: ImageSpec) -> "MaterializedDataset[Any]":
    """A Dataset of the table's rows, in blocks of as many as a task can decode."""
    rows = decoding.block_rows(len(files), spec)
    return ray.data.from_arrow([files.slice(start, rows) for start in range(0, max(len(files), 1), rows)])


def map_tables(dataset: MaterializedDataset[Any], function: Callable[[pa.Table], pa.Table]) -> ray.data.Dataset:
    """What a function makes of each block, by as many tasks at a time as there are CPUs. Results that are lost with a
    node are made again even while training holds all CPUs."""
    at_once: Any = ray.data.TaskPoolStrategy(size=min(dataset.num_blocks(), room.num_cpus()))
    mapped: ray.data.Dataset = dataset.map_batches(
        function, batch_size=None, batch_format="pyarrow", compute=at_once, num_cpus=room.SPARE_CPU
    )
    return mapped


def _decode_only(files: pa.Table, *, spec: ImageSpec) -> pa.Table:
    read, unread = decoding.decode_files(files, spec, images.MAX_PIXELS)
    rows = pa.concat_tables([read, unread.select(["uri", "reason"])], promote_options="default")
    return rows.cast(pa.schema([field.with_nullable(True) for field in rows.schema]))
