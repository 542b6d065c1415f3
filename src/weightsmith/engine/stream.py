"""The engine: threads that read tensors tile by tile as numbers, compute with them, and store them as bytes.

A chunk is a run of output bytes; threads compute chunks, each through tiles that fit in cache, and hand them on in order.
Nothing here depends on how many threads there are or where tiles end: sums are blocked (`tensor.arrays.BLOCK`), counts
are whole numbers, random masks go by position.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from weightsmith.budget import Limits
from weightsmith.checkpoint.entry import Entry, LowRank
from weightsmith.checkpoint.read import Files
from weightsmith.device import Device
from weightsmith.engine.turns import in_order
from weightsmith.errors import ArgumentError, CheckpointError, NonFiniteError, shown
from weightsmith.matrices import Matrices, as_matrix
from weightsmith.method import Method, Tile
from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import decode, decode_rows, encode, stored_bytes
from weightsmith.tensor.lowrank import add_low_rank
from weightsmith.tensor.rounding import rounded

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Work:
    """One output tensor: merged from all inputs, or copied from the first.

    Attributes:
        name: Output name.
        shape: Output shape.
        dtype: Stored dtype of the output, a safetensors name.
        inputs: The base's entry first, where the method has one; then the models', in order.
        layer: Layer number, None outside the layers.
        parameters: The method's checked parameters for this tensor; None to copy the first input's bytes.
        reason: Why it is copied.
        is_masked: Whether it is merged inside `mask`, BOOL, alone (None: nowhere); elsewhere the first input's bytes stay.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    inputs: tuple[Entry, ...]
    layer: int | None = None
    parameters: dict[str, Any] | None = None
    reason: str = ""
    is_masked: bool = False
    mask: Entry | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.inputs[0].size


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements start .. stop of one work; for a copied one, bytes."""

    work: Work
    start: int
    stop: int


@dataclass(frozen=True)
class Job:
    """What all tiles of one run share.

    Attributes:
        method: The method; None to read the inputs as they are.
        layers: How many layers the model has.
        compute_dtype: "float32", or "float64" where any merged input is F64.
        limits: How the work is cut.
        device: Where the method's formulas run.
        allow_nonfinite: Let NaN and infinity pass.
        precision: To what inputs and every step of the formulas are rounded; "float32" adds no rounding.
    """

    method: Method | None
    layers: int
    compute_dtype: str
    limits: Limits
    device: Device
    allow_nonfinite: bool = False
    precision: str = "float32"

    @property
    def chosen(self) -> Method:
        """The method; ArgumentError where there is none."""
        if self.method is None:
            raise ArgumentError("this job has no method")
        return self.method


class Worker:
    """One thread's files and buffers: loads tiles as numbers, computes them, stores them as bytes."""

    def __init__(self, job: Job, inputs: int, tile: int) -> None:
        self.job = job
        self.files = Files()
        self._tile = tile
        self._raw = np.empty(tile * max(8, 2 * inputs), np.uint8)
        self._values = np.empty(inputs * tile, job.compute_dtype)
        self._factors: deque[tuple[LowRank, Array, Array]] = deque(maxlen=inputs)  # of the last tensor's adapters
        self.device = job.device.for_thread()

    @cached_property
    def aside(self) -> Array:
        """Room for what `windows.py` keeps aside, bytes."""
        return np.empty(self.job.limits.aside_bytes, np.uint8)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()

    def load(self, work: Work, start: int, stop: int) -> tuple[Array, Array]:
        """Return (base, others) for elements start .. stop: (n,) and (T, n), valid until the next load.

        The base is None, and `others` are all inputs, where the method has no base or there is no method.
        """
        count, size = len(work.inputs), stop - start
        values = self._values[: count * size].reshape(count, size)
        raw = self._read_rows(work, start, stop)
        if raw is None or not decode_rows(raw, values, self._subtracts):
            for row, entry in zip(values, work.inputs, strict=True):
                self.read(entry, start, stop, row)
            if self._subtracts:
                with np.errstate(over="ignore", invalid="ignore"):  # refused where the result is stored
                    np.subtract(values[1:], values[0], out=values[1:])
        has_base = self.job.method is not None and self.job.method.has_base
        return (values[0], values[1:]) if has_base else (None, values)

    @property
    def _subtracts(self) -> bool:
        return self.job.method is not None and "task_vectors" in self.job.method.inputs

    def _read_rows(self, work: Work, start: int, stop: int) -> Array | None:
        """Read all inputs' stored numbers, (k, stop - start) uint16, where all are plain BF16; None otherwise."""
        if (
            self.job.precision == "float16"
            or self._values.dtype != np.float32
            or any(e.dtype != "BF16" or e.low_rank is not None for e in work.inputs)
        ):
            return None
        raw = self._raw[: 2 * len(work.inputs) * (stop - start)].view("<u2").reshape(len(work.inputs), -1)
        for row, entry in zip(raw, work.inputs, strict=True):
            self.files.entry_into(entry, 2 * start, row.data.cast("B"))
        return raw

    def read(self, entry: Entry, start: int, stop: int, out: Array, *, as_matrix: bool = False) -> None:
        """Read elements start .. stop of one stored tensor as numbers into out, (stop - start,); a matrix's must be finite."""
        width = stored_bytes(entry.dtype)
        raw = self._raw[: (stop - start) * width]
        self.files.entry_into(entry, start * width, raw.data)
        finite = decode(raw, entry.dtype, out)
        if entry.low_rank is not None:
            left, right = self._low_rank(entry.low_rank)
            add_low_rank(out, left, right, entry.low_rank.scale, start)
            finite = finite and compiled.is_finite(out)
        if self.job.precision != "float32":
            out[:] = rounded(out, self.job.precision)
        if not finite and (as_matrix or not self.job.allow_nonfinite):
            first = int(np.argmin(np.isfinite(out)))
            raise NonFiniteError(
                f"{entry.file}: tensor '{shown(entry.name)}'",
                expected="finite numbers",
                got=f"{out[first]} at flat index {start + first}, {int((~np.isfinite(out)).sum())} of the"
                f" {stop - start} elements from {start}",
                do="Repair the input, or leave the tensor out of the merge with --copy"
                + ("" if as_matrix else ", or pass --allow-nonfinite"),
            )

    def compute(self, piece: Piece, statistics: Any, position: int) -> Array:
        """Return the merged numbers of a piece, (n,): of at most a tile, or a whole tensor taken as a matrix."""
        work, job = piece.work, self.job
        where = Tile(work.name, work.shape, piece.start, position, work.layer, job.layers, statistics, job.precision)
        method = job.chosen
        if method.takes_matrix(work.shape):
            return self._compute_matrix(work, where)
        base, others = self.load(work, piece.start, piece.stop)
        run = method.whole if statistics is None else method.apply
        return self.device.run(lambda b, o: run(b, o, work.parameters or {}, where), base, others)

    def _compute_matrix(self, work: Work, where: Tile) -> Array:
        """Return the merged numbers of a whole tensor; models are read when the method asks for them."""
        method, shape, device = self.job.chosen, as_matrix(work.shape), self.device
        base_entry = work.inputs[0] if method.has_base else None
        models = work.inputs[1:] if method.has_base else work.inputs
        base = None if base_entry is None else self._read_matrix(base_entry, shape)

        def load(index: int) -> Array:
            values = self._read_matrix(models[index], shape)
            if base is not None and self._subtracts:
                with np.errstate(over="ignore", invalid="ignore"):  # refused where the result is stored
                    np.subtract(values, base, out=values)
            return device.move(values)

        def factors(index: int) -> tuple[Array, Array] | None:
            if base_entry is None or not self._subtracts or replace(models[index], low_rank=None) != base_entry:
                return None
            low_rank = models[index].low_rank
            if low_rank is None:
                empty = np.zeros((shape[0], 0), np.float32), np.zeros((0, shape[1]), np.float32)
                return device.move(empty[0]), device.move(empty[1])
            left, right = self._low_rank(low_rank)
            return device.move(left * np.float32(low_rank.scale)), device.move(right)

        matrices = Matrices(len(models), shape, load, factors)
        with device.active():
            moved = None if base is None else device.move(base)
            return device.back(method.apply_matrix(moved, matrices, work.parameters or {}, where))

    def _read_matrix(self, entry: Entry, shape: tuple[int, int]) -> Array:
        """Read a whole tensor as numbers, (rows, columns)."""
        values = np.empty(shape[0] * shape[1], self.job.compute_dtype)
        for start in range(0, len(values), self._tile):
            part = values[start : start + self._tile]
            self.read(entry, start, start + len(part), part, as_matrix=True)
        return values.reshape(shape)

    def store(self, work: Work, start: int, values: Array, out: Array) -> None:
        """Write numbers as the work's stored dtype into out, bytes."""
        if not encode(values, work.dtype, out) and not self.job.allow_nonfinite:
            finite = np.isfinite(values)
            index = int(np.argmin(finite)) if not finite.all() else int(np.argmax(np.abs(values)))
            raise NonFiniteError(
                f"result of tensor '{shown(work.name)}'",
                expected=f"numbers that fit {work.dtype}",
                got=f"{values[index]} at flat index {start + index}",
                do="Choose a wider --dtype or smaller coefficients, or pass --allow-nonfinite",
            )

    def copy(self, piece: Piece, out: Array) -> None:
        """Copy a piece's stored bytes."""
        self.files.entry_into(piece.work.inputs[0], piece.start, out.data)

    def _low_rank(self, given: LowRank) -> tuple[Array, Array]:
        """Return the factors (rows, rank) and (rank, columns) in float32; those of the last tensor's inputs are kept."""
        for kept, left, right in self._factors:
            if kept is given:
                return left, right
        down, up = (self._whole(e) for e in (given.down, given.up))
        down, up = down.reshape(down.shape[0], -1), up.reshape(up.shape[0], -1)
        left, right = map(np.ascontiguousarray, (down.T, up.T) if given.transposed else (up, down))
        self._factors.append((given, left, right))
        return left, right

    def _whole(self, entry: Entry) -> Array:
        raw = np.empty(entry.nbytes, np.uint8)
        self.files.pread_into(entry.file, entry.offset, raw.data)
        out = np.empty(entry.size, np.float32)
        if not decode(raw, entry.dtype, out):
            where = f"{entry.file}: tensor '{shown(entry.name)}'"
            raise NonFiniteError(where, expected="finite numbers", got="NaN or infinity")
        return out.reshape(entry.shape)


