"""Exact k-th magnitudes of a whole model in a single pass, under a guess, as `windows.py` finds those of one tensor.

What lies in a window is too much to keep aside; it is counted in bins of neighboring bit patterns. Where the bin of the k-th
holds one pattern only, that is its value. How many entries are equal to the likeliest value is noted batch by batch, so that
the last of the k is found where it lies. A guess that turns out wrong gives no answer: then `radix.py` searches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightsmith.budget import RADIX
from weightsmith.engine.radix import locate, magnitudes, nothing
from weightsmith.engine.scope import Scope
from weightsmith.engine.stream import Piece, Worker
from weightsmith.engine.windows import runs_of, sample_magnitudes, windows_of
from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import Kth

BINS = 4 * RADIX
REGIONS = 4  # with fewer, `Limits.regions` leaves no room for bins


@dataclass(frozen=True)
class Counted:
    """What one reading of a scope tells about its windows.

    Attributes:
        counts: (T, ranks, BINS), how many magnitudes each bin holds.
        least: (T, ranks, BINS), the least pattern of each bin.
        most: (T, ranks, BINS), its largest.
        above: (T, ranks), how many lie above the window.
        equal: (batches, T, ranks), how many are equal to the likeliest.
    """

    counts: Array
    least: Array
    most: Array
    above: Array
    equal: Array


def find_in_bins(scope: Scope, ranks: Sequence[int]) -> list[Kth] | None:
    """Return what answers KthMagnitude; None where the guess fails, for float64, and where NaN may occur."""
    wanted = [k for k in ranks if k > 0]
    job, runs = scope.job, runs_of(scope)
    if not wanted or runs < 2 or job.allow_nonfinite or job.compute_dtype != "float32" or job.limits.regions < REGIONS:
        return None
    sample = sample_magnitudes(scope, runs)
    if sample.shape[1] < 2:
        return None
    first, likeliest, last = (bound.view(np.uint32) for bound in windows_of(sample, [k / scope.size for k in wanted]))
    found = _count(scope, first, likeliest, last)
    left = np.array(wanted) - found.above  # how many are to be taken from the window
    from_top = found.counts[..., ::-1].cumsum(-1)
    if (left < 1).any() or (left > from_top[..., -1]).any():
        return None
    place = (from_top >= left[..., None]).argmax(-1)[..., None]
    value, other, here = (
        np.take_along_axis(table, BINS - 1 - place, -1)[..., 0] for table in (found.least, found.most, found.counts)
    )
    if (value != other).any():
        return None
    left -= np.take_along_axis(from_top, place, -1)[..., 0] - here
    is_noted = ((value == likeliest) | (left == here)).all()
    cuts = locate(
        scope, magnitudes(scope), value, left, np.where(value == likeliest, found.equal, 0) if is_noted else here[None]
    )
    values = value.view(np.float32).astype(np.float64)
    answers = [Kth(values[:, r, None], cuts[:, r, None]) for r in range(len(wanted))]
    return [answers.pop(0) if k > 0 else nothing(scope.vectors) for k in ranks]


def _count(scope: Scope, first: Array, likeliest: Array, last: Array) -> Counted:
    """Read the scope once and count the windows, whose bit patterns are given, (T, ranks) each."""
    counter = np.uint32 if scope.size < 2**32 else np.int64
    widths = np.array([int(n).bit_length() for n in (last - first).flat]).reshape(first.shape)
    shifts = np.maximum(widths - (BINS - 1).bit_length(), 0).astype(np.uint32)
    shape = (*first.shape, BINS)
    held: dict[Worker, tuple[Array, Array, Array]] = {}

    def run(worker: Worker, batch: list[Piece]) -> Array:
        if worker not in held:
            held[worker] = np.zeros(shape, counter), np.full(shape, 2**32 - 1, np.uint32), np.zeros(shape, np.uint32)
        seen = np.zeros((*first.shape, 4), np.int64)
        for _, _, others in scope.stream.each_tile(worker, batch):
            bits = others.view(np.uint32)
            for at in np.ndindex(first.shape):
                bounds = first[at], likeliest[at], last[at], shifts[at]
                compiled.count_bins(bits[at[0]], *bounds, seen[at], *(table[at] for table in held[worker]))
        return seen

    seen = np.stack(list(scope.each(run)))  # (batches, T, ranks, 4)
    parts = tuple(held.values())
    counts: Array = np.sum(np.stack([part[0] for part in parts]), axis=0, dtype=np.int64)
    least: Array = np.stack([part[1] for part in parts]).min(0)
    most: Array = np.stack([part[2] for part in parts]).max(0)
    total = seen.sum(0)
    for at in np.ndindex(first.shape):
        named = {int(bound[at]): total[(*at, i)] for i, bound in enumerate((first, likeliest, last))}
        for pattern, count in named.items():
            place = (*at, (pattern - int(first[at])) >> int(shifts[at]))
            if count:
                counts[place] += count
                least[place], most[place] = min(least[place], pattern), max(most[place], pattern)
    return Counted(counts, least, most, total[..., 3], seen[..., 1])
