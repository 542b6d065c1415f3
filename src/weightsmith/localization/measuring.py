"""The pass that measures: every tile's counts and block sums, added up tensor by tensor, exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from weightsmith.engine.stream import Piece, Stream, Worker
from weightsmith.localization.part import Part, Whole, measured
from weightsmith.localization.reading import Loaded, Reading, Report, Statistics
from weightsmith.tensor.agreement import counted, histogram, pack, shared, signs
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import is_among_largest
from weightsmith.tensor.vector import gram

# Numbers of block sums held per tensor before they are added up; counted from the tensor's start, so no result depends on it.
HELD_SUMS = 1 << 21


class Pairs(NamedTuple):
    """Over all tensors and for each pair of tasks: where both moved, where signs differ; the same once trimmed; each (P,)."""

    both: Whole
    opposed: Whole
    both_trimmed: Whole | None
    opposed_trimmed: Whole | None


def measure(reading: Reading, trimmed: Statistics | None, report: Report) -> tuple[list[Part], Pairs]:
    """Read everything once; return one part per tensor, in order, and the signs of each pair of tasks.

    `trimmed` holds each task vector's k-th magnitude by tensor, where the trimmed vectors are measured too.
    """
    parts = []
    totals: list[Any] = [0, 0, 0, 0]
    with reading.stream() as stream:
        for piece, counts, pairs, sums in _tensors(reading, trimmed, stream, report):
            work = piece.work
            parts.append(measured(work.name, work.shape, work.size, counts, sums))
            totals = [a + b for a, b in zip(totals, pairs, strict=True)]
    both, opposed, both_trimmed, opposed_trimmed = totals
    return parts, Pairs(both, opposed, *((None, None) if trimmed is None else (both_trimmed, opposed_trimmed)))


def _tensors(
    reading: Reading, trimmed: Statistics | None, stream: Stream, report: Report
) -> Iterator[tuple[Piece, Any, Any, Any]]:
    """Yield, tensor by tensor, its last tile, its counts, the counts of its pairs, its sums."""

    def run(worker: Worker, batch: list[Piece]) -> list[tuple[Piece, Any, Any, Array]]:
        return [(x.piece, *_tile(x, trimmed)) for x in reading.tiles(stream, worker, batch)]

    held: list[Array] = []
    folded: list[Array] = []
    counts: Any = None
    pairs: Any = None
    for tiles in stream.in_order(stream.batches(reading.works), run):
        for piece, more, more_pairs, sums in tiles:
            held.append(sums)
            counts = more if counts is None else [a + b for a, b in zip(counts, more, strict=True)]
            pairs = more_pairs if pairs is None else [a + b for a, b in zip(pairs, more_pairs, strict=True)]
            limit = max(1, HELD_SUMS // sums.shape[1])
            while sum(map(len, held)) > limit:
                blocks = np.concatenate(held)
                folded.append(_added(blocks[:limit]))
                held = [blocks[limit:]]
            report(sum((piece.stop - piece.start) * e.nbytes // e.size for e in piece.work.inputs))
            if piece.stop == piece.work.size:
                yield piece, counts, pairs, _added(np.stack([*folded, _added(np.concatenate(held))]))
                held, folded, counts, pairs = [], [], None, None


def _added(blocks: Array) -> Array:
    return blocks[0] if len(blocks) == 1 else np.array([math.fsum(column) for column in blocks.T.tolist()])


def _tile(loaded: Loaded, trimmed: Statistics | None) -> tuple[list[Any], list[Any], Array]:
    """Return counts as `measured` takes them, counts of pairs, and block sums of one tile."""
    piece, base, vectors, merged, masks = loaded
    packed = pack(masks)
    positive, negative = (pack([compare(v, 0) for v in vectors]) for compare in (np.greater, np.less))
    raw = signs(positive, negative)
    unchanged = len(base) - counted(positive | negative)
    counts: list[Any] = [histogram(masks), counted(packed), unchanged, shared(packed), _summed(raw)]
    pairs: list[Any] = [raw.both, raw.opposed, 0, 0]
    if trimmed is not None:
        kth, position = trimmed[piece.work.name]
        keep = pack(is_among_largest(vectors, kth, position + piece.start))
        kept = signs(positive & keep, negative & keep)
        counts.append(_summed(kept))
        pairs[2:] = kept.both, kept.opposed
    return counts, pairs, _sums(base, vectors, merged, masks)


def _summed(found: Any) -> Whole:
    return np.array([found.moved, found.conflicts, found.both.sum(), found.opposed.sum()], np.int64)


def _sums(base: Array, vectors: Array, merged: Array, masks: Sequence[Array]) -> Array:
    """Return block sums (blocks, k): inner products of base, merged and task vectors, then both residuals of each task."""
    missed = [gram((merged - v)[None]) for v in vectors]
    left = [gram((merged * m - v)[None]) for v, m in zip(vectors, masks, strict=True)]
    return np.concatenate([gram(np.concatenate([base[None], merged[None], vectors])), *missed, *left], axis=1)
