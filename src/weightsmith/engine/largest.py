"""Exact k-th largest of derived values in a single pass, under a guess, as `windows.py` finds k-th magnitudes.

Each vector keeps aside what lies in its own windows. Where only values are asked for, no index is kept, and nothing at all
of a window of one value, such as the many zeros of unchanged entries: there it is enough to count.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from threading import Event
from typing import Any

import numpy as np

from weightsmith.engine.radix import host_values, nothing
from weightsmith.engine.scope import Scope
from weightsmith.engine.stream import Piece, Worker
from weightsmith.engine.windows import DEVIATIONS, RUN, RUNS, STRIDE, window
from weightsmith.method import KthLargest
from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import Kth

COUNTED, KEPT, LOCATED = range(3)  # what becomes of the values in a window
NO_INDEX = np.empty(0, np.uint32)
FINER = 4  # into so many the runs are cut where the windows of a first sample hold too much
LITTLE_BYTES = 4_000_000  # that a sample may always take
PICKED = 2048  # values, of those kept aside, that tell about where among them the one looked for lies


@dataclass(frozen=True)
class Part:
    """What a tile, from `position` on, has in one window: how many values, how many above it, and those kept aside."""

    position: int
    inside: int
    above: int
    values: Array = None
    index: Array = None


def find_largest(scope: Scope, asked: KthLargest) -> list[Kth] | None:
    """Return what answers KthLargest; None where the guess fails, or NaN may occur, which no window holds."""
    if scope.job.allow_nonfinite or not scope.job.limits.aside_bytes:
        return None
    for cut in (1, FINER):
        sample = _sample(scope, asked, cut)
        if sample is None:
            return None
        likely = [list(asked.ranks(size)) for size in _sizes(scope, asked, sample)]
        windows = _guess(scope, asked, sample, likely) if any(likely[0]) else None
        room = max(LITTLE_BYTES, scope.job.limits.aside_bytes * scope.threads)  # not in use yet
        is_too_large = 3 * FINER * sample.nbytes > room  # a finer sample is held, stacked and sorted
        if windows is not None or not any(likely[0]) or is_too_large:
            break
    found = None if windows is None else _part(scope, asked, *windows)
    if windows is None or found is None:
        return None
    low, (parts, nonzero) = windows[0], found
    ranks = list(asked.ranks(nonzero)) if asked.nonzero else likely[0]
    answers = []
    for r, k in enumerate(ranks):
        if k == 0:
            answers.append(nothing(len(low)))
            continue
        values, cuts = np.empty((len(low), 1)), np.full((len(low), 1), scope.size, np.int64)
        for v in range(len(low)):
            pair = _nth([tile[v * len(ranks) + r] for tile in parts], k, low[v, r], asked.located)
            if pair is None:
                return None
            values[v], cuts[v] = pair[0], scope.size if pair[1] is None else pair[1]
        answers.append(Kth(values, cuts))
    return answers


def count_nonzero(scope: Scope, asked: KthLargest) -> int:
    """Return how many derived values, of one vector, are not 0."""

    def run(worker: Worker, batch: list[Piece]) -> int:
        tiles = scope.stream.each_tile(worker, batch)
        return sum(_nonzero(host_values(asked, base, others, scope.where(piece))) for piece, base, others in tiles)

    return sum(scope.each(run))


def _nonzero(values: Array) -> int:
    zero = values.dtype.type(0)
    return int(values.size - _gather(values[0], zero, zero, values[0, :0])[0])


def _sizes(scope: Scope, asked: KthLargest, sample: Array) -> list[int]:
    """Return what the ranks are likely formed of: the scope's size, or a least and a most number of values not 0."""
    if not asked.nonzero:
        return [scope.size]
    counts = (sample[0] != 0).sum(1)
    reach = DEVIATIONS * counts.std(ddof=1) * len(counts) ** 0.5
    share = scope.size / sample[0].size
    return [int(np.clip((counts.sum() + r) * share, 0, scope.size)) for r in (reach, -reach)]


def _mode(low: Any, top: Any, located: bool) -> int:
    return LOCATED if located else COUNTED if low == top else KEPT


def _guess(
    scope: Scope, asked: KthLargest, sample: Array, likely: Sequence[Sequence[int]]
) -> tuple[Array, Array] | None:
    """Return the windows' bounds, both (V, ranks), for ranks that lie between those of the first and the last list.

    None where what lies in them would take too much memory.
    """
    ordered = np.sort(sample.reshape(len(sample), -1))
    lows = [window(sample, ordered, k / scope.size, -np.inf)[0] for k in likely[0]]
    tops = [window(sample, ordered, k / scope.size, -np.inf)[1] for k in likely[-1]]
    low, top = np.stack(lows, axis=1), np.stack(tops, axis=1)
    held = 0
    for v, r in np.ndindex(low.shape):
        if _mode(low[v, r], top[v, r], asked.located) != COUNTED:
            first, last = np.searchsorted(ordered[v], low[v, r]), np.searchsorted(ordered[v], top[v, r], "right")
            held += int(last - first)
    expected = held / ordered.shape[1] * scope.size * (sample.itemsize + 4 * asked.located)
    return (low, top) if expected <= scope.job.limits.aside_bytes * scope.threads else None


