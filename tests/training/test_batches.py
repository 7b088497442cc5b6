"""Feeds of workers: every image once an epoch, in steps of the same number, in an order of the seed."""

import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captcha_ray.datasets import schema
from captcha_ray.images.spec import ImageSpec
from captcha_ray.storage import parquet, row_groups
from captcha_ray.storage.row_groups import RowGroup
from captcha_ray.training import batches
from captcha_ray.training.augment import paper_and_ink
from captcha_ray.training.batches import EpochFeed, Feed, StreamFeed, derive_seed
from captcha_ray.training.loop import Batch

GOLDEN_SEEDS = {
    (0,): 7896617691693857887,
    (1,): 3717377837946358015,
    (0, 1, 0, 0): 2918264622725855778,
    (0, 1, 0, 1): 1039618548874032360,
    (7, 75, 3, 1): 327730293801805370,
}

shares = st.integers(1, 4).flatmap(
    lambda world: st.tuples(st.integers(1, 60), st.just(world), st.integers(1, 20), st.integers(0, 2**32))
)


TINY = ImageSpec(height=4, width=4, channels=1)

Feeds = Callable[[int, int, int], Sequence[Feed]]


def feeds(n: int, world: int, batch_size: int) -> list[EpochFeed]:
    """One per worker, of images 0 to n - 1; an image's pixels and its target are its number."""
    numbers = np.arange(n)
    counts = [len(numbers[rank::world]) for rank in range(world)]
    return [
        EpochFeed(
            numbers[rank::world].astype(np.uint8).reshape(-1, 1, 1, 1),
            numbers[rank::world, None],
            counts,
            rank,
            batch_size,
        )
        for rank in range(world)
    ]


def as_targets(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.array(texts, np.int64).reshape(-1, 1)


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Feeds]:
    """Makes feeds as `feeds` does, of up to 60 images, from parts of 20; a window has 5 row groups of 3 images."""
    folder = tmp_path_factory.mktemp("parts")
    groups: list[RowGroup] = []
    for start in range(0, 60, 20):
        uri = str(folder / f"part-{start}.parquet")
        numbers = np.arange(start, start + 20)
        pixels = schema.pack_images(np.broadcast_to(numbers[:, None, None, None], (20, *TINY.shape)).astype(np.uint8))
        parquet.write(uri, pa.table({"image": pixels, "text": map(str, numbers)}), row_group_size=3)
        groups += row_groups.list_row_groups(uri)

    def make(n: int, world: int, batch_size: int) -> list[StreamFeed]:
        ends = np.cumsum([group.num_rows for group in groups]).tolist()
        cut = [one._replace(stop=one.stop - max(end - n, 0)) for one, end in zip(groups, ends, strict=True)]
        kept = [group for group in cut if group.num_rows > 0]
        shares = row_groups.divide(kept, world)
        counts = [sum(group.num_rows for group in share) for share in shares]
        return [StreamFeed(share, TINY, as_targets, counts, k, batch_size) for k, share in enumerate(shares)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "WINDOW_BYTES", 15 * 16)
        yield make


@pytest.fixture(scope="module", params=["memory", "stream"])
def make(request: pytest.FixtureRequest, streams: Feeds) -> Feeds:
    return feeds if request.param == "memory" else streams


def numbers_of(batches: Iterator[Batch]) -> list[list[int]]:
    """The images of each batch, whose pixels and targets must belong together."""
    result = []
    for item in batches:
        assert torch.equal(item.images[:, 0, 0, 0].long(), item.targets.flatten())
        result.append(item.targets.flatten().tolist())
    return result


@settings(deadline=None)
@given(share=shares)
def test_every_image_is_seen_exactly_once_an_epoch(make: Feeds, share: tuple[int, int, int, int]) -> None:
    n, world, batch_size, seed = share
    for order in (seed, None):
        seen = [x for feed in make(n, world, batch_size) for part in numbers_of(feed.epoch(order)) for x in part]
        assert sorted(seen) == list(range(n))


@settings(deadline=None)
@given(share=shares)
def test_workers_make_the_same_number_of_nearly_equal_steps_no_larger_than_asked(
    make: Feeds,
    share: tuple[int, int, int, int],
) -> None:
    n, world, batch_size, seed = share
    cut = [[len(part) for part in numbers_of(feed.epoch(seed))] for feed in make(n, world, batch_size)]
    assert {len(sizes) for sizes in cut} == {math.ceil(math.ceil(n / world) / batch_size)}
    for sizes in cut:
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size


@settings(deadline=None)
@given(share=shares)
def test_a_step_knows_its_images_over_all_workers(make: Feeds, share: tuple[int, int, int, int]) -> None:
    n, world, batch_size, seed = share
    every = [list(feed.epoch(seed)) for feed in make(n, world, batch_size)]
    for together in zip(*every, strict=True):
        assert {item.step_images for item in together} == {sum(len(item.images) for item in together)}


def test_a_seed_gives_an_order_and_another_seed_another(make: Feeds) -> None:
    feed = make(40, 1, 8)[0]
    assert numbers_of(feed.epoch(1)) == numbers_of(feed.epoch(1)) != numbers_of(feed.epoch(2))
    assert numbers_of(feed.epoch(None)) == numbers_of(feed.epoch(None))


def test_without_a_seed_images_in_memory_are_in_order() -> None:
    assert [x for part in numbers_of(feeds(40, 1, 8)[0].epoch(None)) for x in part] == list(range(40))


def test_classes_are_counted_at_each_position(make: Feeds) -> None:
    counts = [feed.count_classes(45) for feed in make(40, 3, 8)]
    assert [count.shape for count in counts] == [(1, 45)] * 3
    assert sum(counts).tolist() == [[1] * 40 + [0] * 5]


