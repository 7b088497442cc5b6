"""Decide the split, fold or sample of an image from its pixels alone."""

import hashlib
from typing import Literal

import pyarrow as pa

Split = Literal["train", "val", "test"]


SPLITS: tuple[Split, Split, Split] = ("train", "val", "test")


def split_of(sha256: bytes, seed: int, splits: tuple[float, float, float]) -> Split:
    """Return the split of an image.

    It follows from hash and seed alone: it is the same for any number of workers and does not move when images are
    added.
    """
    point = place(sha256, seed)
    if point < splits[0]:
        return "train"
    return "val" if point < splits[0] + splits[1] or splits[2] == 0 else "test"


def fold_of(sha256: bytes, seed: int, num_folds: int) -> int:
    """Return the fold of an image, 0 to num_folds - 1, from its hash and the seed."""
    return int(place(sha256, seed) * num_folds)


def subsample(rows: pa.Table, at_most: int, of: int | None = None) -> pa.Table:
    """Return about `at_most` rows of shards, chosen by their pixels; all of them if they are no more.

    of: number of all rows, if `rows` are a part of them.
    """
    share = at_most / max(len(rows) if of is None else of, 1)
    if share >= 1:
        return rows
    return rows.filter(pa.array([place(sha, 0, b"sample") < share for sha in rows["sha256"].to_pylist()], pa.bool_()))


def place(sha256: bytes, seed: int, purpose: bytes = b"") -> float:
    """Return a number from 0 to below 1, uniform over images and independent for each seed and purpose."""
    digest = hashlib.sha256(seed.to_bytes(8, "big") + sha256 + purpose).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