def _sample(scope: Scope, asked: KthLargest, cut: int) -> Array | None:
    """Return values (V, runs, n) of runs spread over the scope, of whole rows where they must be; None for too few.

    Runs have the `cut`-th part of their usual length, and are more by its square.
    """
    works = list({p.work.name: p.work for batch in scope.batches for p in batch}.values())
    unit = works[0].shape[-1] if works[0].shape and scope.job.chosen.takes_rows(works[0].parameters or {}) else 1
    if unit > 1 and len(works) > 1:
        return None
    run_size = max(1, RUN // cut // unit) * unit
    runs = min(max(scope.size // STRIDE, RUNS[0]), RUNS[1]) * RUN * cut // run_size
    runs = min(runs, scope.size // (2 * run_size))
    if runs < 2:
        return None
    stride, ends = scope.size // runs, list(accumulate(w.size for w in works))
    pieces = []
    for j in range(runs):
        place = j * stride + int(j * 0.6180339887 % 1 * (stride - run_size))  # see `windows._sample`
        work = works[bisect_right(ends, place)]
        start = min(place - scope.offsets[work.name], work.size - run_size) // unit * unit
        if start >= 0:
            pieces.append(Piece(work, start, start + run_size))

    def load(worker: Worker, part: list[Piece]) -> list[Array]:
        return [host_values(asked, *worker.load(p.work, p.start, p.stop), scope.where(p)).copy() for p in part]

    groups = [pieces[j : j + 16] for j in range(0, len(pieces), 16)]
    found = [values for group in scope.in_order(groups, load) for values in group]
    return np.stack(found, axis=1) if len(found) > 1 else None


def _part(scope: Scope, asked: KthLargest, low: Array, top: Array) -> tuple[list[list[Part]], int] | None:
    """Read the scope once: for each tile its parts, vector by vector and rank by rank; and how many values are not 0.

    None where room runs out; the number is 0 where it is not asked for.
    """
    used: dict[Worker, int] = {}  # bytes of each worker's room that are taken
    scratch: dict[Worker, tuple[Array, Array]] = {}
    is_full = Event()

    def keep(worker: Worker, values: Array) -> Array:
        start = used.get(worker, 0)
        stop = start + values.nbytes
        if stop > len(worker.aside):
            is_full.set()
            return values[:0]
        used[worker] = -(-stop // 8) * 8
        kept: Array = worker.aside[start:stop].view(values.dtype)
        kept[:] = values
        return kept

    def run(worker: Worker, batch: list[Piece]) -> tuple[list[list[Part]], int]:
        tiles, nonzero = [], 0
        for piece, base, others in scope.stream.each_tile(worker, batch):
            if is_full.is_set():
                break
            values = host_values(asked, base, others, scope.where(piece))
            if worker not in scratch:
                size = max(scope.stream.held(piece.work), values.shape[1])
                scratch[worker] = np.empty(size, values.dtype), np.empty(size, np.uint32)
            kept, index = scratch[worker]
            nonzero += _nonzero(values) if asked.nonzero else 0
            parts = []
            for v, r in np.ndindex(low.shape):
                mode = _mode(low[v, r], top[v, r], asked.located)
                inside, above = compiled.gather_window(values[v], low[v, r], top[v, r], kept, index, mode)
                some = [keep(worker, x[:inside]) for x in (kept, index)[:mode]]
                parts.append(Part(scope.position(piece), inside, above, *some))
            tiles.append(parts)
        return tiles, nonzero

    with closing(scope.each(run)) as batches:
        found, total = [], 0
        for tiles, nonzero in batches:
            found += tiles
            total += nonzero
            if is_full.is_set():
                return None
    return found, total


def _nth(parts: Sequence[Part], rank: int, low: Any, located: bool) -> tuple[float, int | None] | None:
    """Return the value of a rank and, where located, the scope index after its last; None where no window holds it."""
    nth = rank - sum(p.above for p in parts)
    if not 1 <= nth <= sum(p.inside for p in parts):
        return None
    if parts[0].values is None:
        return float(low) + 0.0, None
    inside = np.concatenate([p.values for p in parts])
    value = _pick(inside, nth)
    if not located:
        return float(value) + 0.0, None
    left = nth - np.count_nonzero(inside > value)
    if left == np.count_nonzero(inside == value):
        return float(value) + 0.0, None
    for p in parts:
        equal = np.flatnonzero(p.values == value)
        if left <= len(equal):
            return float(value) + 0.0, p.position + int(p.index[equal[left - 1]]) + 1
        left -= len(equal)
    return None


def _pick(values: Array, nth: int) -> Any:
    """Return the nth largest value; where there are many, between or at bounds that some of them tell, if these hold it."""
    infinity = values.dtype.type(np.inf)
    while len(values) > 16 * PICKED:
        some = np.sort(values[:: len(values) // PICKED])[::-1]
        share = nth / len(values)
        reach = DEVIATIONS * (len(some) * share * (1 - share)) ** 0.5 + 2 * DEVIATIONS
        first, last = (round(share * len(some) + r) for r in (-reach, reach))
        top, low = some[first] if first > 0 else infinity, some[last] if last < len(some) else -infinity
        kept = np.empty_like(values)  # between the bounds, which may be many times there, as zeros are
        inside, above = _gather(values, np.nextafter(low, infinity), np.nextafter(top, -infinity), kept)
        if above < nth <= above + inside and 2 * inside <= len(values):
            values, nth = kept[:inside], nth - above
            continue
        for bound in (top, low):
            equal, above = _gather(values, bound, bound, kept)
            if above < nth <= above + equal:
                return bound
        break
    return np.partition(values, len(values) - nth)[len(values) - nth]


def _gather(values: Array, low: Any, top: Any, kept: Array) -> tuple[int, int]:
    found: tuple[int, int] = compiled.gather_window(values, low, top, kept, NO_INDEX, COUNTED if low == top else KEPT)
    return found
