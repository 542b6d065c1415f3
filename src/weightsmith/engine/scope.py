"""What one reduction runs over: tensors in order, read batch by batch and seen tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.engine.stream import Job, Piece, Stream, Work, Worker
from weightsmith.method import Tile
from weightsmith.tensor.coding import stored_bytes


@dataclass(frozen=True)
class Scope:
    """Works in order, cut in batches.

    Attributes:
        stream: Reads them.
        in_order: Runs a function of (worker, item) over items: by all threads, or by the one that is in a thread already.
        threads: How many threads that is.
        batches: What is read at a time, in order.
        offsets: Where each work begins in the whole, by name.
        size: Elements in all.
        report: Called with the input bytes of each batch that was read.
    """

    stream: Stream
    in_order: Callable[[Iterable[Any], Callable[[Worker, Any], Any]], Iterable[Any]]
    threads: int
    batches: tuple[list[Piece], ...]
    offsets: dict[str, int]
    size: int
    report: Callable[[int], None]

    @property
    def job(self) -> Job:
        """What all tiles share."""
        return self.stream.job

    @property
    def vectors(self) -> int:
        """How many inputs there are beside the base."""
        return len(self.batches[0][0].work.inputs) - self.job.chosen.has_base

    def position(self, piece: Piece) -> int:
        """Return the index, in the scope, of the first element of a piece."""
        return self.offsets[piece.work.name] + piece.start

    def where(self, piece: Piece) -> Tile:
        """Return the tile, without statistics, that a piece is."""
        work = piece.work
        return Tile(
            work.name,
            work.shape,
            piece.start,
            self.position(piece),
            work.layer,
            self.job.layers,
            None,
            self.job.precision,
        )

    def each(self, function: Callable[[Worker, list[Piece]], Any]) -> Generator[Any, None, None]:
        """Yield function(worker, batch) of all batches, in order, and report each."""
        for batch, found in zip(self.batches, self.in_order(self.batches, function), strict=True):
            yield found
            self.report(_input_bytes(batch))


def make_scope(stream: Stream, works: Sequence[Work], report: Callable[[int], None], worker: Worker | None) -> Scope:
    """Return the scope of works; with a worker, its thread does it all."""
    offsets, size = {}, 0
    for work in works:
        offsets[work.name] = size
        size += work.size
    batches = tuple(stream.batches(works))
    if worker is None:
        return Scope(stream, stream.in_order, stream.job.limits.threads, batches, offsets, size, report)
    return Scope(stream, lambda items, call: (call(worker, x) for x in items), 1, batches, offsets, size, report)


def _input_bytes(batch: Sequence[Piece]) -> int:
    """Return the stored bytes that merged pieces read from all inputs."""
    return sum((p.stop - p.start) * sum(stored_bytes(e.dtype) for e in p.work.inputs) for p in batch)
