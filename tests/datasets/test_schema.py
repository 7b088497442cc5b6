"""Shards hold the pixels as they are; a manifest explains them; an image's split depends on nothing but itself."""

import collections
import hashlib
import io
import itertools
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captcha_ray.datasets.schema import QUARANTINE_SCHEMA, Manifest, pack_images, shard_schema, unpack_images
from captcha_ray.datasets.splits import SPLITS, split_of
from captcha_ray.errors import InputError
from captcha_ray.images.spec import ImageSpec
from tests import factories

SPEC = ImageSpec(height=5, width=4, channels=3)
HASHES = [hashlib.sha256(str(i).encode()).digest() for i in range(20_000)]


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *SPEC.shape), dtype=np.uint8)


def manifest(**changes: Any) -> Manifest:
    values = {
        "image": SPEC.to_dict(),
        "charset": "01",
        "min_length": 1,
        "max_length": 1,
        "num_images": {"train": 1200, "val": 2, "test": 0},
        "num_characters": {"train": {"0": 700, "1": 500}},
        "num_quarantined": {"not_an_image": 3},
        "num_hidden": 2,
        "versions": {"pillow": "13"},
    }
    return factories.manifest(**(values | changes))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_images_come_back_from_parquet_byte_for_byte(count: int) -> None:
    images = pixels(count)
    texts = pa.array([str(i) for i in range(count)], pa.string())
    hashes = pa.array(HASHES[:count], pa.binary(32))
    table = pa.table([pack_images(images), texts, texts, hashes], schema=shard_schema(SPEC))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    found = pq.read_table(buffer)
    assert found.schema.field("image").metadata == {b"shape": b"[5, 4, 3]", b"dtype": b"uint8"}
    assert np.array_equal(unpack_images(found["image"], SPEC), images)


@given(st.integers(0, 9), st.integers(0, 9), st.lists(st.integers(0, 9), max_size=4))
@settings(deadline=None)
def test_slices_and_chunks_of_a_column_hold_their_own_images(start: int, length: int, cuts: list[int]) -> None:
    images = pixels(9)
    column = pack_images(images)
    assert np.array_equal(unpack_images(column.slice(start, length), SPEC), images[start : start + length])
    edges = [0, *sorted(cuts), 9]
    chunks = [column.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    assert np.array_equal(unpack_images(pa.chunked_array(chunks, column.type), SPEC), images)


def test_one_chunk_is_neither_packed_nor_unpacked_by_copying() -> None:
    images = pixels(3)
    assert np.shares_memory(unpack_images(pack_images(images), SPEC), images)


def test_images_that_do_not_lie_in_order_are_packed_in_order() -> None:
    images = pixels(6)[::2, ::-1]
    assert np.array_equal(unpack_images(pack_images(images), SPEC), images)


def test_no_column_that_leaves_the_project_holds_nulls() -> None:
    for field in [*shard_schema(SPEC), *QUARANTINE_SCHEMA]:
        assert not field.nullable, field.name


def test_splits_have_the_sizes_asked_for() -> None:
    counts = collections.Counter(split_of(h, 0, (0.7, 0.2, 0.1)) for h in HASHES)
    for split, fraction in zip(SPLITS, (0.7, 0.2, 0.1), strict=True):  # four standard deviations: 0.013 at most
        assert counts[split] / len(HASHES) == pytest.approx(fraction, abs=0.013)


def test_a_split_of_an_image_is_fixed_for_good() -> None:
    found = [split_of(h, 3, (0.5, 0.25, 0.25)) for h in HASHES[:12]]
    assert found == [expected(h, 3) for h in HASHES[:12]]
    assert set(found) == set(SPLITS)


def expected(sha256: bytes, seed: int) -> str:
    """The same in other words: the first byte below 128 trains, below 192 validates."""
    first = hashlib.sha256(seed.to_bytes(8, "big") + sha256).digest()[0]
    return "train" if first < 128 else "val" if first < 192 else "test"


def test_another_seed_moves_images() -> None:
    moved = sum(split_of(h, 0, (0.5, 0.5, 0.0)) != split_of(h, 1, (0.5, 0.5, 0.0)) for h in HASHES[:1000])
    assert 400 < moved < 600


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_a_split_of_no_size_gets_no_images(sha256: bytes, seed: int) -> None:
    assert split_of(sha256, seed, (1.0, 0.0, 0.0)) == "train"
    assert split_of(sha256, seed, (0.6, 0.4, 0.0)) != "test"
    assert split_of(sha256, seed, (0.6, 0.0, 0.4)) != "val"
    assert split_of(sha256, seed, (0.3, 0.3, 0.0)) != "test"  # as if rounding had lost much of the sum


def test_a_manifest_comes_back_from_json_as_it_was() -> None:
    value = manifest()
    assert Manifest.from_dict(json.loads(json.dumps(value.to_dict()))) == value
    assert value.image_spec == SPEC


def test_a_manifest_of_another_version_is_refused_by_field() -> None:
    with pytest.raises(InputError, match="unknown field of Manifest 'num_image'; did you mean 'num_images'"):
        Manifest.from_dict({**manifest().to_dict(), "num_image": 1})


def test_a_manifest_says_what_is_there_and_what_is_not() -> None:
    assert manifest().describe() == [
        "1,202 images of 4x5 pixels: 1,200 train, 2 val, 0 test",
        "2 characters: 01; 1 per label",
        "quarantined: 3 not_an_image",
        "passed over: 2 hidden or system files",
    ]


def test_a_manifest_is_silent_about_what_did_not_happen() -> None:
    lines = manifest(num_quarantined={}, num_hidden=0, max_length=5).describe()
    assert lines[1:] == ["2 characters: 01; 1 to 5 per label"]


def test_the_image_buffer_is_shared_not_copied() -> None:
    pixels = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
    column = pack_images(pixels)
    assert column.buffers()[1].address == pixels.ctypes.data
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": column}), buffer)
    back = pq.read_table(buffer)["image"]
    spec = ImageSpec(height=4, width=4)
    assert np.array_equal(unpack_images(back, spec), pixels)
    assert np.array_equal(unpack_images(back.slice(1), spec), pixels[1:])
