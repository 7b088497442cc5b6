"""Fetch, decode and recognize the objects of a block, and stage the rows: a worker's part of bulk inference.

Whatever is wrong with an object becomes its row's error. Does not list, does not commit, knows no Ray.
"""

import datetime
import errno
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from captcha_ray.errors import InputError
from captcha_ray.images import decoder
from captcha_ray.inference import schema
from captcha_ray.inference.block import BATCH_SIZE, AbandonedError, BlockTask
from captcha_ray.inference.read_ahead import ReadAhead
from captcha_ray.inference.table import STAGED_SCHEMA, Counts
from captcha_ray.inference.threads import DaemonThreads
from captcha_ray.recognizer import Prediction, Recognizer
from captcha_ray.storage import filesystem, objectstore, parquet

T = TypeVar("T")

NO_FILE = (errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP)
"""Numbers of errors of what is no file, such as a folder or a pipe, or of a name that can be none's."""


class BlockReader:
    """Recognizes blocks of objects with one network, which is loaded once.

    report: kept up to date with the current `stage`, the objects `fetched` and `recognized`, and `seconds` per stage.
    is_abandoned: asked before each batch and before a block is staged, whether to leave the block.
    """

    is_abandoned: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self, task: BlockTask, report: dict[str, Any]) -> None:
        self._task = task
        self._report = report
        if task.endpoint_url:
            objectstore.use_endpoint(task.endpoint_url)
        self._recognizer = Recognizer.load(
            task.model,
            task.device,
            task.precision,
            task.engine,
            task.num_threads,
            task.restriction.charset,
            task.restriction.length,
        )
        report["engine"] = self._recognizer.engine.name
        if self._recognizer.model_id != task.model_id:
            raise InputError(f"{task.model} is not the network it was when this job began")
        self._store = ReadAhead(self._fetch_one)
        self._decoders = DaemonThreads(task.num_threads) if task.num_threads > 1 else None
        self._ahead = DaemonThreads(1)

    def read(self, block: int) -> tuple[int, int]:
        """Recognize a block and stage its rows; return the number of rows and of errors. Raises AbandonedError."""
        listed = parquet.read(self._task.block_uri(block))
        chunks = [listed.slice(start, BATCH_SIZE).to_pylist() for start in range(0, len(listed), BATCH_SIZE)]
        decoded = self._decode_ahead(self._fetch(chunks))
        tables = [self._recognize_chunk(chunk, pixels) for chunk, pixels in zip(chunks, decoded, strict=True)]
        rows = pa.concat_tables(tables)
        self._check_wanted()
        self._timed("write", parquet.write, self._task.staged(block), rows)
        self._report["stage"] = "wait for work"
        return len(rows), Counts.of(rows).num_errors

    def _check_wanted(self) -> None:
        if self.is_abandoned():
            raise AbandonedError

    def _fetch(self, chunks: list[list[dict[str, Any]]]) -> Iterator[list[bytes | decoder.Unreadable]]:
        """Yield the bytes of each chunk's objects; those of the next chunk are fetched meanwhile from a store."""
        if any(filesystem.is_remote(row["uri"]) for chunk in chunks for row in chunk):
            fetched = self._store.chunks(chunks)
            while (found := self._timed("fetch", next, fetched, None)) is not None:
                yield found
        else:
            for chunk in chunks:
                yield self._timed("fetch", lambda chunk=chunk: [self._fetch_one(row) for row in chunk])

    def _decode_ahead(
        self, fetched: Iterator[list[bytes | decoder.Unreadable]]
    ) -> Iterator[list[decoder.Pixels | decoder.Unreadable]]:
        """Yield the pixels of each chunk; those of the next one are decoded meanwhile if there are threads for it."""
        decoded = (self._timed("decode", self._decode, chunk) for chunk in fetched)
        if not self._decoders:
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

    def _fetch_one(self, row: dict[str, Any]) -> bytes | decoder.Unreadable:
        """Return the object's bytes, and put into `row` what its listing left out."""
        uri, limit = row["uri"], self._task.max_bytes
        try:
            if not filesystem.is_known(uri):
                return decoder.Unreadable("unknown_scheme", "only paths, s3:// and gs:// are read")
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

    def _recognize_chunk(
        self, listed: list[dict[str, Any]], decoded: list[decoder.Pixels | decoder.Unreadable]
    ) -> pa.Table:
        self._check_wanted()
        good = [pixels for pixels in decoded if not isinstance(pixels, decoder.Unreadable)]
        predictions = iter(self._timed("recognize", self._recognize, good) if good else [])
        columns: dict[str, list[Any]] = {name: [] for name in STAGED_SCHEMA.names}
        now = datetime.datetime.now(datetime.UTC)
        for row, item in zip(listed, decoded, strict=True):
            for name in schema.LISTING_SCHEMA.names:
                columns[name].append(row[name])
            error = _error(item) if isinstance(item, decoder.Unreadable) else None
            prediction = next(predictions) if error is None else None
            columns["text"].append(prediction.text if prediction else None)
            columns["confidence"].append(prediction.confidence if prediction else None)
            columns["char_confidence"].append(prediction.char_confidence if prediction else None)
            columns["status"].append(self._status(prediction))
            columns["error"].append(error)
        self._report["recognized"] += len(good)
        columns["model_id"] = [self._task.model_id] * len(listed)
        columns["predicted_at"] = [now] * len(listed)
        return pa.table(columns, schema=STAGED_SCHEMA)

    def _status(self, prediction: Prediction | None) -> str:
        if prediction is None:
            return "error"
        return "ok" if prediction.confidence >= self._task.min_confidence else "uncertain"

    def _decode(self, fetched: list[bytes | decoder.Unreadable]) -> list[decoder.Pixels | decoder.Unreadable]:
        def decode(item: bytes | decoder.Unreadable) -> decoder.Pixels | decoder.Unreadable:
            if isinstance(item, decoder.Unreadable):
                return item
            spec = self._recognizer.spec
            return decoder.decode(
                item, spec.image, self._task.max_pixels, self._task.max_stretch, spec.aspect_ratios or None
            )

        return list((self._decoders.map if self._decoders else map)(decode, fetched))

    def _recognize(self, pixels: list[decoder.Pixels]) -> list[Prediction]:
        return self._recognizer.predictions(self._recognizer.log_probabilities(np.stack(pixels)))

    def _timed(self, stage: str, call: Callable[..., T], *arguments: Any) -> T:
        if not (self._decoders and stage in ("fetch", "decode")):  # a thread ahead is at these
            self._report["stage"] = stage
        started = time.perf_counter()
        result = call(*arguments)
        seconds = self._report["seconds"]
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
        return result


def _error(item: decoder.Unreadable) -> str:
    """Return `TooLarge: sentence` for `too_large`, `sentence`."""
    return f"{''.join(word.capitalize() for word in item.reason.split('_'))}: {item.detail}"


def _sentence(error: Exception, uri: str) -> str:
    said: str = getattr(error, "strerror", None) or str(error)
    return said.removeprefix(f"{uri}: ")
