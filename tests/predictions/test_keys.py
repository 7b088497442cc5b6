"""Checks what the key index of a run holds, that it can be made anew, and that a night reads no more than it needs."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from captcha_ray.errors import InputError
from captcha_ray.predictions import keys
from captcha_ray.predictions.keys import INDEX_SCHEMA, UriRange
from captcha_ray.storage import filesystem, parquet
from captcha_ray.storage.retries import StoreError
from tests.support.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.support.prediction_tables import FIVE, MODEL, NOW, Object, Writer, check_whole, objects, once
from tests.support.s3_server import client_of

pytestmark = pytest.mark.usefixtures("spools")

INDEX = f"run=000001/{keys.NAME}"


@contextmanager
def proxied(environment: dict[str, str], plan: object = None) -> Iterator[FaultProxy]:
    """Stand between the client and the server. plan: of faults; None for none."""
    with (
        fault_proxy(environment["AWS_ENDPOINT_URL"], plan or (lambda *_: None)) as proxy,  # type: ignore[arg-type]
        client_of(environment | {"AWS_ENDPOINT_URL": proxy.url}),
    ):
        yield proxy


def without_indexes(out: str) -> None:
    """Make the table one of an earlier version."""
    for uri in list(filesystem.list_files(out)):
        if uri.endswith(keys.NAME):
            filesystem.delete(uri)


def test_an_index_holds_the_halves_of_md5_sorted(local: str) -> None:
    """Pin the hashes: if another version of DuckDB changed them, nothing would count as done."""
    Writer(local).night(FIVE, {FIVE[1][0]: "Missing: x"}, size=5)
    index = pq.read_table(filesystem.join(local, INDEX))
    assert index.schema.remove_metadata().equals(INDEX_SCHEMA)
    expected = []
    for uri, etag in FIVE:
        of_uri, of_object = (hashlib.md5(text.encode()).digest() for text in (uri, f"{uri}\n{etag}"))
        expected.append({
            "uri_high": int.from_bytes(of_uri[:8], "little"),
            "object": int.from_bytes(of_object[8:], "little"),
            "model_id": MODEL,
            "is_error": uri == FIVE[1][0],
            "uri_low": int.from_bytes(of_uri[8:], "little"),
            "size": len(uri),
            "last_modified": NOW,
        })  # fmt: skip
    assert index.to_pylist() == sorted(expected, key=lambda row: row["uri_high"])


def test_a_large_index_takes_some_forty_bytes_a_row_of_which_a_night_reads_sixteen(local: str) -> None:
    Writer(local).night([(f"s3://images/{k:07d}.png", f"{k:032x}") for k in range(20_000)], size=20_000)
    index = filesystem.join(local, INDEX)
    assert Path(index).stat().st_size < 40 * 20_000
    group = pq.read_metadata(index).row_group(0)
    sizes = {group.column(k).path_in_schema: group.column(k).total_compressed_size for k in range(group.num_columns)}
    assert sum(sizes[name] for name in ("uri_high", "object", "model_id", "is_error")) < 16.1 * 20_000


@pytest.mark.parametrize("changes", [{}, {"skip": "any-model"}, {"retry_errors": True}])
def test_a_table_of_an_earlier_version_is_continued_and_gets_its_indexes(changes: dict[str, object], out: str) -> None:
    Writer(out).night(FIVE[:3], {FIVE[0][0]: "Missing: x"})
    before = Writer(out, **changes)
    expected = before.plan(FIVE)
    before.table.close()
    without_indexes(out)
    Writer(out).table.close()
    check_whole(out, once(FIVE[:3]))
    without_indexes(out)
    assert Writer(out, **changes).plan(FIVE) == expected


def test_a_kill_between_rows_and_index_is_mended_by_the_next_job(out: str) -> None:
    Writer(out).night(FIVE)
    where = filesystem.join(out, INDEX)
    index = parquet.read(where)
    filesystem.delete(where)
    assert Writer(out).plan(FIVE) == []
    assert parquet.read(where).equals(index)


def torn(data: bytes) -> bytes:
    return data[:100]


def zeroed(data: bytes) -> bytes:
    return data[:4] + bytes(60) + data[64:]


def garbled(data: bytes) -> bytes:
    return data[:-200] + bytes(180) + data[-20:]


def other_hash(data: bytes) -> bytes:
    """Zero a hash, which changes nothing else of the file."""
    found = hashlib.md5(FIVE[0][0].encode()).digest()[:8]
    assert found in data
    return data.replace(found, bytes(8))


@pytest.mark.parametrize("damage", [lambda data: b"", torn, zeroed, garbled, other_hash])
def test_an_index_that_a_power_failure_has_damaged_is_made_again(damage: Callable[[bytes], bytes], out: str) -> None:
    Writer(out).night(FIVE[:2])
    where = filesystem.join(out, INDEX)
    data = filesystem.read(where)
    filesystem.write(where, damage(data))
    assert Writer(out).plan(FIVE) == sorted(FIVE[2:])
    assert filesystem.read(where) == data


def test_an_index_of_rows_that_were_replaced_since_is_made_again(out: str) -> None:
    """Replace rows, as another job does where a store ignores conditional writes, and people who take some out."""
    Writer(out).night(FIVE[:3], size=3)
    where = filesystem.join(out, "run=000001/predictions.parquet")
    rows = parquet.read(where)
    parquet.write(where, rows.slice(1))
    assert Writer(out).plan(FIVE) == sorted([FIVE[0], *FIVE[3:]])


def test_an_index_without_its_footer_is_of_another_time(local: str) -> None:
    Writer(local).night(FIVE[:2])
    where = filesystem.join(local, INDEX)
    parquet.write(where, parquet.read(where).replace_schema_metadata(None))
    assert Writer(local).plan(FIVE) == sorted(FIVE[2:])


def test_rows_that_are_damaged_are_named(local: str) -> None:
    Writer(local).night(FIVE[:2])
    without_indexes(local)
    rows = filesystem.join(local, "run=000001/predictions.parquet")
    filesystem.write(rows, b"PAR1")
    with pytest.raises(InputError, match=r"run=000001/predictions\.parquet is damaged"):
        Writer(local)
    filesystem.write(filesystem.join(local, INDEX), b"PAR1")
    with pytest.raises(InputError, match=r"run=000001/predictions\.parquet is damaged"):
        Writer(local).plan(FIVE)


# ---------------------------------------------------------------- what is read


def days(*numbers: int, count: int = 3000) -> list[Object]:
    return objects(*(f"2026-11-{day:02d}/{k:05d}.png" for day in numbers for k in range(count)))


def test_a_night_reads_footers_only_of_runs_that_hold_none_of_its_uris(
    server: tuple[Path, dict[str, str]], remote: str
) -> None:
    for day in (1, 2, 3):
        Writer(remote).night(days(day), size=3000)
    with proxied(server[1]) as proxy:
        writer = Writer(remote)
        opened = proxy.num_bytes.copy()
        assert writer.plan(days(3, count=3001)) == objects("2026-11-03/03000.png")
        read = proxy.num_bytes - opened
    table = remote.removeprefix("s3://")
    of_run = {run: sum(n for path, n in read.items() if f"run%3D{run:06d}" in path) for run in (1, 2, 3)}
    assert of_run[1] == of_run[2] == parquet.TAIL_BYTES, of_run
    assert 16 * 3000 < of_run[3] < 20 * 3000 + parquet.TAIL_BYTES
    assert not any("predictions.parquet" in path for path in read), table


def test_ranges_of_uris_touch_where_a_uri_may_lie_in_both() -> None:
    b, d = UriRange("b", "b~"), UriRange("d", "d~")
    assert not b.touches(d)
    assert not d.touches(b)
    for other in (UriRange("a", "b"), UriRange("b~", "z"), UriRange("a", "z"), UriRange("b1", "b2")):
        assert b.touches(other)
        assert other.touches(b)


def test_an_index_that_is_refused_ends_the_plan_as_any_refused_object_does(
    server: tuple[Path, dict[str, str]], remote: str
) -> None:
    Writer(remote).night(FIVE[:2])
    is_open = False

    def refuse(method: str, path: str, _: int) -> Fault | None:
        return Fault.DENIED if is_open and method == "GET" and keys.NAME in path else None

    with proxied(server[1], refuse):
        writer = Writer(remote)
        is_open = True
        with pytest.raises(StoreError, match=r"_keys\.index: .*[Dd]enied"):
            writer.plan(FIVE)
