"""A method's reductions, answered in streaming passes: exact k-th magnitudes and exact sums over any number of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from weightsmith.budget import RADIX
from weightsmith.errors import CheckpointError
from weightsmith.method import KthMagnitude, Method, Reduction, Sums, Tile, answer_all, exact_sums
from weightsmith.stream import Piece, Stream, Work, Worker, input_bytes
from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import PAD, Array
from weightsmith.tensor.select import Kth


@dataclass(frozen=True)
class _Scope:
    """What one reduction runs over: works in order, cut in batches, and where each begins in the whole.

    `in_order` runs a function of (worker, item) over items: by all threads, or by the one that is in a thread already.
    """

    stream: Stream
    in_order: Callable[[Iterable[Any], Callable[[Worker, Any], Any]], Iterable[Any]]
    batches: tuple[list[Piece], ...]
    offsets: dict[str, int]
    size: int
    report: Callable[[int], None]


def is_reduced_first(method: Method, work: Work, tile: int) -> bool:
    """Tell whether a work's statistics take passes of their own; else they are formed in memory, tile by tile."""
    scope = method.reduction_scope(work.parameters or {})
    return scope == "model" or (scope == "tensor" and work.size > tile)


def reduce_each(stream: Stream, works: Sequence[Work], report: Callable[[int], None]) -> dict[str, Any]:
    """Answer the method's reductions over each work as a scope of its own; return tensor name to statistics.

    Large tensors are read by all threads together, the others by one thread each, largest first.
    """
    share = sum(w.size for w in works) // (2 * stream.job.limits.threads)
    found = {w.name: reduce(stream, [w], report) for w in works if w.size > share}

    def alone(worker: Worker, work: Work) -> tuple[Any, int]:
        done: list[int] = []
        return reduce(stream, [work], done.append, worker), sum(done)

    rest = sorted((w for w in works if w.size <= share), key=lambda w: -w.size)
    for work, (statistics, done) in zip(rest, stream.in_order(rest, alone), strict=True):
        found[work.name] = statistics
        report(done)
    return found


def reduce(stream: Stream, works: Sequence[Work], report: Callable[[int], None], worker: Worker | None = None) -> Any:
    """Answer the method's reductions over works as one scope; return what its `prepare` returns.

    `report` is called with the input bytes of each batch that was read. With a worker, its thread does it all.
    """
    offsets, size = {}, 0
    for work in works:
        offsets[work.name] = size
        size += work.size
    in_order = stream.in_order if worker is None else lambda items, function: (function(worker, x) for x in items)
    scope = _Scope(stream, in_order, tuple(stream.batches(works)), offsets, size, report)

    def answer(asked: Reduction) -> Any:
        return _sums(scope, asked) if isinstance(asked, Sums) else _kth_magnitude(scope, asked)

    return answer_all(stream.job.chosen.statistics(works[0].parameters or {}), answer)


def _sums(scope: _Scope, asked: Sums) -> Array:
    job = scope.stream.job

    def run(worker: Worker, batch: list[Piece]) -> Array:
        parts = []
        for part, base, others in scope.stream.each_tile(worker, batch):
            work = part.work
            position = scope.offsets[work.name] + part.start
            where = Tile(work.name, work.shape, part.start, position, work.layer, job.layers)
            parts.append(asked.of(base, others, where))
        return np.concatenate(parts)

    found = []
    for batch, partial in zip(scope.batches, scope.in_order(scope.batches, run), strict=True):
        found.append(partial)
        scope.report(input_bytes(batch))
    return exact_sums(found)


