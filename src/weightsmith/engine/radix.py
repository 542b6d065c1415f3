"""Exact k-th values of a scope by counting 16-bit digits, high to low: any size, little memory, two passes (four if wide)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from weightsmith.budget import RADIX
from weightsmith.engine.scope import Scope
from weightsmith.engine.stream import Piece, Worker
from weightsmith.errors import CheckpointError
from weightsmith.method import KthLargest, Tile
from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import PAD, Array
from weightsmith.tensor.select import Kth, ordered, unordered


@dataclass(frozen=True)
class Keys:
    """The values that are ranked, as unsigned whole numbers in their order.

    Attributes:
        of: Gets (base, others, tile), returns keys (vectors, n).
        mask: The bits of a key that count.
        values: Turns keys into the values, float64.
        vectors: How many vectors are ranked side by side.
    """

    of: Callable[[Array, Array, Tile], Array]
    mask: Any
    values: Callable[[Array], Array]
    vectors: int


def magnitudes(scope: Scope) -> Keys:
    """Return the keys of the inputs' magnitudes: non-negative floating-point numbers are in the order of their bits."""
    dtype = np.dtype(scope.job.compute_dtype)
    bits = np.dtype(f"u{dtype.itemsize}")
    mask = bits.type(np.iinfo(bits).max >> 1)
    return Keys(
        lambda base, others, tile: others.view(bits),
        mask,
        lambda keys: keys.view(dtype).astype(np.float64),
        scope.vectors,
    )


def host_values(asked: KthLargest, base: Array, others: Array, tile: Tile) -> Array:
    """Return the derived values of a tile, numpy."""
    found = asked.of(base, others, tile)
    return found if isinstance(found, np.ndarray) else found.cpu().numpy()


def derived(scope: Scope, asked: KthLargest) -> Keys:
    """Return the keys of derived values, whose number and dtype the first tile tells."""

    with scope.stream.worker() as worker:
        piece, base, others = next(scope.stream.each_tile(worker, scope.batches[0]))
        probe = host_values(asked, base, others, scope.where(piece))
    bits = np.dtype(f"u{probe.dtype.itemsize}")
    return Keys(
        lambda base, others, tile: ordered(host_values(asked, base, others, tile)),
        bits.type(np.iinfo(bits).max),
        lambda keys: unordered(keys).astype(np.float64),
        len(probe),
    )


def search(scope: Scope, keys: Keys, all_ranks: list[int], located: bool = True) -> list[Kth]:
    """Count 16-bit digits of the keys, high to low, each time among those that share the digits found so far.

    The last count is kept apart by regions of the scope, so that only one region has to be read again to find where the
    last of the k lies; none where that is not asked for (`located`).
    """
    bits, vectors = type(keys.mask), keys.vectors
    ranks = [k for k in all_ranks if k > 0]
    prefixes = np.zeros((vectors, len(ranks)), bits)
    left = np.tile(np.array(ranks, np.int64), (vectors, 1))  # how many are still to be found among equal prefixes
    shifts = range(8 * prefixes.itemsize - 16, -1, -16)
    for shift in shifts:
        first, last = shift == shifts[0], shift == shifts[-1]
        shared = prefixes[:, :1] if first else prefixes  # at first all ranks share their counts
        regions = min(scope.job.limits.regions, len(scope.batches)) if last else 1
        counts = _count(scope, keys, shared, bits(shift), regions)
        counts = np.broadcast_to(counts, (len(counts), vectors, len(ranks), RADIX))
        from_top = counts.sum(0)[..., ::-1].cumsum(-1)
        place = (from_top >= left[..., None]).argmax(-1)[..., None]
        digit = RADIX - 1 - place
        equal = np.take_along_axis(counts, digit[None], -1)[..., 0]  # (regions, vectors, ranks)
        left -= np.take_along_axis(from_top, place, -1)[..., 0] - equal.sum(0)
        prefixes = (prefixes << bits(16)) | digit[..., 0].astype(bits)
    cuts = locate(scope, keys, prefixes, left, equal) if located else np.zeros_like(left)
    columns = iter(zip(keys.values(prefixes).T[..., None], cuts.T[..., None], strict=True))
    return [Kth(*next(columns)) if k > 0 else nothing(vectors) for k in all_ranks]


