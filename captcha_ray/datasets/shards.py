"""Open labeled images as Ray Datasets: the splits of finished shards, or a corpus decoded on the fly."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.dataset import MaterializedDataset

from captcha_ray.datasets import decoding, schema, splits
from captcha_ray.datasets.splits import SPLITS, Split
from captcha_ray.errors import InputError
from captcha_ray.images.spec import ImageSpec
from captcha_ray.runs.directory import read_json
from captcha_ray.runtime import capacity
from captcha_ray.storage import filesystem, parquet, row_groups
from captcha_ray.storage.row_groups import RowGroup


@dataclasses.dataclass(frozen=True)
class Labeled:
    """Labeled images to measure a network on: rows as in `schema.shard_schema`.

    Rows of a corpus have a `reason` too, null except for unreadable files, which have no image. num_unlabeled: files
    that are no rows.
    """

    name: str
    source: str
    dataset: ray.data.Dataset
    num_files: int
    num_unlabeled: int = 0

    def sample(self, at_most: int) -> pa.Table:
        """Return about so many rows, in this process."""
        subsample = functools.partial(splits.subsample, at_most=at_most, of=self.num_files)
        few = self.dataset.map_batches(
            subsample, batch_size=None, batch_format="pyarrow", num_cpus=capacity.cpu_request(1)
        )
        return pa.concat_tables(few.iter_batches(batch_size=None, batch_format="pyarrow"))


@dataclasses.dataclass(frozen=True)
class Shards:
    """Finished shards and their manifest."""

    uri: str
    manifest: schema.Manifest

    def labeled(self, split: Split) -> Labeled:
        """Return a split to measure a network on. Raises InputError if it is empty."""
        return Labeled(split, self.uri, self.read(split), self.manifest.num_images[split])

    def read(self, split: Split | None = None, columns: list[str] | None = None) -> ray.data.Dataset:
        """Return rows of a split as a Dataset, one block per part, in a fixed order.

        Args:
            split: None for all of them.
            columns: Of `schema.shard_schema`; None for all of them.

        Raises:
            InputError: The split is empty.
        """
        return map_tables(self._parts(split), functools.partial(_read_parts, columns=columns))

    def row_groups(self, split: Split) -> list[RowGroup]:
        """Return the row groups of a split's parts, in a fixed order. Raises InputError if it is empty."""
        found = map_tables(self._parts(split), _list_row_groups)
        tables = pa.concat_tables(found.iter_batches(batch_size=None, batch_format="pyarrow"))
        return sorted(RowGroup(**row) for row in tables.to_pylist())

    def _parts(self, split: Split | None) -> "MaterializedDataset[Any]":
        """Return the URIs of a split's parts, a block for each. Raises InputError if there are none."""
        parts = [part for name in SPLITS if split in (None, name) for part in self.manifest.parts[name]]
        if not parts:
            raise InputError(f"the {split} split of {self.uri} is empty; preprocess more images or other --splits")
        uris = [{"uri": filesystem.join(self.uri, part)} for part in parts]
        return ray.data.from_items(uris, override_num_blocks=len(uris))  # unlike from_arrow, needs no task for it


def _read_parts(table: pa.Table, *, columns: list[str] | None) -> pa.Table:
    parts = [parquet.read(uri, columns) for uri in table["uri"].to_pylist()]
    return pa.concat_tables(parts).combine_chunks()  # row groups are chunks, and images of one chunk need no copy


def _list_row_groups(table: pa.Table) -> pa.Table:
    found = [group for uri in table["uri"].to_pylist() for group in row_groups.list_row_groups(uri)]
    return pa.Table.from_pylist([group._asdict() for group in found])


def open_shards(uri: str) -> Shards:
    """Open finished shards. Raises InputError if there are none or they are unfinished."""
    uri = filesystem.absolute(uri)
    if not filesystem.exists(filesystem.join(uri, "_SUCCESS")):
        raise InputError(f"{uri} holds no finished shards; jobs/preprocess.py makes them")
    manifest: dict[str, Any] = read_json(filesystem.join(uri, "manifest.json"))
    return Shards(uri, schema.Manifest.from_dict(manifest))


def in_blocks(files: pa.Table, spec: ImageSpec) -> "MaterializedDataset[Any]":
    """Return the table's rows as a Dataset, in blocks of as many as a task can decode."""
    rows = decoding.block_rows(len(files), spec)
    return ray.data.from_arrow([files.slice(start, rows) for start in range(0, max(len(files), 1), rows)])


def map_tables(dataset: MaterializedDataset[Any], function: Callable[[pa.Table], pa.Table]) -> ray.data.Dataset:
    """Apply a function to each block, in as many tasks at a time as there are CPUs.

    Results that are lost with a node are made again even while training holds all CPUs.
    """
    at_once: Any = ray.data.TaskPoolStrategy(size=min(dataset.num_blocks(), capacity.num_cpus()))
    mapped: ray.data.Dataset = dataset.map_batches(
        function, batch_size=None, batch_format="pyarrow", compute=at_once, num_cpus=capacity.SPARE_CPU
    )
    return mapped
