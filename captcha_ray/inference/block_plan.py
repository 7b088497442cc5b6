"""Hand blocks to workers: Parquet objects whose row groups are blocks, written by the driver, read group by group."""

import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from captcha_ray.inference.block import BATCH_SIZE, BlockTask
from captcha_ray.predictions import schema
from captcha_ray.storage import filesystem, parquet

BLOCKS_PER_PART = 256
"""Blocks in one object: a million rows at most, some 60 MB, which the driver holds."""


def cut(path: Path, sizes: list[int]) -> Iterator[pa.Table]:
    """Yield the rows of a local file in blocks of so many batches, which are all of it."""
    with pq.ParquetFile(path) as file:
        batches = map(pa.table, file.iter_batches(BATCH_SIZE))
        for size in sizes:
            yield pa.concat_tables(itertools.islice(batches, size)).cast(schema.LISTING_SCHEMA)
        assert next(batches, None) is None, "every batch is in a block"


def write(task: BlockTask, blocks: Iterable[pa.Table]) -> None:
    """Write the listed objects of blocks, numbered from 0. blocks: rows of `schema.LISTING_SCHEMA`."""
    waiting = iter(blocks)
    for part in itertools.count():
        data = _encode(itertools.islice(waiting, BLOCKS_PER_PART))
        if data is None:
            return
        filesystem.write(task.part_uri(part), data)


def _encode(blocks: Iterable[pa.Table]) -> memoryview | None:
    """Return blocks as the row groups of a Parquet file; None if there are none."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema.LISTING_SCHEMA, compression="zstd") as writer:
        number = 0
        for block in blocks:
            writer.write_table(block, row_group_size=len(block))
            number += 1
    return buffer.getbuffer() if number else None


class BlockPlan:
    """Reads the listed objects of blocks; keeps the footer of the part that was read last."""

    def __init__(self, task: BlockTask) -> None:
        self._task = task
        self._part = -1
        self._file: pq.ParquetFile | None = None

    def read(self, block: int) -> pa.Table:
        """Return the rows of a block. Raises as `filesystem.read` does."""
        part, group = divmod(block, BLOCKS_PER_PART)
        if self._file is None or part != self._part:
            self._file, self._part = parquet.open_file(self._task.part_uri(part)), part
        return self._file.read_row_group(group)
