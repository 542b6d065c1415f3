"""The engine: reads tensors tile by tile, answers a method's reductions, runs its elementwise pass.

A chunk is a run of output bytes; threads compute chunks, each through tiles that fit in cache, and hand them on in order.
Nothing here depends on how many threads there are or where tiles end: sums are blocked (`tensor.arrays.BLOCK`), counts
are whole numbers, random masks go by position.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from weightsmith.budget import RADIX, Limits
from weightsmith.checkpoint.entry import Entry
from weightsmith.checkpoint.read import Files
from weightsmith.device import Device
from weightsmith.errors import ArgumentError, CheckpointError, NonFiniteError, shown
from weightsmith.method import KthMagnitude, Method, Reduction, Tile, answer_all, exact_sums
from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import PAD, Array
from weightsmith.tensor.coding import decode, encode, stored_bytes
from weightsmith.tensor.lowrank import add_low_rank
from weightsmith.tensor.select import Kth

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
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    inputs: tuple[Entry, ...]
    layer: int | None = None
    parameters: dict[str, Any] | None = None
    reason: str = ""

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
    """

    method: Method | None
    layers: int
    compute_dtype: str
    limits: Limits
    device: Device
    allow_nonfinite: bool = False

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
        self._raw = np.empty(tile * 8, np.uint8)
        self._values = np.empty(inputs * tile, job.compute_dtype)
        self._factors: tuple[Entry | None, Any, Any] = (None, None, None)
        self.counts: dict[tuple[int, ...], Any] = {}
        self.device = job.device.for_thread()

    def load(self, work: Work, start: int, stop: int) -> tuple[Array, Array]:
        """Return (base, others) for elements start .. stop: (n,) and (T, n), valid until the next load.

        The base is None, and `others` are all inputs, where the method has no base or there is no method.
        """
        count, size = len(work.inputs), stop - start
        values = self._values[: count * size].reshape(count, size)
        for row, entry in zip(values, work.inputs, strict=True):
            self.read(entry, start, stop, row)
        method = self.job.method
        if method is None or not method.has_base:
            return None, values
        if "task_vectors" in method.inputs:
            np.subtract(values[1:], values[0], out=values[1:])
        return values[0], values[1:]

    def read(self, entry: Entry, start: int, stop: int, out: Array) -> None:
        """Read elements start .. stop of one stored tensor as numbers into out, (stop - start,)."""
        width = stored_bytes(entry.dtype)
        raw = self._raw[: (stop - start) * width]
        self.files.pread_into(entry.file, entry.offset + start * width, raw.data)
        finite = decode(raw, entry.dtype, out)
        if entry.low_rank is not None:
            left, right = self._low_rank(entry)
            add_low_rank(out, left, right, entry.low_rank.scale, start)
            finite = finite and compiled.is_finite(out)
        if not finite and not self.job.allow_nonfinite:
            first = int(np.argmin(np.isfinite(out)))
            raise NonFiniteError(
                f"{entry.file}: tensor '{shown(entry.name)}'",
                expected="finite numbers",
                got=f"{out[first]} at flat index {start + first}, {int((~np.isfinite(out)).sum())} of the"
                f" {stop - start} elements from {start}",
                do="Repair the input, leave the tensor out of the merge with --copy, or pass --allow-nonfinite",
            )

    def compute(self, piece: Piece, statistics: Any, position: int) -> Array:
        """Return the merged numbers of a piece no larger than a tile, (n,)."""
        work, job = piece.work, self.job
        base, others = self.load(work, piece.start, piece.stop)
        where = Tile(work.name, work.shape, piece.start, position, work.layer, job.layers, statistics)
        method = job.chosen
        run = method.whole if statistics is None else method.apply
        return self.device.run(lambda b, o: run(b, o, work.parameters or {}, where), base, others)

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
        entry = piece.work.inputs[0]
        self.files.pread_into(entry.file, entry.offset + piece.start, out.data)

    def _low_rank(self, entry: Entry) -> tuple[Array, Array]:
        """Return the factors (rows, rank) and (rank, columns) in float32; the last tensor's are kept."""
        if self._factors[0] is not entry and entry.low_rank is not None:
            down, up = (self._whole(e) for e in (entry.low_rank.down, entry.low_rank.up))
            down, up = down.reshape(down.shape[0], -1), up.reshape(up.shape[0], -1)
            left, right = (down.T, up.T) if entry.low_rank.transposed else (up, down)
            self._factors = (entry, np.ascontiguousarray(left), np.ascontiguousarray(right))
        return self._factors[1], self._factors[2]

    def _whole(self, entry: Entry) -> Array:
        raw = np.empty(entry.nbytes, np.uint8)
        self.files.pread_into(entry.file, entry.offset, raw.data)
        out = np.empty(entry.size, np.float32)
        if not decode(raw, entry.dtype, out):
            raise NonFiniteError(
                f"{entry.file}: tensor '{shown(entry.name)}'",
                expected="finite numbers",
                got="NaN or infinity",
            )
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

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.files.close()

    def _worker(self) -> Worker:
        if not hasattr(self._local, "worker"):
            self._local.worker = Worker(self.job, self._inputs, self.tile)
            self._workers.append(self._local.worker)
        return self._local.worker  # type: ignore[no-any-return]

    def in_order(self, items: Iterable[T], function: Callable[[Worker, T], U]) -> Iterator[U]:
        """Yield function(worker, item) for each item, in order, computed by all threads, a window ahead."""
        waiting: deque[Future[U]] = deque()

        def call(item: T) -> U:
            if self._stop.is_set():
                raise CheckpointError("stopped")
            return function(self._worker(), item)

        try:
            for item in items:
                waiting.append(self._pool.submit(call, item))
                if len(waiting) >= self.job.limits.window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def step(self, work: Work) -> int:
        """Return how many elements of a work are computed at a time: a tile, or whole rows where the scope is rows."""
        if self.job.chosen.reduction_scope(work.parameters or {}) != "row":
            return self.tile
        row = work.shape[-1] if work.shape else 1
        return max(1, self.tile // row) * row

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
            for part, base, others in self._each_tile(worker, batch):
                work = part.work
                where = Tile(work.name, work.shape, part.start, part.start, work.layer, self.job.layers)
                found[work.name][1].append(function(base, others, where))
            return list(found.values())

        for results in self.in_order(self._batches(works), run):
            yield from results

    def reduce(self, works: Sequence[Work], report: Callable[[int], None]) -> Any:
        """Answer the method's reductions over works as one scope; return what `prepare` returns."""
        offsets, total = {}, 0
        for work in works:
            offsets[work.name] = total
            total += work.size
        batches = list(self._batches(works))
        parameters = works[0].parameters or {}

        def answer(asked: Reduction) -> Any:
            if isinstance(asked, KthMagnitude):
                return self._kth(batches, offsets, total, asked.ranks(total), report)
            return self._sums(batches, offsets, asked.of, report)

        return answer_all(self.job.chosen.statistics(parameters), answer)

    def _batches(self, works: Sequence[Work]) -> Iterator[list[Piece]]:
        """Group pieces of about a chunk each, in order."""
        limit = max(self.tile, self.job.limits.chunk_bytes // 4 // self.tile * self.tile)
        batch: list[Piece] = []
        held = 0
        for work in works:
            for start in range(0, work.size, limit):
                piece = Piece(work, start, min(start + limit, work.size))
                if batch and held + piece.stop - piece.start > limit:
                    yield batch
                    batch, held = [], 0
                batch.append(piece)
                held += piece.stop - piece.start
        if batch:
            yield batch

    def _each_tile(self, worker: Worker, batch: Sequence[Piece]) -> Iterator[tuple[Piece, Array, Array]]:
        for piece in batch:
            for start in range(piece.start, piece.stop, self.tile):
                part = Piece(piece.work, start, min(start + self.tile, piece.stop))
                yield part, *worker.load(part.work, part.start, part.stop)

    def _sums(
        self,
        batches: Sequence[list[Piece]],
        offsets: dict[str, int],
        of: Callable[[Array, Array, Tile], Array],
        report: Callable[[int], None],
    ) -> Any:
        def run(worker: Worker, batch: list[Piece]) -> tuple[Array, int]:
            parts = []
            for part, base, others in self._each_tile(worker, batch):
                work = part.work
                position = offsets[work.name] + part.start
                where = Tile(work.name, work.shape, part.start, position, work.layer, self.job.layers)
                parts.append(of(base, others, where))
            return np.concatenate(parts), _stored(batch)

        found = []
        for partial, done in self.in_order(batches, run):
            found.append(partial)
            report(done)
        return exact_sums(found)

    def _kth(
        self,
        batches: Sequence[list[Piece]],
        offsets: dict[str, int],
        total: int,
        ranks: Sequence[int],
        report: Callable[[int], None],
    ) -> list[Kth]:
        """Find exact k-th magnitudes by counting 16-bit digits, high to low; then where the last of the k lies."""
        vectors = len(batches[0][0].work.inputs) - self.job.chosen.has_base
        wide = self.job.compute_dtype == "float64"
        bits, shifts = (np.uint64, (48, 32, 16, 0)) if wide else (np.uint32, (16, 0))
        asked = [k for k in ranks if k > 0]
        mask = bits(np.iinfo(bits).max >> 1)
        prefixes = np.zeros((vectors, len(asked)), bits)
        left = np.tile(np.array(asked, np.int64), (vectors, 1))
        counter = np.uint32 if total < 2**32 else np.int64
        for shift in shifts:
            one = shift == shifts[0]  # all ranks share the counts of the first digit
            regions = self.job.limits.regions if shift == 0 else 1
            span = -(-len(batches) // regions)
            shape = (regions, vectors, 1 if one else len(asked), RADIX)

            def run(
                worker: Worker,
                item: tuple[int, list[Piece]],
                shape: Any = shape,
                shift: int = shift,
                span: int = span,
            ) -> int:
                index, batch = item
                counts = worker.counts.get(shape)
                if counts is None:
                    counts = worker.counts[shape] = np.zeros((*shape[:3], RADIX + PAD), counter)
                for _, _, others in self._each_tile(worker, batch):
                    part = prefixes[:, : shape[2]]
                    compiled.count_digits(others.view(bits), mask, bits(shift), part, counts[index // span])
                return _stored(batch)

            for done in self.in_order(enumerate(batches), run):
                report(done)
            counts = sum(w.counts.pop(shape)[..., :RADIX].astype(np.int64) for w in self._workers if shape in w.counts)
            whole = np.broadcast_to(counts.sum(0), (vectors, len(asked), RADIX))
            from_top = whole[..., ::-1].cumsum(-1)
            digit = RADIX - 1 - (from_top >= left[..., None]).argmax(-1)
            left -= np.take_along_axis(from_top, RADIX - 1 - digit[..., None], -1)[..., 0]
            equal = np.take_along_axis(whole, digit[..., None], -1)[..., 0]
            left += equal
            prefixes = (prefixes << bits(16)) | digit.astype(bits)
        values = prefixes.view(np.float64 if wide else np.float32).astype(np.float64)
        per_region = np.take_along_axis(np.broadcast_to(counts, (regions, *whole.shape)), digit[None, ..., None], -1)[
            ..., 0
        ]
        cut = self._cuts(batches, offsets, total, values, left, equal, per_region, span)
        found, taken = [], 0
        for k in ranks:
            if k == 0:
                found.append(Kth(np.full((vectors, 1), np.inf), np.zeros((vectors, 1), np.int64)))
            else:
                found.append(Kth(values[:, taken : taken + 1], cut[:, taken : taken + 1]))
                taken += 1
        return found

    def _cuts(
        self,
        batches: Sequence[list[Piece]],
        offsets: dict[str, int],
        total: int,
        values: Array,
        left: Array,
        equal: Array,
        per_region: Array,
        span: int,
    ) -> Array:
        """Return, for each vector and rank, the index after the `left`-th entry equal to the value."""
        cut = np.full(values.shape, total, np.int64)
        open_ = left < equal
        before = per_region.cumsum(0) - per_region
        for region in np.unique(((per_region.cumsum(0) < left).sum(0))[open_]):
            inside = open_ & ((per_region.cumsum(0) < left).sum(0) == region)
            wanted = left - before[region]

            def run(worker: Worker, batch: list[Piece], inside: Array = inside) -> Array:
                counts = np.zeros(values.shape, np.int64)
                for _, _, others in self._each_tile(worker, batch):
                    for t, r in np.argwhere(inside):
                        counts[t, r] += np.count_nonzero(np.abs(others[t]) == values[t, r])
                return counts

            seen = np.zeros(values.shape, np.int64)
            part = batches[region * span : (region + 1) * span]
            for batch, counts in zip(part, self.in_order(part, run), strict=True):
                for t, r in np.argwhere(inside & (seen < wanted) & (seen + counts >= wanted)):
                    cut[t, r] = self._find(batch, offsets, int(t), values[t, r], int((wanted - seen)[t, r]))
                seen += counts
        return cut

    def _find(self, batch: list[Piece], offsets: dict[str, int], t: int, value: float, nth: int) -> int:
        """Return the scope index after the nth entry of vector t that equals value, within a batch."""
        worker = Worker(self.job, self._inputs, self.tile)
        for part, _, others in self._each_tile(worker, batch):
            found = np.flatnonzero(np.abs(others[t]) == value)
            if len(found) >= nth:
                worker.files.close()
                return int(offsets[part.work.name] + part.start + found[nth - 1] + 1)
            nth -= len(found)
        raise CheckpointError("an input changed while it was read", do="Run again when nothing writes to it")


def _stored(batch: Sequence[Piece]) -> int:
    """Return the input bytes that a batch of merged pieces reads."""
    return sum((p.stop - p.start) * sum(stored_bytes(e.dtype) for e in p.work.inputs) for p in batch)
