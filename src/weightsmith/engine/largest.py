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
from weightsmith.engine.windows import RUN, RUNS, STRIDE, window
from weightsmith.method import KthLargest
from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import Kth

COUNTED, KEPT, LOCATED = range(3)  # what becomes of the values in a window


@dataclass(frozen=True)
class Part:
    """What a tile, from `position` on, has in one window: how many values, how many above it, and those kept aside."""

    position: int
    inside: int
    above: int
    values: Array = None
    index: Array = None


def find_largest(scope: Scope, asked: KthLargest, ranks: Sequence[int]) -> list[Kth] | None:
    """Return what answers KthLargest; None where the guess fails, or NaN may occur, which no window holds."""
    wanted = [k for k in ranks if k > 0]
    if not wanted or scope.job.allow_nonfinite or not scope.job.limits.aside_bytes:
        return None
    windows = _guess(scope, asked, wanted)
    parts = None if windows is None else _part(scope, asked, *windows)
    if windows is None or parts is None:
        return None
    low = windows[0]
    values, cuts = np.empty(low.shape), np.full(low.shape, scope.size, np.int64)
    for i, (v, r) in enumerate(np.ndindex(low.shape)):
        found = _nth([tile[i] for tile in parts], wanted[r], low[v, r], asked.located)
        if found is None:
            return None
        values[v, r], cuts[v, r] = found[0], scope.size if found[1] is None else found[1]
    answers = [Kth(values[:, r, None], cuts[:, r, None]) for r in range(len(wanted))]
    return [answers.pop(0) if k > 0 else nothing(len(low)) for k in ranks]


def _mode(low: Any, top: Any, located: bool) -> int:
    return LOCATED if located else COUNTED if low == top else KEPT


def _guess(scope: Scope, asked: KthLargest, ranks: Sequence[int]) -> tuple[Array, Array] | None:
    """Return the windows' bounds, both (V, ranks); None where what lies in them would take too much memory."""
    sample = _sample(scope, asked)
    if sample is None:
        return None
    ordered = np.sort(sample.reshape(len(sample), -1))
    guesses = [window(sample, ordered, k / scope.size, -np.inf) for k in ranks]
    low, top = (np.stack(bounds, axis=1) for bounds in zip(*guesses, strict=True))
    held = 0
    for v, r in np.ndindex(low.shape):
        if _mode(low[v, r], top[v, r], asked.located) != COUNTED:
            first, last = np.searchsorted(ordered[v], low[v, r]), np.searchsorted(ordered[v], top[v, r], "right")
            held += int(last - first)
    expected = held / ordered.shape[1] * scope.size * (sample.itemsize + 4 * asked.located)
    return (low, top) if expected <= scope.job.limits.aside_bytes * scope.threads else None


def _sample(scope: Scope, asked: KthLargest) -> Array | None:
    """Return values (V, runs, n) of runs spread over the scope, of whole rows where they must be; None for too few."""
    works = list({p.work.name: p.work for batch in scope.batches for p in batch}.values())
    unit = works[0].shape[-1] if works[0].shape and scope.job.chosen.takes_rows(works[0].parameters or {}) else 1
    if unit > 1 and len(works) > 1:
        return None
    run_size = max(1, RUN // unit) * unit
    runs = min(min(max(scope.size // STRIDE, RUNS[0]), RUNS[1]) * RUN // run_size, scope.size // (2 * run_size))
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

    def run(worker: Worker, part: list[Piece]) -> list[Array]:
        return [host_values(asked, *worker.load(p.work, p.start, p.stop), scope.where(p)).copy() for p in part]

    groups = [pieces[j : j + 16] for j in range(0, len(pieces), 16)]
    found = [values for group in scope.in_order(groups, run) for values in group]
    return np.stack(found, axis=1) if len(found) > 1 else None


def _part(scope: Scope, asked: KthLargest, low: Array, top: Array) -> list[list[Part]] | None:
    """Read the scope once: for each tile its parts, vector by vector and rank by rank; None where room runs out."""
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

    def run(worker: Worker, batch: list[Piece]) -> list[list[Part]]:
        tiles = []
        for piece, base, others in scope.stream.each_tile(worker, batch):
            if is_full.is_set():
                break
            values = host_values(asked, base, others, scope.where(piece))
            if worker not in scratch:
                size = max(scope.stream.held(piece.work), values.shape[1])
                scratch[worker] = np.empty(size, values.dtype), np.empty(size, np.uint32)
            kept, index = scratch[worker]
            parts = []
            for v, r in np.ndindex(low.shape):
                mode = _mode(low[v, r], top[v, r], asked.located)
                inside, above = compiled.gather_window(values[v], low[v, r], top[v, r], kept, index, mode)
                some = [keep(worker, x[:inside]) for x in (kept, index)[:mode]]
                parts.append(Part(scope.position(piece), inside, above, *some))
            tiles.append(parts)
        return tiles

    with closing(scope.each(run)) as batches:
        found = []
        for tiles in batches:
            found += tiles
            if is_full.is_set():
                return None
    return found


def _nth(parts: Sequence[Part], rank: int, low: Any, located: bool) -> tuple[float, int | None] | None:
    """Return the value of a rank and, where located, the scope index after its last; None where no window holds it."""
    nth = rank - sum(p.above for p in parts)
    if not 1 <= nth <= sum(p.inside for p in parts):
        return None
    if parts[0].values is None:
        return float(low) + 0.0, None
    inside = np.concatenate([p.values for p in parts])
    value = np.partition(inside, len(inside) - nth)[len(inside) - nth]
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
