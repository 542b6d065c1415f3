"""A method's reductions, answered in streaming passes: exact k-th values, majorities and exact sums, over any tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from weightsmith.engine import windows
from weightsmith.engine.bins import find_in_bins
from weightsmith.engine.largest import count_nonzero, find_largest
from weightsmith.engine.radix import derived, magnitudes, search
from weightsmith.engine.scope import Scope, make_scope
from weightsmith.engine.stream import Piece, Stream, Work, Worker
from weightsmith.engine.whole import given
from weightsmith.method import KthLargest, KthMajority, Method, Reduction, Sums, Tile, answer_all, exact_sums
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import Kth, trim
from weightsmith.tensor.sign import majority


def is_reduced_first(method: Method, work: Work, tile: int) -> bool:
    """Tell whether a work's statistics take passes of their own; else they are formed in memory, tile by tile."""
    scope = method.reduction_scope(work.parameters or {})
    if scope == "tensor" and method.takes_matrix(work.shape):
        return method.need(given(method, work)).reduced
    return scope == "model" or (scope == "tensor" and work.size > tile)


def reduce_each(stream: Stream, works: Sequence[Work], report: Callable[[int], None]) -> dict[str, Any]:
    """Answer the method's reductions over each work as a scope of its own; return tensor name to statistics.

    Large tensors are read by all threads together, the others by one thread each, largest first.
    """
    limits = stream.job.limits
    share = sum(w.size for w in works) // (2 * limits.threads)
    itemsize = np.dtype(stream.job.compute_dtype).itemsize
    large = [w for w in works if w.size > share or windows.is_for_all(w.size, itemsize * len(w.inputs), limits)]
    found = {w.name: reduce(stream, [w], report) for w in large}

    def alone(worker: Worker, work: Work) -> tuple[Any, int]:
        done: list[int] = []
        return reduce(stream, [work], done.append, worker), sum(done)

    rest = sorted((w for w in works if w.name not in found), key=lambda w: -w.size)
    for work, (statistics, done) in zip(rest, stream.in_order(rest, alone), strict=True):
        found[work.name] = statistics
        report(done)
    return found


def reduce(stream: Stream, works: Sequence[Work], report: Callable[[int], None], worker: Worker | None = None) -> Any:
    """Answer the method's reductions over works as one scope; return what its `prepare` returns.

    `report` is called with the input bytes of each batch that was read. With a worker, its thread does it all.
    """
    scope = make_scope(stream, works, report, worker)

    def answer(asked: Reduction) -> Any:
        if isinstance(asked, Sums):
            return _sums(scope, asked)
        if isinstance(asked, KthLargest):
            largest = find_largest(scope, asked)
            if largest is not None:
                return largest
            size = count_nonzero(scope, asked) if asked.nonzero else scope.size
            return search(scope, derived(scope, asked), list(asked.ranks(size)), asked.located)
        if isinstance(asked, KthMajority):
            return _kth_majority(scope, asked.rank(scope.size))
        ranks = list(asked.ranks(scope.size))
        found = windows.find(scope, ranks)
        return _kth_magnitude(scope, ranks) if found is None else found[0]

    return answer_all(stream.job.chosen.statistics(works[0].parameters or {}), answer)


def passes_of(asked: Reduction, scope: str | None, size: int, compute_dtype: str) -> int:
    """Return how many times a scope of this size is read for a reduction, where every guess holds."""
    is_guessed = size >= 4 * windows.RUN  # smaller ones tell too little
    if isinstance(asked, Sums | KthLargest) or (is_guessed and scope == "tensor"):
        return 1
    is_wide = compute_dtype == "float64"
    digits = 4 if is_wide else 2  # without a guess a value is found 16 bits at a time
    return (1 if is_guessed and not is_wide else digits) + isinstance(asked, KthMajority)


def ranks_of(asked: Reduction, models: int) -> int:
    """Return how many k-th values a reduction asks for at once, per model beside the base."""
    if isinstance(asked, Sums):
        return 0
    if isinstance(asked, KthMajority):
        return 1
    ranks = len(asked.ranks(10**6))
    if isinstance(asked, KthLargest):
        derived = asked.of(np.zeros(1, np.float32), np.zeros((models, 1), np.float32), Tile(shape=(1,)))
        ranks *= -(-len(derived) // models)
    return ranks


def _kth_magnitude(scope: Scope, ranks: list[int]) -> list[Kth]:
    """Return k-th magnitudes that `windows.py` does not find: of several tensors, or of one that is not like its sample."""
    found = find_in_bins(scope, ranks)
    return search(scope, magnitudes(scope), ranks) if found is None else found


def _kth_majority(scope: Scope, rank: int) -> tuple[Kth, int]:
    found = windows.find(scope, [rank], votes=True)
    if found is not None:
        return found[0][0], found[1]
    (kth,) = _kth_magnitude(scope, [rank])

    def run(worker: Worker, batch: list[Piece]) -> int:
        tiles = scope.stream.each_tile(worker, batch)
        return sum(majority(trim(others, kth, start=scope.position(piece))) for piece, _, others in tiles)

    return kth, sum(scope.each(run))


def _sums(scope: Scope, asked: Sums) -> Array:
    def run(worker: Worker, batch: list[Piece]) -> Array:
        tiles = scope.stream.each_tile(worker, batch)
        return np.concatenate([asked.of(base, others, scope.where(piece)) for piece, base, others in tiles])

    return exact_sums(list(scope.each(run)))
