"""Fetch and decode the objects of blocks, ahead of who recognizes them.

Whatever is wrong with an object stands in its place. Does not recognize, knows no Ray.
"""

import errno
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from captcha_ray.errors import InputError
from captcha_ray.images import decoder
from captcha_ray.inference.block import BATCH_SIZE, BlockTask
from captcha_ray.inference.block_plan import BlockPlan
from captcha_ray.models.spec import ModelSpec
from captcha_ray.predictions.schema import LISTING_SCHEMA
from captcha_ray.storage import filesystem, objectstore
from captcha_ray.storage.read_ahead import DaemonThreads, ReadAhead

T = TypeVar("T")

NO_FILE = (errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP)
"""Numbers of errors of what is no file, such as a folder or a pipe, or of a name that can be none's."""

Rows = list[dict[str, Any]]
Fetched = list[bytes | decoder.Unreadable]
Decoded = list[decoder.Pixels | decoder.Unreadable]


class Chunk(NamedTuple):
    """Holds up to `BATCH_SIZE` objects of a block.

    rows: as listed. decoded: the pixels of each, uint8 (H, W, C), or what is wrong with it. is_last: of its block.
    """

    block: int
    rows: Rows
    decoded: Decoded
    is_last: bool


class BlockDecoder:
    """Fetches and decodes the objects of blocks for one network.

    spec: of the network. report: see `BlockReader`.
    """

    def __init__(self, task: BlockTask, spec: ModelSpec, report: dict[str, Any]) -> None:
        self._task, self._spec, self._report = task, spec, report
        self._plan = BlockPlan(task)
        if task.endpoint_url:
            objectstore.use_endpoint(task.endpoint_url)
        self._decoders = DaemonThreads(task.num_threads) if task.num_threads > 1 else None
        self._ahead = DaemonThreads(1) if self._decoders else None

    @functools.cached_property
    def _store(self) -> ReadAhead[dict[str, Any], bytes | decoder.Unreadable]:
        """Return what reads from a store; it has threads that a disk does not need."""
        return ReadAhead(self._fetch_one)

    def chunks(self, blocks: Iterable[int]) -> Iterator[Chunk]:
        """Yield the chunks of blocks, in order; the next one is decoded meanwhile if there are threads for it."""
        decoded = (
            chunk._replace(decoded=self._timed("decode", self._decode, fetched))
            for chunk, fetched in self._fetch(self._listed(blocks))
        )
        if not self._ahead:
            yield from decoded
            return
        upcoming = self._ahead.submit(next, decoded, None)
        while True:
            self._report["stage"] = "fetch and decode"
            now = upcoming.result()
            if now is None:
                return
            upcoming = self._ahead.submit(next, decoded, None)
            yield now

    def _listed(self, blocks: Iterable[int]) -> Iterator[Chunk]:
        """Yield the chunks of blocks as they are listed, with nothing decoded."""
        for block in blocks:
            listed = self._plan.read(block)
            for start in range(0, len(listed), BATCH_SIZE):
                rows = listed.slice(start, BATCH_SIZE).to_pylist()
                yield Chunk(block, rows, [], is_last=start + BATCH_SIZE >= len(listed))

    def _fetch(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, Fetched]]:
        """Yield the bytes of each chunk's objects; those of the next chunk are fetched meanwhile from a store."""
        for is_remote, some in itertools.groupby(chunks, _is_remote):
            if is_remote:
                fetched = self._store.chunks((chunk, chunk.rows) for chunk in some)
                while (found := self._timed("fetch", next, fetched, None)) is not None:
                    yield found
            else:
                for chunk in some:
                    yield chunk, self._timed("fetch", lambda chunk=chunk: [self._fetch_one(row) for row in chunk.rows])

    def _fetch_one(self, row: dict[str, Any]) -> bytes | decoder.Unreadable:
        """Return the object's bytes, and put into `row` what its listing left out."""
        uri, limit = row["uri"], self._task.max_bytes
        try:
            if not filesystem.is_known(uri):
                return decoder.Unreadable("unknown_scheme", "only paths, s3://, gs:// and az:// are read")
            if (row["size"] or 0) > limit:
                return decoder.Unreadable("too_large", f"{row['size']} bytes are more than {limit}")
            data, entry = filesystem.fetch(uri, limit)
        except FileNotFoundError:
            odd = "; its name may not be UTF-8" if "\\udc" in uri or "\\x" in uri else ""
            return decoder.Unreadable("missing", f"there is no such object{odd}")
        except PermissionError as error:
            return decoder.Unreadable("denied", _sentence(error, uri))
        except (OSError, InputError, ValueError) as error:
            is_no_file = isinstance(error, ValueError) or getattr(error, "errno", None) in NO_FILE
            return decoder.Unreadable("not_an_image" if is_no_file else "store_error", _sentence(error, uri))
        finally:
            self._report["fetched"] += 1
        row["etag"] = row["etag"] or entry.etag
        row["size"] = entry.size if row["size"] is None else row["size"]
        row["last_modified"] = row["last_modified"] or entry.last_modified
        return decoder.Unreadable("too_large", f"{entry.size} bytes are more than {limit}") if data is None else data

    def _decode(self, fetched: Fetched) -> Decoded:
        def decode(item: bytes | decoder.Unreadable) -> decoder.Pixels | decoder.Unreadable:
            if isinstance(item, decoder.Unreadable):
                return item
            limits = self._task.max_pixels, self._task.max_stretch
            return decoder.decode(item, self._spec.image, *limits, self._spec.aspect_ratios or None)

        return list((self._decoders.map if self._decoders else map)(decode, fetched))

    def _timed(self, stage: str, call: Callable[..., T], *arguments: Any) -> T:
        if not self._decoders:  # else a thread ahead is at it
            self._report["stage"] = stage
        return timed(self._report, stage, call, *arguments)


