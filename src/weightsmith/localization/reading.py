"""What a localization reads, and tile by tile: base, task vectors, the merged vector and the tasks' masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from weightsmith.budget import Demand, choose_limits, machine_limit, usable_threads
from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.masks import read_mask
from weightsmith.engine.stream import Job, Piece, Stream, Work, Worker
from weightsmith.engine.whole import numbers
from weightsmith.errors import MismatchError, raise_all, shown
from weightsmith.localize import tall_masks
from weightsmith.localize.localizer import Localizer
from weightsmith.matrices import Matrices, as_matrix
from weightsmith.method import Method, Tile
from weightsmith.plan import Options, Plan
from weightsmith.produce import reduce_all
from weightsmith.tensor.arrays import Array

Statistics = Mapping[str, tuple[Any, int]]
Report = Callable[[int], None]


class Loaded(NamedTuple):
    """One tile: which, the base (n,), the task vectors (T, n), the merged vector (n,), T masks (n,)."""

    piece: Piece
    base: Array
    vectors: Array
    merged: Array
    masks: Sequence[Array]


@dataclass(frozen=True)
class Reading:
    """What is read, and how the merged vector and the masks come of it.

    Attributes:
        plan: Of the merge whose vector is masked; its works are the tensors looked at.
        job: How tiles are cut.
        method: What merges.
        found: What the method had to know first, by tensor.
        merged: Entries of a merged model, by tensor, in place of the method.
        lambdas: Of the TALL-masks, one per task; None for other masks.
        localizer: What makes other masks, with its parameters, and what it had to know first, by tensor.
        statistics: Entries by tensor, one per task, for localizers that take them.
        given: Stored masks by tensor, one entry or None per task, in place of all that.
        passes: How often the models were read before the first tile.
    """

    plan: Plan
    job: Job
    method: Method
    found: Statistics = field(default_factory=dict)
    merged: Mapping[str, Entry] | None = None
    lambdas: tuple[float, ...] | None = None
    localizer: tuple[Localizer, Mapping[str, Any], Statistics] | None = None
    statistics: Mapping[str, Sequence[Entry]] = field(default_factory=dict)
    given: Mapping[str, Sequence[Entry | None]] | None = None
    passes: int = 0

    @property
    def works(self) -> list[Work]:
        """The tensors that are looked at."""
        return self.plan.merged

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(self.plan.inputs) - 1

    @property
    def is_whole(self) -> bool:
        """Whether the masks come of whole matrices, and so have to be written before they are read tile by tile."""
        return self.given is None and self.localizer is not None and self.localizer[0].reach == "matrix"

    def stream(self) -> Stream:
        """Return threads that read; to be entered."""
        return Stream(self.job, len(self.plan.inputs))

    def tiles(self, stream: Stream, worker: Worker, batch: Sequence[Piece]) -> Iterator[Loaded]:
        """Load a batch tile by tile; the arrays are valid until the next."""
        for piece, base, others in stream.each_tile(worker, batch):
            vectors = others if "task_vectors" in self.method.inputs else others - base
            merged = self._merged(worker, piece, base, others)
            yield Loaded(piece, base, vectors, merged, self._masks(worker, piece, base, vectors, merged))

    def _where(self, piece: Piece, found: Statistics) -> Tile:
        work, (statistics, position) = piece.work, found.get(piece.work.name, (None, 0))
        place = position + piece.start
        return Tile(work.name, work.shape, piece.start, place, work.layer, self.job.layers, statistics)

    def _merged(self, worker: Worker, piece: Piece, base: Array, others: Array) -> Array:
        """Return the merged vector of a tile: what the method adds to the base."""
        if self.merged is not None:
            values = np.empty_like(base)
            worker.read(self.merged[piece.work.name], piece.start, piece.stop, values)
            return values - base
        where = self._where(piece, self.found)
        run = self.method.whole if where.statistics is None else self.method.apply
        if "task_vectors" in self.method.inputs:
            return run(np.zeros_like(base), others, piece.work.parameters or {}, where)
        return run(base, others, piece.work.parameters or {}, where) - base

    def _masks(self, worker: Worker, piece: Piece, base: Array, vectors: Array, merged: Array) -> Any:
        if self.given is not None:
            return [read_mask(worker.files, e, piece.start, piece.stop) for e in self.given[piece.work.name]]
        if self.localizer is None:
            return tall_masks(vectors, merged, lambdas=self.lambdas or ())
        localizer, parameters, found = self.localizer
        where = self._where(piece, found)
        run = localizer.whole if where.statistics is None else localizer.apply
        if localizer.has_base:
            return run(base, vectors, parameters, where)
        rows = np.empty_like(vectors)
        for row, entry in zip(rows, self.statistics[piece.work.name], strict=True):
            worker.read(entry, piece.start, piece.stop, row)
        return run(None, rows, parameters, where)

    def whole_masks(self, worker: Worker, tile: int, work: Work) -> Any:
        """Return the masks of one whole tensor, (T, n), by a localizer that takes matrices."""
        if self.localizer is None or not self.localizer[0].takes_matrix(work.shape):
            return np.zeros((self.tasks, work.size), bool)
        localizer, parameters, _ = self.localizer
        shape = as_matrix(work.shape)

        def load(index: int) -> Array:
            return numbers(worker, tile, work.inputs[index + 1]).reshape(shape)

        where = Tile(work.name, work.shape, layer=work.layer, layers=self.job.layers)
        return localizer.apply_matrix(None, Matrices(self.tasks, shape, load), parameters, where)


def make_job(plan: Plan, extra: int, ranks: bool, options: Options, matrix_bytes: int = 0) -> Job:
    """Return the job that reads a plan's inputs and `extra` checkpoints more, and may rank task vectors."""
    works = plan.merged
    wide = any(e.dtype == "F64" for w in works for e in w.inputs)
    lows = [e.low_rank for w in works for e in w.inputs if e.low_rank is not None]
    demand = Demand(
        inputs=2 * len(plan.inputs) + extra,
        entries=sum(len(c.tensors) for c in plan.inputs) * (1 + extra // len(plan.inputs)),
        itemsize=8 if wide else 4,
        ranks=int(ranks),
        ranked=max((w.size for w in works), default=0) if ranks else 0,
        factor_bytes=max((4 * (p.down.size + p.up.size) for p in lows), default=0),
        matrix_bytes=matrix_bytes,
    )
    memory = min(options.memory_bytes, machine_limit() or options.memory_bytes)
    return replace(plan.job, limits=choose_limits(demand, memory, options.threads or usable_threads()))


def reduced(
    plan: Plan, job: Job, method: Method, works: Sequence[Work], parameters: Mapping[str, Any], report: Report
) -> Statistics:
    """Return what a method has to know first of these works, by tensor, as `produce.reduce_all` does."""
    job = replace(job, method=method)
    asked = tuple(replace(w, parameters=dict(parameters)) for w in works)
    with Stream(job, len(plan.inputs)) as stream:
        return reduce_all(replace(plan, method=method, works=asked, job=job), stream, report)


def matched(checkpoint: Checkpoint, works: Sequence[Work], what: str) -> dict[str, Entry]:
    """Return the entry of each work in another checkpoint; all that is missing or of another shape is told together.

    Raises:
        MismatchError: Something is.
    """
    found, faults = {}, []
    for work in works:
        entry = checkpoint.tensors.get(work.name)
        if entry is None:
            faults.append(f"tensor '{shown(work.name)}' is missing")
        elif entry.shape != work.shape:
            faults.append(f"tensor '{shown(work.name)}' has shape {entry.shape}, in the base {work.shape}")
        elif entry.dtype not in ARITHMETIC_DTYPES:
            faults.append(f"tensor '{shown(work.name)}' is {entry.dtype}, which is not computed with")
        else:
            found[work.name] = entry
    if faults:
        raise_all(faults, MismatchError, f"localize: {what} '{shown(checkpoint.reference)}' does not fit the base")
    return found