class Stream:
    """A pool of workers over one job. Use as a context manager."""

    def __init__(self, job: Job, inputs: int, tile: int | None = None) -> None:
        self.job = job
        self.tile = tile or job.limits.tile
        self._inputs = inputs
        self._local = threading.local()
        self._stop = threading.Event()
        self._workers: list[Worker] = []
        self._pool = ThreadPoolExecutor(job.limits.threads, thread_name_prefix="weightsmith")
        self._blas: Any = None

    def __enter__(self) -> Stream:
        if self.job.method is not None and self.job.method.reach == "matrix":
            # Each thread has a matrix of its own, so that the bytes do not depend on how many threads there are.
            self._blas = threadpool_limits(1, "blas")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        if self._blas is not None:
            self._blas.restore_original_limits()
        for worker in self._workers:
            worker.files.close()

    def worker(self) -> Worker:
        """Return a worker of the caller's own; to be closed."""
        return Worker(self.job, self._inputs, self.tile)

    def _own_worker(self) -> Worker:
        if not hasattr(self._local, "worker"):
            self._local.worker = self.worker()
            self._workers.append(self._local.worker)
        own: Worker = self._local.worker
        return own

    def in_order(
        self,
        items: Iterable[T],
        function: Callable[[Worker, T], U],
        claim: Callable[[T], tuple[int, int]] | None = None,
    ) -> Generator[U, None, None]:
        """Yield function(worker, item) for each item, in order, computed by all threads, a window ahead.

        claim: What an item holds in bytes, where they take turns; see `turns.py`.
        """

        def call(item: T) -> U:
            if self._stop.is_set():
                raise CheckpointError("stopped")
            return function(self._own_worker(), item)

        return in_order(self._pool, items, call, self.job.limits, claim)

    def step(self, work: Work) -> int:
        """Return how many elements of a work are computed at a time: a tile, whole rows, or a whole matrix."""
        method = self.job.chosen
        if method.takes_matrix(work.shape):
            return work.size
        if not method.takes_rows(work.parameters or {}):
            return self.tile
        row = work.shape[-1] if work.shape else 1
        return max(1, self.tile // row) * row

    def held(self, work: Work) -> int:
        """Return how many elements of a work are loaded at a time, other than whole matrices: a tile, or whole rows."""
        method = self.job.method
        return self.tile if method is None or method.takes_matrix(work.shape) else self.step(work)

    def tiles(self, piece: Piece) -> Iterator[Piece]:
        """Cut a piece into tiles."""
        step = self.step(piece.work)
        for start in range(piece.start, piece.stop, step):
            yield Piece(piece.work, start, min(start + step, piece.stop))

    def each(
        self, works: Sequence[Work], function: Callable[[Array, Array, Tile], U]
    ) -> Iterator[tuple[Piece, list[U]]]:
        """Yield, in order, pieces of works with function(base, others, tile) of each of their tiles.

        A tensor may come in several pieces; tiles start at multiples of BLOCK.
        """

        def run(worker: Worker, batch: list[Piece]) -> list[tuple[Piece, list[U]]]:
            found: dict[str, tuple[Piece, list[U]]] = {p.work.name: (p, []) for p in batch}
            for part, base, others in self.each_tile(worker, batch):
                work = part.work
                where = Tile(
                    work.name, work.shape, part.start, part.start, work.layer, self.job.layers, None, self.job.precision
                )
                found[work.name][1].append(function(base, others, where))
            return list(found.values())

        for results in self.in_order(self.batches(works), run):
            yield from results

    def batches(self, works: Sequence[Work]) -> Iterator[list[Piece]]:
        """Group pieces of about a chunk each, in order."""
        batch: list[Piece] = []
        held = 0
        for work in works:
            step = self.held(work)
            limit = max(step, self.job.limits.chunk_bytes // 4 // step * step)
            for start in range(0, work.size, limit):
                piece = Piece(work, start, min(start + limit, work.size))
                if batch and held + piece.stop - piece.start > limit:
                    yield batch
                    batch, held = [], 0
                batch.append(piece)
                held += piece.stop - piece.start
        if batch:
            yield batch

    def each_tile(self, worker: Worker, batch: Sequence[Piece]) -> Iterator[tuple[Piece, Array, Array]]:
        """Load a batch tile by tile: (piece of a tile, base or None, others), valid until the next."""
        for piece in batch:
            step = self.held(piece.work)
            for start in range(piece.start, piece.stop, step):
                part = Piece(piece.work, start, min(start + step, piece.stop))
                yield part, *worker.load(part.work, part.start, part.stop)
