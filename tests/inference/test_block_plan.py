"""Blocks are written a few hundred to an object, and each is read alone."""

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captcha_ray.inference import block_plan
from captcha_ray.inference.block import BlockTask
from captcha_ray.inference.block_plan import BlockPlan
from captcha_ray.predictions.schema import LISTING_SCHEMA
from captcha_ray.storage import filesystem
from tests.support.block_tasks import block_task


def rows(*numbers: int) -> pa.Table:
    listed = [{"uri": f"/{k:05d}", "etag": f"{k:032x}", "size": k, "last_modified": None} for k in numbers]
    return pa.Table.from_pylist(listed, LISTING_SCHEMA)


@pytest.fixture
def task(tmp_path: Path) -> BlockTask:
    return block_task(attempt=tmp_path / "attempt")


@given(st.lists(st.integers(1, 5), max_size=9), st.data())
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_are_read_back_in_any_order(task: BlockTask, sizes: list[int], data: st.DataObject) -> None:
    filesystem.delete(*filesystem.list_files(task.attempt) if Path(task.attempt).exists() else ())
    blocks = [rows(*range(10 * number, 10 * number + size)) for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_plan, "BLOCKS_PER_PART", 4)
        block_plan.write(task, blocks)
        plan = BlockPlan(task)
        for number in data.draw(st.permutations(range(len(sizes)))):
            assert plan.read(number).equals(blocks[number])
        parts = list(filesystem.list_files(task.attempt)) if sizes else []
        assert parts == [task.part_uri(part) for part in range(math.ceil(len(sizes) / 4))]


def test_a_plan_is_cut_into_blocks_that_are_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_plan, "BATCH_SIZE", 3)
    pq.write_table(rows(*range(20)), tmp_path / "todo.parquet")
    found = list(block_plan.cut(tmp_path / "todo.parquet", [1, 4, 2]))
    assert [len(block) for block in found] == [3, 12, 5]
    assert pa.concat_tables(found).equals(rows(*range(20)))
    with pytest.raises(AssertionError, match="every batch is in a block"):
        list(block_plan.cut(tmp_path / "todo.parquet", [1, 4]))


def test_an_absent_part_is_not_found(task: BlockTask) -> None:
    with pytest.raises(FileNotFoundError):
        BlockPlan(task).read(0)
