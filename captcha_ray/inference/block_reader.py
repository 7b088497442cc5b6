"""Recognize the objects of a block and stage the rows: a worker's part of bulk inference.

Whatever is wrong with an object becomes its row's error. Does not list, does not commit, knows no Ray.
"""

import datetime
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from captcha_ray.errors import InputError
from captcha_ray.images import decoder
from captcha_ray.inference.block import IDLE, AbandonedError, BlockTask, Finished
from captcha_ray.inference.block_decoder import BlockDecoder, Chunk, Decoded, Rows, timed
from captcha_ray.predictions import schema
from captcha_ray.predictions.table import STAGED_SCHEMA, Counts
from captcha_ray.recognizer import Prediction, Recognizer
from captcha_ray.storage import objectstore, parquet

T = TypeVar("T")


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

    @functools.cached_property
    def _decoder(self) -> BlockDecoder:
        """Return what fetches and decodes; it has threads that are not needed where other workers do so."""
        return BlockDecoder(self._task, self._recognizer.spec, self._report)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (H, W, C) of the network's images."""
        return self._recognizer.spec.image.shape

    def read(self, block: int, chunks: Iterable[Chunk] | None = None) -> tuple[int, int]:
        """Recognize a block and stage its rows; return the number of rows and of errors. Raises AbandonedError.

        chunks: Of the block, if it is decoded already.
        """
        ((_, num_rows, num_errors),) = self._stage(chunks) if chunks is not None else self.read_all([block])
        return num_rows, num_errors

    def read_all(self, blocks: Iterable[int]) -> Iterator[Finished]:
        """Recognize blocks one after another; yield each that is staged. Raises AbandonedError.

        blocks: The next one is asked for, in another thread perhaps, before the last is staged.
        """
        return self._stage(self._decoder.chunks(blocks))

    def _stage(self, chunks: Iterable[Chunk]) -> Iterator[Finished]:
        """Recognize chunks, and stage each block after its last one."""
        tables = []
        for chunk in chunks:
            tables.append(self._recognize_chunk(chunk.rows, chunk.decoded))
            if chunk.is_last:
                rows, tables = pa.concat_tables(tables), []
                self._check_wanted()
                self._timed("write", parquet.write, self._task.staged(chunk.block), rows)
                self._report["stage"] = IDLE
                yield chunk.block, len(rows), Counts.of(rows).num_errors
        self._report["stage"] = IDLE

    def _check_wanted(self) -> None:
        if self.is_abandoned():
            raise AbandonedError

    def _recognize_chunk(self, listed: Rows, decoded: Decoded) -> pa.Table:
        self._check_wanted()
        good = [pixels for pixels in decoded if not isinstance(pixels, decoder.Unreadable)]
        predictions = iter(self._timed("recognize", self._recognize, good) if good else [])
        columns: dict[str, list[Any]] = {name: [] for name in STAGED_SCHEMA.names}
        now = datetime.datetime.now(datetime.UTC)
        for row, item in zip(listed, decoded, strict=True):
            for name in schema.LISTING_SCHEMA.names:
                columns[name].append(row[name])
            error = item.error if isinstance(item, decoder.Unreadable) else None
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

    def _recognize(self, pixels: list[decoder.Pixels]) -> list[Prediction]:
        return self._recognizer.predictions(self._recognizer.log_probabilities(np.stack(pixels)))

    def _timed(self, stage: str, call: Callable[..., T], *arguments: Any) -> T:
        self._report["stage"] = stage
        return timed(self._report, stage, call, *arguments)
