"""Blocks that workers of their own fetch and decode: the same rows, by way of a table that processes share."""

import dataclasses
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
import ray.data

from captcha_ray.errors import InputError
from captcha_ray.images.decoder import Unreadable
from captcha_ray.inference import block, block_decoder, block_plan, pipeline
from captcha_ray.inference.block import IDLE, AbandonedError, BlockTask, block_sizes
from captcha_ray.inference.block_decoder import BlockDecoder, Chunk, from_table, to_table
from captcha_ray.inference.config import InferConfig
from captcha_ray.inference.job import READER, transcribe
from captcha_ray.inference.pipeline import Pipeline
from captcha_ray.inference.source import Source
from captcha_ray.inference.worker import (
    REPORT_S,
    DecodeBlocks,
    RecognizeDecoded,
    Report,
    WorkerState,
    report_every,
)
from captcha_ray.models.fingerprint import load_spec
from captcha_ray.predictions.schema import LISTING_SCHEMA
from captcha_ray.runtime import capacity, progress_channel, ray_session
from captcha_ray.runtime.progress_channel import ProgressChannel
from tests.support.block_tasks import block_task

SHAPE = (3, 5, 2)


def chunks_of(*sizes: int) -> list[Chunk]:
    """Draw chunks whose every third object cannot be read, and in which some fields of listings are unknown."""
    rng = np.random.default_rng(0)
    chunks: list[Chunk] = []
    for size in sizes:
        rows = [
            {"uri": f"ä {k}.png", "etag": "", "size": k or None, "last_modified": None}
            for k in rng.integers(9, size=size)
        ]
        pixels = rng.integers(256, size=(size, *SHAPE), dtype=np.uint8)
        items = [Unreadable("too_large", f"of {k}") if k % 3 == 2 else image for k, image in enumerate(pixels)]
        chunks.append(Chunk(7, rows, items, is_last=len(chunks) + 1 == len(sizes)))
    return chunks


@pytest.mark.parametrize("sizes", [(4, 4, 3), (1,), (4,)])
def test_a_decoded_block_comes_out_of_its_table_as_it_went_in(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_decoder, "BATCH_SIZE", 4)
    chunks = chunks_of(*sizes)
    table = to_table(chunks, SHAPE)
    assert table["block"].to_pylist() == [7] * sum(sizes)
    in_pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])  # as other processes may get it
    for given in (table, in_pieces, pa.concat_tables([table, table]).slice(sum(sizes))):
        for chunk, before in zip(from_table(given, SHAPE), chunks, strict=True):
            assert chunk._replace(decoded=[]) == before._replace(decoded=[])
            for item, item_before in zip(chunk.decoded, before.decoded, strict=True):
                assert type(item) is type(item_before)
                np.testing.assert_equal(item, item_before)


def test_decoded_blocks_fit_into_a_small_object_store() -> None:
    image = 200 * 50
    sizes = block_sizes(1000, 2, decoded_bytes=image)
    assert sum(sizes) == 1000
    assert sizes[0] * block.BATCH_SIZE * image <= block.MAX_DECODED_BYTES < (sizes[0] + 1) * block.BATCH_SIZE * image
    assert set(block_sizes(9, 1, decoded_bytes=10**9)) == {1}
    assert block_sizes(9, 1, decoded_bytes=1) == block_sizes(9, 1)


