"""Where masks and signs of several tasks agree: counts, through masks packed 64 entries to a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from weightsmith.tensor.arrays import Array

Counts = np.ndarray[Any, np.dtype[np.int64]]


def pack(masks: Sequence[Array] | Array) -> Array:
    """Return masks as words: T of (n,) bool -> (T, ceil(n / 64)) uint64; what is beyond n is not selected."""
    size = len(masks[0])
    out = np.zeros((len(masks), -(-size // 64) * 8), np.uint8)
    for row, mask in zip(out, masks, strict=True):
        packed = np.packbits(mask)
        row[: len(packed)] = packed
    return out.view(np.uint64)


def counted(words: Array) -> Counts:
    """Return how many entries are selected: (..., w) -> (...)."""
    found: Counts = np.bitwise_count(words).sum(-1, dtype=np.int64)
    return found


def shared(words: Array) -> Counts:
    """Return how many entries both masks of each pair select, (T (T - 1) / 2,): pairs (0, 1), (0, 2), ..., (1, 2), ..."""
    parts = [counted(words[s] & words[s + 1 :]) for s in range(len(words) - 1)]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def histogram(masks: Sequence[Array] | Array) -> Counts:
    """Return how many entries exactly n of T masks select, n = 0 .. T: T of (n,) bool -> (T + 1,)."""
    total = np.zeros(len(masks[0]), np.uint16)
    for mask in masks:
        total += mask
    return np.bincount(total, minlength=len(masks) + 1).astype(np.int64)


class Signs(NamedTuple):
    """Where the signs of several vectors differ.

    Attributes:
        moved: Entries where at least two vectors are not 0.
        conflicts: Entries where at least one is positive and one negative.
        both: For each pair, in the order of `shared`, entries where neither is 0.
        opposed: For each pair, entries where one is positive and one negative.
    """

    moved: int
    conflicts: int
    both: Counts
    opposed: Counts


def signs(positive: Array, negative: Array) -> Signs:
    """Count where signs differ, from the packed masks of positive and of negative entries, (T, w) each."""
    nonzero = positive | negative
    once, twice = np.zeros_like(nonzero[0]), np.zeros_like(nonzero[0])
    for row in nonzero:
        twice |= once & row
        once |= row
    mixed = np.bitwise_or.reduce(positive) & np.bitwise_or.reduce(negative)
    opposed = [
        counted((positive[s] & negative[s + 1 :]) | (negative[s] & positive[s + 1 :])) for s in range(len(nonzero) - 1)
    ]
    return Signs(
        int(counted(twice)),
        int(counted(mixed)),
        shared(nonzero),
        np.concatenate([np.zeros(0, np.int64), *opposed]),
    )