def timed(report: dict[str, Any], stage: str, call: Callable[..., T], *arguments: Any) -> T:
    """Return what a call returns, and add its seconds to those of a stage in a report."""
    started = time.perf_counter()
    result = call(*arguments)
    seconds = report["seconds"]
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
    return result


def to_table(chunks: Iterable[Chunk], shape: tuple[int, int, int]) -> pa.Table:
    """Return a decoded block as a table of a row per object, which processes can share without copying its pixels.

    Columns are those of a listing, `block`, `reason` and `detail` of what is wrong with an object, else null, and
    `pixels`: uint8 (H, W, C) = `shape`, row by row; zeros where something is wrong.
    """
    rows: Rows = []
    pixels: list[decoder.Pixels] = []
    nothing = np.zeros(shape, np.uint8)
    for chunk in chunks:
        for row, item in zip(chunk.rows, chunk.decoded, strict=True):
            wrong = item if isinstance(item, decoder.Unreadable) else None
            about = {"block": chunk.block, "reason": wrong and wrong.reason, "detail": wrong and wrong.detail}
            rows.append(row | about)
            pixels.append(nothing if isinstance(item, decoder.Unreadable) else item)
    words = [pa.field(name, pa.string()) for name in ("reason", "detail")]
    table = pa.Table.from_pylist(rows, pa.schema([*LISTING_SCHEMA, pa.field("block", pa.int64()), *words]))
    kind, buffer = pa.binary(nothing.size), pa.py_buffer(np.stack(pixels))
    return table.append_column("pixels", pa.Array.from_buffers(kind, len(rows), [None, buffer]))


def from_table(table: pa.Table, shape: tuple[int, int, int]) -> Iterator[Chunk]:
    """Yield the chunks of what `to_table` has made of a block."""
    columns = [*LISTING_SCHEMA.names, "reason", "detail"]
    for start in range(0, len(table), BATCH_SIZE):
        part = table.slice(start, BATCH_SIZE).combine_chunks()
        flat = part["pixels"].chunk(0)
        first = flat.offset * flat.type.byte_width
        pixels = np.frombuffer(flat.buffers()[1], np.uint8)[first : first + len(part) * flat.type.byte_width]
        rows = part.select(columns).to_pylist()
        wrong = [(row.pop("reason"), row.pop("detail")) for row in rows]
        items = zip(wrong, pixels.reshape(len(part), *shape), strict=True)
        decoded = [decoder.Unreadable(reason, detail) if reason else image for (reason, detail), image in items]
        yield Chunk(part["block"][0].as_py(), rows, decoded, is_last=start + BATCH_SIZE >= len(table))


def _is_remote(chunk: Chunk) -> bool:
    """Return whether any object of a chunk is in a store."""
    return any(filesystem.is_remote(row["uri"]) for row in chunk.rows)


def _sentence(error: Exception, uri: str) -> str:
    said: str = getattr(error, "strerror", None) or str(error)
    return said.removeprefix(f"{uri}: ")
