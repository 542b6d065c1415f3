"""From a plan to output bytes: statistics first, then chunk by chunk, computed by all threads and digested in file order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from weightsmith.checkpoint.masks import Bytes, read_mask, where_masked
from weightsmith.checkpoint.read import Files
from weightsmith.checkpoint.write import Output, Shard
from weightsmith.engine.reductions import is_reduced_first, reduce, reduce_each
from weightsmith.engine.stream import Piece, Stream, Work, Worker
from weightsmith.engine.whole import input_bytes, matrix_bytes
from weightsmith.plan import Plan
from weightsmith.tensor.coding import stored_bytes


def reduce_all(plan: Plan, stream: Stream, report: Callable[[int], None]) -> dict[str, tuple[Any, int]]:
    """Return, by tensor name, the statistics and the tensor's position in their scope.

    Tensors whose statistics are formed in memory, tile by tile, are not in it.
    """
    works = [w for w in plan.merged if is_reduced_first(plan.method, w, stream.tile)]
    if not works:
        return {}
    if plan.method.reduction_scope(works[0].parameters or {}) == "tensor":
        return {name: (statistics, 0) for name, statistics in reduce_each(stream, works, report).items()}
    statistics = reduce(stream, works, report)
    ends = accumulate(w.size for w in works)
    return {w.name: (statistics, end - w.size) for w, end in zip(works, ends, strict=True)}


def produce(
    plan: Plan,
    stream: Stream,
    shards: Sequence[Shard],
    found: Mapping[str, tuple[Any, int]],
    output: Output,
    report: Callable[[int], None],
) -> None:
    """Compute every output byte; threads fill chunks, this one writes and digests them in file order."""
    works = {w.name: w for w in plan.works}
    limits, wide = plan.job.limits, plan.job.compute_dtype == "float64"
    held = max(limits.chunk_bytes, 8 * stream.tile)
    buffers = [np.empty(held, np.uint8) for _ in range(limits.window + 1)]

    def compute(worker: Worker, chunk: _Chunk) -> tuple[_Chunk, np.ndarray[Any, Any]]:
        # Only a whole matrix is larger than a chunk.
        buffer = buffers.pop() if chunk.nbytes <= held else np.empty(chunk.nbytes, np.uint8)
        place = 0
        for piece in chunk.pieces:
            if piece.work.parameters is None:
                stop = place + piece.stop - piece.start
                worker.copy(piece, buffer[place:stop])
                place = stop
                continue
            width = stored_bytes(piece.work.dtype)
            statistics, position = found.get(piece.work.name, (None, 0))
            for tile in stream.tiles(piece):
                values = worker.compute(tile, statistics, position + tile.start)
                stop = place + values.size * width
                part = buffer[place:stop]
                worker.store(tile.work, tile.start, values, part)
                if tile.work.is_masked:
                    part[:] = keep_outside(worker.files, tile.work, tile.start, tile.stop, part)
                place = stop
        return chunk, buffer

    def claim(chunk: _Chunk) -> tuple[int, int]:
        merged = [p.work for p in chunk.pieces if p.work.parameters is not None]
        most = max((matrix_bytes(plan.method, work, wide) for work in merged), default=0)
        return most, chunk.nbytes if chunk.nbytes > held else 0

    chunks = _chunks(shards, works, limits.chunk_bytes, stream)
    with closing(stream.in_order(chunks, compute, claim)) as computed:
        for chunk, buffer in computed:
            output.append(chunk.shard, buffer[: chunk.nbytes].data)
            if len(buffer) == held:
                buffers.append(buffer)
            report(chunk.input_bytes)


def keep_outside(files: Files, work: Work, start: int, stop: int, merged: Bytes) -> Bytes:
    """Return the merged bytes of elements start .. stop, with the first input's stored ones where a mask is not set."""
    if not work.is_masked:
        return merged
    kept = np.empty((stop - start) * stored_bytes(work.dtype), np.uint8)
    files.entry_into(work.inputs[0], start * stored_bytes(work.dtype), kept.data)
    return where_masked(read_mask(files, work.mask, start, stop), merged.view(np.uint8), kept)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Pieces whose bytes lie side by side in one shard."""

    shard: int
    nbytes: int
    input_bytes: int
    pieces: tuple[Piece, ...]


def _chunks(shards: Sequence[Shard], works: Mapping[str, Work], chunk_bytes: int, stream: Stream) -> Iterator[_Chunk]:
    for index, shard in enumerate(shards):
        held: list[Piece] = []
        nbytes = read = 0
        for slot in shard.slots:
            for piece, size in _pieces(works[slot.name], chunk_bytes, stream):
                if held and nbytes + size > chunk_bytes:
                    yield _Chunk(index, nbytes, read, tuple(held))
                    held, nbytes, read = [], 0, 0
                held.append(piece)
                nbytes += size
                elements = piece.stop - piece.start
                merged = piece.work.parameters is not None  # of a copied one, elements are bytes
                read += elements * input_bytes(stream.job.chosen, piece.work) // piece.work.size if merged else elements
        if held:
            yield _Chunk(index, nbytes, read, tuple(held))


def _pieces(work: Work, chunk_bytes: int, stream: Stream) -> Iterator[tuple[Piece, int]]:
    """Cut a work into pieces of at most a chunk, at tile boundaries; give each with its output bytes."""
    if work.parameters is None:
        for start in range(0, work.inputs[0].nbytes, chunk_bytes):
            stop = min(start + chunk_bytes, work.inputs[0].nbytes)
            yield Piece(work, start, stop), stop - start
        return
    width = stored_bytes(work.dtype)
    step = stream.step(work)
    step *= max(1, chunk_bytes // (step * width))
    for start in range(0, work.size, step):
        stop = min(start + step, work.size)
        yield Piece(work, start, stop), (stop - start) * width