def _kth_magnitude(scope: _Scope, asked: KthMagnitude) -> list[Kth]:
    """Count 16-bit digits of the magnitudes' bits, high to low, each time among those that share the digits found so far.

    Non-negative floating-point numbers are in the order of their bits. The last count is kept apart by regions of the
    scope, so that only one region has to be read again to find where the last of the k lies.
    """
    job = scope.stream.job
    vectors = len(scope.batches[0][0].work.inputs) - job.chosen.has_base
    bits, shifts = (np.uint64, (48, 32, 16, 0)) if job.compute_dtype == "float64" else (np.uint32, (16, 0))
    all_ranks = list(asked.ranks(scope.size))
    ranks = [k for k in all_ranks if k > 0]
    prefixes = np.zeros((vectors, len(ranks)), bits)
    left = np.tile(np.array(ranks, np.int64), (vectors, 1))  # how many are still to be found among equal prefixes
    for shift in shifts:
        first, last = shift == shifts[0], shift == shifts[-1]
        shared = prefixes[:, :1] if first else prefixes  # at first all ranks share their counts
        counts = _count(scope, shared, bits(shift), min(job.limits.regions, len(scope.batches)) if last else 1)
        counts = np.broadcast_to(counts, (len(counts), vectors, len(ranks), RADIX))
        from_top = counts.sum(0)[..., ::-1].cumsum(-1)
        place = (from_top >= left[..., None]).argmax(-1)[..., None]
        digit = RADIX - 1 - place
        equal = np.take_along_axis(counts, digit[None], -1)[..., 0]  # (regions, vectors, ranks)
        left -= np.take_along_axis(from_top, place, -1)[..., 0] - equal.sum(0)
        prefixes = (prefixes << bits(16)) | digit[..., 0].astype(bits)
    values = prefixes.view(job.compute_dtype).astype(np.float64)
    cuts = _cuts(scope, values, left, equal)
    columns = iter(zip(values.T[..., None], cuts.T[..., None], strict=True))
    nothing = Kth(np.full((vectors, 1), np.inf), np.zeros((vectors, 1), np.int64))
    return [Kth(*next(columns)) if k > 0 else nothing for k in all_ranks]


def _count(scope: _Scope, prefixes: Array, shift: Any, regions: int) -> Array:
    """Count the digit at `shift` of entries whose higher digits are the prefix: (regions, vectors, ranks, RADIX), int64."""
    bits = prefixes.dtype.type
    mask = bits(np.iinfo(bits).max >> 1)
    counter = np.uint32 if scope.size < 2**32 else np.int64
    span = _span(scope, regions)
    held: dict[Worker, Array] = {}

    def run(worker: Worker, item: tuple[int, list[Piece]]) -> int:
        index, batch = item
        if worker not in held:
            held[worker] = np.zeros((regions, *prefixes.shape, RADIX + PAD), counter)
        for _, _, others in scope.stream.each_tile(worker, batch):
            compiled.count_digits(others.view(bits), mask, shift, prefixes, held[worker][index // span])
        return input_bytes(batch)

    for done in scope.in_order(enumerate(scope.batches), run):
        scope.report(done)
    total = np.zeros((regions, *prefixes.shape, RADIX), np.int64)
    for counts in held.values():
        total += counts[..., :RADIX]
    return total


def _span(scope: _Scope, regions: int) -> int:
    """Return how many batches a region holds."""
    return -(-len(scope.batches) // regions)


def _cuts(scope: _Scope, values: Array, left: Array, equal: Array) -> Array:
    """Return, for each vector and rank, the scope index after the `left`-th entry whose magnitude is the value.

    values, left: (vectors, ranks); equal: (regions, vectors, ranks), how many such entries each region has.
    """
    cuts = np.full(values.shape, scope.size, np.int64)
    is_open = left < equal.sum(0)  # else all of them are taken
    region_of = (equal.cumsum(0) < left).sum(0)
    span = _span(scope, len(equal))
    for region in np.unique(region_of[is_open]):
        inside = np.argwhere(is_open & (region_of == region))
        wanted = left - equal[:region].sum(0)

        def run(worker: Worker, batch: list[Piece], inside: Array = inside) -> list[tuple[Piece, Array]]:
            found = []
            for tile, _, others in scope.stream.each_tile(worker, batch):
                counts = np.zeros(values.shape, np.int64)
                for t, r in inside:
                    counts[t, r] = np.count_nonzero(np.abs(others[t]) == values[t, r])
                found.append((tile, counts))
            return found

        seen = np.zeros(values.shape, np.int64)
        tiles = chain.from_iterable(scope.in_order(scope.batches[region * span : (region + 1) * span], run))
        for tile, counts in tiles:
            for t, r in inside:
                if seen[t, r] < wanted[t, r] <= seen[t, r] + counts[t, r]:
                    cuts[t, r] = _find(scope, tile, t, values[t, r], wanted[t, r] - seen[t, r])
            seen += counts
    return cuts


def _find(scope: _Scope, tile: Piece, vector: int, value: float, nth: int) -> int:
    """Return the scope index after the nth entry of a vector whose magnitude is value, within a tile."""
    with scope.stream.worker() as worker:
        _, others = worker.load(tile.work, tile.start, tile.stop)
        found = np.flatnonzero(np.abs(others[vector]) == value)
    if len(found) < nth:
        raise CheckpointError("an input changed while it was read", do="Run again when nothing writes to it")
    return int(scope.offsets[tile.work.name] + tile.start + found[nth - 1] + 1)