@pytest.mark.parametrize("num_batches", [1, 2, 7, 40_000])
def test_blocks_grow_from_one_batch_and_are_large_and_small_as_for_ray_then(num_batches: int) -> None:
    sizes = block_sizes(num_batches, 2, growing=True)
    assert sum(sizes) == num_batches
    largest = sizes.index(max(sizes))
    assert sizes[:largest] == [1, 1, 2, 4, 8][:largest]
    assert sizes[largest:] == block_sizes(num_batches - sum(sizes[:largest]), 2)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, (8, 0)),
        ({"num_decoders": 3}, (5, 3)),
        ({"num_decoders": 3, "cpus_per_worker": 2}, (2, 3)),
        ({"num_decoders": 100}, (1, 7)),
        ({"num_decoders": 3, "num_workers": 6}, (6, 2)),
        ({"use_gpu": True}, (2, 6)),
        ({"use_gpu": True, "cpus_per_worker": 4}, (2, 0)),
        ({"use_gpu": True, "num_decoders": 0}, (2, 0)),
        ({"use_gpu": True, "num_decoders": 3}, (2, 3)),
        ({"use_gpu": True, "num_workers": 1}, (1, 7)),
    ],
)
def test_decoders_take_cpus_that_are_left(
    flags: dict[str, Any], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "num_cpus", lambda: 8)
    monkeypatch.setattr(capacity, "num_fitting", lambda cpus, use_gpu: min(8 // cpus, 2 if use_gpu else 8))
    monkeypatch.setattr(ray_session, "check_shared", lambda **paths: None)
    assert pipeline._group_sizes(InferConfig(**flags), Source(("i",))) == expected
    with pytest.raises(InputError, match="no CPU is left for decoders: the workers take 8 of 8"):
        pipeline._group_sizes(InferConfig(num_decoders=1, num_workers=8), Source(("i",)))


@dataclasses.dataclass
class Operators:
    """Stands for a dataset, and keeps what its operators are told."""

    told: list[tuple[type, dict[str, Any]]] = dataclasses.field(default_factory=list)

    def map_batches(self, actor: type, **options: Any) -> "Operators":
        self.told.append((actor, options))
        return self


def one_pipeline(network: Path, **flags: Any) -> Pipeline:
    """Return a pipeline of a config with such flags."""
    task = block_task(str(network), num_threads=flags.get("cpus_per_worker", 1))
    return Pipeline(InferConfig(run=str(network), **flags), Source(("i",)), task, READER)


@pytest.mark.parametrize(("num_workers", "seconds"), [(1, 1.0), (20, 1.0), (40, 2.0), (1000, 50.0)])
def test_the_more_workers_there_are_the_less_often_each_reports(num_workers: int, seconds: float) -> None:
    assert report_every(num_workers, 600.0) == seconds
    assert report_every(num_workers, 8.0) <= 2.0
    assert report_every(num_workers, 0.1) == 1.0


def test_a_gpu_is_for_who_recognizes_and_a_cpu_for_who_decodes(
    ray_cluster: ray_session.Cluster, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_group_sizes", lambda *_: (2, 6))
    night = one_pipeline(network, use_gpu=True, cpus_per_worker=4)
    height, width, channels = load_spec(str(network)).image.shape
    monkeypatch.setattr(block, "MAX_DECODED_BYTES", 3 * block.BATCH_SIZE * height * width * channels)
    sizes = night.plan_blocks(60)
    assert sizes == block_sizes(60, 6, decoded_bytes=height * width * channels)
    assert max(sizes) == 3
    operators = Operators()
    monkeypatch.setattr(ray.data, "from_items", lambda items, **options: operators)
    night._dataset(range(10), lambda state: None)
    (decode, decodes), (recognize, recognizes) = operators.told
    assert (decode, recognize) == (DecodeBlocks, RecognizeDecoded)
    assert (decodes["num_cpus"], decodes.get("num_gpus")) == (1, None)
    assert (recognizes["num_cpus"], recognizes["num_gpus"], recognizes["batch_size"]) == (4, 1, None)
    assert decodes["fn_constructor_args"][0].num_threads == 1
    assert recognizes["fn_constructor_args"][0].num_threads == 4
    assert decodes["fn_constructor_args"][3] == recognizes["fn_constructor_args"][2] == REPORT_S
    pools = [(told["compute"].initial_size, told["compute"].max_size) for told in (decodes, recognizes)]
    assert pools == [(1, 6), (2, 2)], "decoders come after those that recognize have found their nodes"


def test_a_stall_is_at_the_stage_of_those_that_have_work(network: Path) -> None:
    night = one_pipeline(network)
    for worker, stage in (("a", IDLE), ("b", IDLE), ("c", "fetch")):
        night._states[worker] = WorkerState(worker, "", stage, 0, 0, {})
        assert night._stage() == stage


@pytest.mark.parametrize(
    ("engine", "num_blocks", "threads"), [("auto", 5, [1, 1]), ("auto", 1, [2]), ("torch", 5, [2])]
)
def test_readers_of_a_process_share_its_threads_and_load_one_after_another(
    engine: Any, num_blocks: int, threads: list[int], network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_num_cpus", lambda: 8)
    night = one_pipeline(network)
    night._task = dataclasses.replace(night._task, engine=engine)
    found: list[int] = []
    loading, overlaps = threading.Lock(), threading.Event()

    def load_reader(name: str, task: BlockTask, report: Report) -> None:
        if not loading.acquire(blocking=False):
            overlaps.set()
            raise AbandonedError
        found.append(task.num_threads)
        overlaps.wait(0.2)  # for another one to come in
        loading.release()
        raise AbandonedError

    monkeypatch.setattr(pipeline, "load_reader", load_reader)
    assert list(night._run_here(num_blocks)) == []
    assert (found, overlaps.is_set()) == (threads, False)


def test_threads_that_claim_blocks_get_each_block_once(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    night = one_pipeline(network)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns between any two steps
    try:
        with ThreadPoolExecutor(4) as pool:
            claims = [pool.submit(list, night._claimed(20_000)) for _ in range(4)]
            claimed = [block for claim in claims for block in claim.result()]
    finally:
        sys.setswitchinterval(before)
    assert sorted(claimed) == list(range(20_000))


def test_objects_of_a_store_are_read_ahead_wherever_they_stand_in_a_listing(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_decoder, "BATCH_SIZE", 2)
    uris = ["/a", "/b", "s3://c/c", "/d", "/e", "/f", "s3://g/g", "s3://h/h"]
    task = dataclasses.replace(one_pipeline(network)._task, attempt=str(tmp_path))
    rows = [{"uri": uri, "etag": "", "size": None, "last_modified": None} for uri in uris]
    block_plan.write(task, [pa.Table.from_pylist(rows, LISTING_SCHEMA)])
    readers: dict[str, bool] = {}

    def fetch_one(self: BlockDecoder, row: dict[str, Any]) -> Unreadable:
        readers[row["uri"]] = threading.current_thread() is threading.main_thread()
        return Unreadable("missing", row["uri"])

    monkeypatch.setattr(BlockDecoder, "_fetch_one", fetch_one)
    decoder = BlockDecoder(task, load_spec(str(network)), {"seconds": {}, "fetched": 0})
    found = [item.detail for chunk in decoder.chunks([0]) for item in chunk.decoded if isinstance(item, Unreadable)]
    assert found == uris
    ahead = {uri for uri, here in readers.items() if not here}
    assert ahead == {"s3://c/c", "/d", "s3://g/g", "s3://h/h"}, "chunks with an object of a store"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 0),
        ({"cpu.max": "max 100000"}, 0),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_a_container_has_as_many_cpus_as_its_quota_gives(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(pipeline, "CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert pipeline._num_cpus() == (expected or 64)


def rows(out: Path) -> list[dict[str, Any]]:
    """Return what a plain reader sees, but for when and in which run it was recognized."""
    found = pyarrow.dataset.dataset(str(out), partitioning="hive").to_table().drop_columns(["run_id", "predicted_at"])
    return sorted(found.to_pylist(), key=lambda row: row["uri"])


def test_workers_that_decode_for_others_change_no_row(
    ray_cluster: ray_session.Cluster,
    network: Path,
    images: Path,
    tmp_path: Path,
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (images / "empty.png").write_bytes(b"")
    (images / "text.png").write_bytes(b"no image")
    states: list[WorkerState] = []

    class Overheard(ProgressChannel):
        def __init__(self, on_event: Callable[[WorkerState], None]) -> None:
            super().__init__(lambda state: (states.append(state), on_event(state)))

    monkeypatch.setattr(progress_channel, "ProgressChannel", Overheard)
    monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", 1000)  # 3 images of a block's 8
    for name, num_decoders in (("themselves", 0), ("decoders", 1)):
        states.clear()
        out = tmp_path / name
        config = InferConfig(
            images=str(images), run=str(network), out=str(out), num_workers=1, num_decoders=num_decoders
        )
        night = transcribe(config, time.monotonic(), READER)
        assert night.committed.counts.errors == Counter(EmptyFile=1, NotAnImage=1)
        manifest = json.loads((out / "run=000001" / "_manifest.json").read_text())
        assert manifest["cost"]["cores"] == 1 + num_decoders
        assert {"fetch", "decode", "recognize", "write"} <= manifest["seconds"].keys()
    assert rows(tmp_path / "decoders") == rows(tmp_path / "themselves")
    decoding = {state.worker for state in states if "decode" in state.seconds}
    recognizing = {state.worker for state in states if "recognize" in state.seconds}
    assert (len(decoding), len(recognizing), decoding & recognizing) == (1, 1, set())
