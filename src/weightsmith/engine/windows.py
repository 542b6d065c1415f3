"""Exact k-th magnitudes of one tensor in a single pass, under a guess.

A sample says in which narrow window of magnitudes each k-th lies. One pass counts what lies above the windows and keeps
aside the entries that lie in one; among those alone the k-th is searched, and the earlier of equal entries. A guess that
turns out wrong, or needs more memory than allowed, gives no answer: then `radix.py` searches.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from threading import Event
from typing import Any

import numpy as np

from weightsmith.budget import Limits
from weightsmith.engine.radix import nothing
from weightsmith.engine.scope import Scope
from weightsmith.engine.stream import Piece, Worker
from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import Kth, sift, sorted_magnitudes, trim
from weightsmith.tensor.sign import majority

RUN = 2048  # neighbours read at a time for the sample
RUNS = (32, 256)  # fewest and most of them
STRIDE = 131_072  # elements for each, in between
DEVIATIONS = 4  # of the sample's count, by which a window reaches beyond the guess on either side


@dataclass(frozen=True)
class Open:
    """The open entries of one tile: their indices from `position` on, and all vectors there (T, m)."""

    position: int
    index: Array
    vectors: Array


def is_for_all(size: int, entry_bytes: int, limits: Limits) -> bool:
    """Tell whether a tensor is likely to fit among what all threads may keep aside, but not among what one may."""
    return limits.aside_bytes < size * entry_bytes // 8 <= limits.aside_bytes * limits.threads


def find(scope: Scope, ranks: Sequence[int], votes: bool = False) -> tuple[list[Kth], int] | None:
    """Return what answers KthMagnitude, and with `votes` the majority of the vectors trimmed by the first rank, not 0.

    None where the guess fails; where NaN may occur, which no window holds; and for scopes of several tensors.
    """
    wanted = [k for k in ranks if k > 0]
    if not wanted or len(scope.offsets) > 1 or scope.job.allow_nonfinite:
        return None
    windows = _guess(scope, wanted, scope.job.limits.aside_bytes * scope.threads)
    sifted = None if windows is None else _sift(scope, windows[0], windows[2], votes)
    if windows is None or sifted is None:
        return None
    opened, above, balance = sifted
    values, cuts = np.empty(above.shape), np.empty(above.shape, np.int64)
    for t in range(scope.vectors):
        vectors = [o.vectors[t] for o in opened]
        for r, k in enumerate(wanted):
            low, near, top = (bound[t, r] for bound in windows)
            found = _nth(scope, opened, vectors, (low, near, top), k - above[t, r])
            if found is None:
                return None
            values[t, r], cuts[t, r] = found
    answers = [Kth(values[:, r, None], cuts[:, r, None]) for r in range(len(wanted))]
    if votes:
        balance += sum(_majority(o, answers[0]) for o in opened)
    return [answers.pop(0) if k > 0 else nothing(scope.vectors) for k in ranks], balance


def _guess(scope: Scope, ranks: Sequence[int], limit: int) -> tuple[Array, Array, Array] | None:
    """Return the windows' least magnitudes, the likeliest, and the largest, each (T, ranks).

    None where what lies in the windows would take more than `limit` bytes.
    """
    runs = runs_of(scope)
    held = scope.vectors * np.dtype(scope.job.compute_dtype).itemsize  # bytes of an entry
    if runs < 2 or 2 * held * runs * RUN > limit:
        return None
    sample = sample_magnitudes(scope, runs)
    low, near, top = windows_of(sample, [k / scope.size for k in ranks])
    is_open = np.zeros(sample.shape[1:], bool)
    for row, least, most in zip(sample, low, top, strict=True):
        for r in range(len(ranks)):
            is_open |= (row >= least[r]) & (row <= most[r])
    return (low, near, top) if is_open.mean() * scope.size * (4 + held) <= limit else None


def runs_of(scope: Scope) -> int:
    """Return of how many runs a sample of a scope is made."""
    return min(max(scope.size // STRIDE, RUNS[0]), RUNS[1], scope.size // (2 * RUN))


def sample_magnitudes(scope: Scope, runs: int) -> Array:
    """Return magnitudes (T, runs, RUN) of runs spread over the scope, one at a place of its own in each stride.

    Fewer runs where a tensor is too small to hold one.
    """
    works = list({p.work.name: p.work for batch in scope.batches for p in batch}.values())
    ends, stride = list(accumulate(w.size for w in works)), scope.size // runs
    places = []
    for j in range(runs):
        # The golden ratio puts runs at ever other places of their strides: at no fixed column of a matrix.
        place = j * stride + int(j * 0.6180339887 % 1 * (stride - RUN))
        work = works[bisect_right(ends, place)]
        start = min(place - scope.offsets[work.name], work.size - RUN)
        if start >= 0:
            places.append((work, start))
    sample = np.empty((scope.vectors, len(places), RUN), scope.job.compute_dtype)

    def run(worker: Worker, part: range) -> None:
        for j in part:
            work, start = places[j]
            np.abs(worker.load(work, start, start + RUN)[1], out=sample[:, j])

    for _ in scope.in_order([range(j, min(j + 16, len(places))) for j in range(0, len(places), 16)], run):
        pass
    return sample


def windows_of(sample: Array, shares: Sequence[float]) -> tuple[Array, Array, Array]:
    """Return the least, the likeliest and the largest of the magnitudes of which each is that of a share: (T, shares)."""
    ordered = np.stack([sorted_magnitudes(row) for row in sample.reshape(len(sample), -1)])
    bounds = zip(*(window(sample, ordered, share) for share in shares), strict=True)
    low, top = (np.stack(bound, axis=1) for bound in bounds)
    return low, np.stack([_expected(ordered, share) for share in shares], axis=1), top


def window(sample: Array, ordered: Array, share: float, least: float = 0) -> tuple[Array, Array]:
    """Return numbers (T,) and (T,) between which, both included, very likely lies the one that a share is not below.

    None is below `least`. How sure a count in the sample is shows in how much the counts of its runs differ.
    """
    runs, size = sample.shape[1], ordered.shape[1]
    expected = share * size
    near = _expected(ordered, share)
    counts = (sample >= near[:, None, None]).sum(2)
    deviation = np.maximum(counts.std(1, ddof=1) * np.sqrt(runs), np.sqrt(expected * (1 - share)))
    reach = DEVIATIONS * deviation + 2 * DEVIATIONS  # and a few where nearly none, or nearly all, are counted
    first, last = np.floor(expected - reach).astype(int), np.ceil(expected + reach).astype(int)
    rows = np.arange(len(ordered))
    top = np.where(first < 1, np.inf, ordered[rows, size - np.clip(first, 1, size)])
    low = np.where(last > size, least, ordered[rows, size - np.clip(last, 1, size)])
    return low.astype(sample.dtype), top.astype(sample.dtype)


def _expected(ordered: Array, share: float) -> Array:
    """Return the numbers (T,) that a share of the sample is not below."""
    size = ordered.shape[1]
    return ordered[:, size - min(max(round(share * size), 1), size)]


def _sift(scope: Scope, low: Array, top: Array, votes: bool) -> tuple[list[Open], Array, int] | None:
    """Read the tensor once: its open entries, how many lie above the windows, the majority over what is not open."""
    used: dict[Worker, int] = {}  # bytes of each worker's room that are taken
    is_full = Event()

    def run(worker: Worker, batch: list[Piece]) -> list[tuple[Open, Array, int]] | None:
        found = []
        for piece, _, others in scope.stream.each_tile(worker, batch):
            index, above, balance = sift(others, low, top, votes)
            start, count = used.get(worker, 0), len(index)
            middle = start + -(-count // 2) * 8  # where numbers of 8 bytes may lie
            stop = middle + len(others) * count * others.itemsize
            used[worker] = -(-stop // 8) * 8
            if is_full.is_set() or stop > len(worker.aside):
                is_full.set()
                return None
            kept = worker.aside[start:middle].view(index.dtype)[:count]
            vectors = worker.aside[middle:stop].view(others.dtype).reshape(len(others), count)
            kept[:] = index
            np.take(others, index, axis=1, out=vectors, mode="clip")  # clip: without a copy in between
            found.append((Open(scope.position(piece), kept, vectors), above, balance))
        return found

    opened, total, majority_so_far = [], np.zeros(low.shape, np.int64), 0
    with closing(scope.each(run)) as batches:
        for found in batches:
            if found is None:
                return None
            for kept, above, balance in found:
                opened.append(kept)
                total += above
                majority_so_far += balance
    return opened, total, majority_so_far


def _nth(
    scope: Scope, opened: Sequence[Open], vectors: Sequence[Array], window: tuple[Any, Any, Any], nth: int
) -> tuple[float, int] | None:
    """Return the nth largest magnitude in a window of one vector, and the scope index after it, the earlier of equals.

    `vectors` are its open entries, tile by tile. None where the window holds no nth.
    """
    low, value, top = window
    counts = [compiled.count_inside(v, value, top) for v in vectors]
    larger = sum(count for count, _ in counts)
    if not larger < nth <= larger + sum(equal for _, equal in counts):  # not the likeliest: search
        inside = np.empty(sum(len(v) for v in vectors) + 1, low.dtype)
        found = 0
        for v in vectors:
            found += compiled.gather_inside(v, low, top, inside[found:])
        if not 1 <= nth <= found:
            return None
        value = sorted_magnitudes(inside[:found])[found - nth]
        counts = [compiled.count_inside(v, value, top) for v in vectors]
        larger = sum(count for count, _ in counts)
    left = nth - larger
    if left == sum(equal for _, equal in counts):
        return float(value), scope.size
    ends = list(accumulate(equal for _, equal in counts))
    tile = bisect_left(ends, left)
    where = compiled.nth_equal(vectors[tile], value, left - (ends[tile - 1] if tile else 0))
    return float(value), opened[tile].position + int(opened[tile].index[where]) + 1


def _majority(opened: Open, kth: Kth) -> int:
    """Return the majority of the open entries of a tile, trimmed by what has been found."""
    before = np.clip(kth.cut - opened.position, 0, 2**32 - 1).astype(np.uint32)  # `cut`, as an index in the tile
    return majority(trim(opened.vectors, Kth(kth.value, np.searchsorted(opened.index, before))))