def test_a_stream_shuffles_the_row_groups_and_the_images_of_a_window(streams: Feeds) -> None:
    feed = streams(60, 1, 15)[0]
    places = np.zeros((60, 40), int)
    for seed in range(40):
        order = [x for part in numbers_of(feed.epoch(seed)) for x in part]
        places[order, seed] = range(60)
    assert (places.min(1) < 15).all(), "any image may come in the first window"
    assert (places.max(1) >= 45).all(), "or in the last"
    apart = np.abs(places[0] - places[2])
    assert apart.max() > 3, "what was written together may be apart"
    assert apart.max() < 18, "but no farther than a window"


def test_windows_are_nearly_equal(streams: Feeds) -> None:
    (feed,) = streams(48, 1, 5)  # 17 row groups, of which a window has room for 5
    assert isinstance(feed, StreamFeed)
    sizes = [sum(group.num_rows for group in window) for window in feed._windows(None)]
    assert len(sizes) == 4
    assert sum(sizes) == 48
    assert max(sizes) - min(sizes) <= 4


@pytest.mark.parametrize("seed", [None, 3])
def test_an_epoch_may_begin_at_any_step(make: Feeds, seed: int | None) -> None:
    for feed in make(50, 2, 4):
        whole = numbers_of(feed.epoch(seed))
        for step in range(feed.num_steps + 1):
            assert numbers_of(feed.epoch(seed, step)) == whole[step:]


def test_what_comes_before_the_first_step_is_not_read(streams: Feeds, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = row_groups.read, []
    monkeypatch.setattr(row_groups, "read", lambda group, **named: seen.append(group) or read(group, **named))
    (feed,) = streams(60, 1, 5)
    for step, num_groups in ((0, 21), (4, 15), (11, 5), (12, 0)):  # windows of 6, 5, 5 and 5 groups, of 14 to 18 images
        seen.clear()
        assert len(list(feed.epoch(1, step))) == 12 - step
        assert len(seen) == num_groups, step


def test_a_row_group_may_be_larger_than_a_window(streams: Feeds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WINDOW_BYTES", 20)
    seen = [x for part in numbers_of(streams(20, 1, 6)[0].epoch(1)) for x in part]
    assert sorted(seen) == list(range(20))


def test_a_stream_holds_the_window_that_is_used_and_the_next(streams: Feeds, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[weakref.ref[pa.Table]] = []
    images: list[weakref.ref[torch.Tensor]] = []
    read, gather = row_groups.read, StreamFeed._gather

    def note_read(*arguments: Any, **named: Any) -> pa.Table:
        table = read(*arguments, **named)
        tables.append(weakref.ref(table))
        return table

    def note_gathered(self: StreamFeed, given: list[pa.Table]) -> tuple[torch.Tensor, torch.Tensor]:
        assert not [one for one in images if one() is not None], "the window before is let go first"
        found = gather(self, given)
        images.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(row_groups, "read", note_read)
    monkeypatch.setattr(StreamFeed, "_gather", note_gathered)
    for _ in streams(60, 1, 5)[0].epoch(1):
        assert sum(one() is not None for one in tables) <= 6, "tables of the next window alone"
    assert (len(tables), len(images)) == (21, 5)


def test_no_thread_is_left_of_an_epoch_that_is_over_or_left(streams: Feeds) -> None:
    before = set(threading.enumerate())
    (feed,) = streams(60, 1, 5)
    for _ in feed.epoch(1):
        pass
    feed.count_classes(60)
    left = feed.epoch(1)
    next(left)
    assert set(threading.enumerate()) - before
    left.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


def test_a_stream_brings_along_colors_if_it_is_asked_for_them(streams: Feeds) -> None:
    (feed,) = streams(10, 1, 5)
    assert isinstance(feed, StreamFeed)
    assert all(batch.colors is None for batch in feed.epoch(1))
    feed._with_colors = True
    for batch in feed.epoch(1):
        assert torch.equal(batch.colors, paper_and_ink(batch.images.permute(0, 3, 1, 2)))


# -------------------------------------------------------------------------------------------------- seeds, arithmetic


def test_derived_seeds_are_the_same_everywhere() -> None:
    assert [derive_seed(*parts) for parts in GOLDEN_SEEDS] == list(GOLDEN_SEEDS.values())


def test_derived_seeds_of_different_parts_differ_and_fit_63_bits() -> None:
    parts = [
        (seed, epoch, rank, use) for seed in range(3) for epoch in range(20) for rank in range(8) for use in (0, 1)
    ]
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_colors_of_paper_and_ink_come_with_their_images_and_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.full((7, 8, 8, 1), 200, np.uint8)
    images[:, 0, 0, 0] = range(7)
    images[5:, 0, 0, 0] = 255
    images[6, 1:] = 9  # light ink on dark paper
    feed = EpochFeed(images, np.zeros((7, 1), np.int64), [7], 0, 3, with_colors=True)
    measured = []

    def count(batch: torch.Tensor) -> torch.Tensor:
        measured.append(len(batch))
        return paper_and_ink(batch)

    monkeypatch.setattr(batches, "paper_and_ink", count)
    for seed in (1, None, 2):
        found = {}
        for batch in feed.epoch(seed):
            assert batch.colors is not None
            for image, colors in zip(batch.images, batch.colors, strict=True):
                found[int(image[0, 0, 0]), int(image[7, 7, 0])] = tuple(colors[:, 0].tolist())
        expected = {(ink, 200): (200, ink) for ink in range(5)} | {(255, 200): (200, 255), (255, 9): (9, 255)}
        assert found == expected
    assert sum(measured) == 7
    assert next(EpochFeed(images, np.zeros((7, 1), np.int64), [7], 0, 3).epoch(1)).colors is None