def nothing(vectors: int) -> Kth:
    """Return what answers rank 0: nothing is among the largest none."""
    return Kth(np.full((vectors, 1), np.inf), np.zeros((vectors, 1), np.int64))


def _count(scope: Scope, keys: Keys, prefixes: Array, shift: Any, regions: int) -> Array:
    """Count the digit at `shift` of entries whose higher digits are the prefix: (regions, vectors, ranks, RADIX), int64."""
    counter = np.uint32 if scope.size < 2**32 else np.int64
    span = _span(scope, regions)
    region_of = {id(batch): index // span for index, batch in enumerate(scope.batches)}
    held: dict[Worker, Array] = {}

    def run(worker: Worker, batch: list[Piece]) -> None:
        if worker not in held:
            held[worker] = np.zeros((regions, *prefixes.shape, RADIX + PAD), counter)
        counts = held[worker][region_of[id(batch)]]
        for piece, base, others in scope.stream.each_tile(worker, batch):
            compiled.count_digits(keys.of(base, others, scope.where(piece)), keys.mask, shift, prefixes, counts)

    for _ in scope.each(run):
        pass
    total = np.zeros((regions, *prefixes.shape, RADIX), np.int64)
    for counts in held.values():
        total += counts[..., :RADIX]
    return total


def _span(scope: Scope, regions: int) -> int:
    """Return how many batches a region holds."""
    return -(-len(scope.batches) // regions)


def locate(scope: Scope, keys: Keys, found: Array, left: Array, equal: Array) -> Array:
    """Return, for each vector and rank, the scope index after the `left`-th entry whose key is the one found.

    found, left: (vectors, ranks); equal: (regions, vectors, ranks), how many such entries each region has.
    """
    cuts = np.full(found.shape, scope.size, np.int64)
    is_open = left < equal.sum(0)  # else all of them are taken
    region_of = (equal.cumsum(0) < left).sum(0)
    span = _span(scope, len(equal))
    for region in np.unique(region_of[is_open]):
        inside = np.argwhere(is_open & (region_of == region))
        wanted = left - equal[:region].sum(0)

        def run(worker: Worker, batch: list[Piece], inside: Array = inside) -> list[tuple[Piece, Array]]:
            seen = []
            for piece, base, others in scope.stream.each_tile(worker, batch):
                given = keys.of(base, others, scope.where(piece))
                counts = np.zeros(found.shape, np.int64)
                for t, r in inside:
                    counts[t, r] = np.count_nonzero((given[t] & keys.mask) == found[t, r])
                seen.append((piece, counts))
            return seen

        before = np.zeros(found.shape, np.int64)
        parts = chain.from_iterable(scope.in_order(scope.batches[region * span : (region + 1) * span], run))
        for piece, counts in parts:
            for t, r in inside:
                if before[t, r] < wanted[t, r] <= before[t, r] + counts[t, r]:
                    cuts[t, r] = _find(scope, keys, piece, t, found[t, r], wanted[t, r] - before[t, r])
            before += counts
    return cuts


def _find(scope: Scope, keys: Keys, piece: Piece, vector: int, key: Any, nth: int) -> int:
    """Return the scope index after the nth entry of a vector whose key is this one, within a tile."""
    with scope.stream.worker() as worker:
        given = keys.of(*worker.load(piece.work, piece.start, piece.stop), scope.where(piece))
        found = np.flatnonzero((given[vector] & keys.mask) == key)
    if len(found) < nth:
        raise CheckpointError("an input changed while it was read", do="Run again when nothing writes to it")
    return int(scope.position(piece) + found[nth - 1] + 1)
