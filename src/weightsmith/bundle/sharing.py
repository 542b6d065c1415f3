"""Writing what all tasks of a bundle share: one vector, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from weightsmith.bundle.planning import Packing
from weightsmith.checkpoint.bundle_write import PieceWriter
from weightsmith.checkpoint.entry import Checkpoint, Entry, Packed, Term
from weightsmith.engine.reductions import is_reduced_first, reduce, reduce_each
from weightsmith.engine.stream import Piece, Stream, Work, Worker
from weightsmith.engine.whole import check_finite, numbers
from weightsmith.errors import NonFiniteError, shown
from weightsmith.matrices import Matrices, as_matrix
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import encode, stored_bytes
from weightsmith.tensor.frames import FRAME
from weightsmith.tensor.int8 import row_scales, to_int8

EXACTLY = "Store it without loss: --exact NAME"  # what a decomposition cannot take
GATHERED = 6  # arrays that an encoding may share of one tensor
Report = Callable[[str, int], None]  # stage, bytes read


@method()
def given_vector(base: Array, task_vectors: Array, *, tile: Tile) -> Array:
    """Return the one task vector that there is: of a model that was merged before."""
    return task_vectors[0]


def vector_key(name: str) -> str:
    """Return what the piece with a tensor's shared vector is called."""
    return f"{name}/vector"


def scales_key(name: str) -> str:
    """Return what the piece with the scales of its rows is called."""
    return f"{name}/scales"


def _longest_key(name: str) -> str:
    return f"{name}/{'x' * 32}"


def write_shared(
    packing: Packing, tasks: Mapping[str, Checkpoint], dtype: str, path: Path, root: Path, report: Report
) -> dict[str, Any]:
    """Write what tasks share of the tensors that are encoded; return the file's record. A vector of zeros is left out.

    Args:
        packing: How tasks are packed.
        tasks: All tasks; or one model that was merged from them, with the encoding's `share` replaced by `given_vector`.
        dtype: Stored dtype of the vector; I8 is for tensors of two axes or more, others are F32 then.
        path: The new file.
        root: From where the record names it.
        report: Called with the bytes that were read.
    """
    encoded = [
        [
            e,
            *(
                c.tensors[e.name]
                for c in tasks.values()
                if e.name in c.tensors and packing.is_encoded(c.tensors[e.name])
            ),
        ]
        for e in packing.base.tensors.values()
    ]
    works = [Work(i[0].name, i[0].shape, "F32", tuple(i), None, _own(packing)) for i in encoded if len(i) > 1]
    keys = (vector_key, scales_key) if packing.encoding.has_vector else (_longest_key,) * GATHERED
    longest = [(k(w.name), max(3, len(w.shape))) for w in works for k in keys]
    with PieceWriter(path, longest) as writer:
        if packing.encoding.gather is not None:
            _write_gathered(packing, works, writer, report)
        else:
            _write_vectors(packing, works, len(tasks), dtype, writer, report)
        return {**writer.finish(root), "dtype": dtype}


def _own(packing: Packing) -> dict[str, Any]:
    share = packing.encoding.share
    return {n: packing.parameters[n] for n in share.parameters} if share is not None else {}


def _write_vectors(
    packing: Packing, works: Sequence[Work], tasks: int, dtype: str, writer: PieceWriter, report: Report
) -> None:
    widest = max((w.shape[-1] for w in works if w.shape), default=0) if dtype == "I8" else 0
    job = packing.job(packing.encoding.share, tasks + 1, widest)
    is_joint = job.chosen.reduction_scope(_own(packing)) == "model"
    places = dict(zip([w.name for w in works], accumulate((w.size for w in works), initial=0), strict=False))
    with Stream(job, tasks + 1) as stream:
        found = _statistics(stream, works, is_joint, report)

        def compute(worker: Worker, piece: Piece) -> tuple[Array, Array | None, bool]:
            work = piece.work
            place = places[work.name] if is_joint else 0
            values = worker.compute(piece, found.get(work.name), place + piece.start)
            if not np.isfinite(values).all():
                raise NonFiniteError(f"tensor '{shown(work.name)}': the shared vector", expected="finite numbers")
            return *_stored(values, work, _dtype_of(work, dtype)), bool(values.any())

        pieces = [p for w in works for p in _pieces(w, stream.tile, _dtype_of(w, dtype))]
        begin, is_zero, scales = 0, True, list[Array]()
        for piece, (raw, own, some) in zip(pieces, stream.in_order(pieces, compute), strict=True):
            work = piece.work
            if piece.start == 0:
                begin, is_zero, scales = writer.nbytes, True, []
            writer.append(raw)
            is_zero = is_zero and not some
            scales += [] if own is None else [own]
            report("share", sum(e.nbytes for e in work.inputs) * (piece.stop - piece.start) // work.size)
            if piece.stop == work.size and is_zero:
                writer.rewind(begin)
            elif piece.stop == work.size:
                writer.close_piece(vector_key(work.name), _dtype_of(work, dtype), work.shape, begin)
                if scales:
                    writer.add(scales_key(work.name), np.concatenate(scales))


def _statistics(stream: Stream, works: Sequence[Work], is_joint: bool, report: Report) -> dict[str, Any]:
    """Return the statistics of the shared vector's method by tensor; of those that are not in it they are formed in memory."""
    if is_joint and works:
        return dict.fromkeys([w.name for w in works], reduce(stream, works, lambda n: report("measure", n)))
    first = [w for w in works if is_reduced_first(stream.job.chosen, w, stream.tile)]
    return reduce_each(stream, first, lambda n: report("measure", n)) if first else {}


def _dtype_of(work: Work, dtype: str) -> str:
    return "F32" if dtype == "I8" and len(work.shape) < 2 else dtype


def _pieces(work: Work, tile: int, dtype: str) -> Iterator[Piece]:
    """Cut a tensor into tiles; of whole rows, where each has a scale."""
    row = work.shape[-1] if dtype == "I8" else 1
    step = max(1, tile // row) * row
    for start in range(0, work.size, step):
        yield Piece(work, start, min(start + step, work.size))


def _stored(values: Array, work: Work, dtype: str) -> tuple[Array, Array | None]:
    """Return values as stored bytes, and the scales of their rows where they have some."""
    if dtype == "I8":
        columns = work.shape[-1]
        scales = row_scales(values.reshape(-1, columns))
        return to_int8(values, scales, columns), scales
    out = np.empty(values.size * stored_bytes(dtype), np.uint8)
    if not encode(values, dtype, out):
        raise NonFiniteError(f"tensor '{shown(work.name)}': the shared vector", expected=f"numbers that fit {dtype}")
    return out, None


def shared_vector(name: str, pieces: Mapping[str, Entry]) -> Entry | None:
    """Return the shared vector of a tensor as an entry that reads as numbers; None where there is none."""
    vector = pieces.get(vector_key(name))
    if vector is None or vector.dtype != "I8":
        return vector
    parts = {"vector": vector, "scales": pieces[scales_key(name)]}
    packed = Packed(None, (Term("dense", parts, {}),))
    return Entry(name, "F32", vector.shape, vector.file, 0, 4 * vector.size, packed=packed)


def _write_gathered(packing: Packing, works: Sequence[Work], writer: PieceWriter, report: Report) -> None:
    """Write other arrays that tasks share of each matrix, in float32."""
    job = packing.job(packing.encoding.packing, 2)
    with Stream(job, 2, FRAME) as stream, threadpool_limits(1, "blas"):

        def make(worker: Worker, work: Work) -> Mapping[str, Array]:
            base = numbers(worker, stream.tile, work.inputs[0])
            shape = as_matrix(work.shape)

            def load(task: int) -> Array:
                found = numbers(worker, stream.tile, work.inputs[1 + task]) - base
                check_finite(found, work.name, EXACTLY)
                return found.reshape(shape)

            return packing.encoding.shared_arrays(Matrices(len(work.inputs) - 1, shape, load), packing.parameters)

        for work, arrays in zip(works, stream.in_order(works, make), strict=True):
            for key, array in arrays.items():
                writer.add(f"{work.name}/{key}", np.asarray(array, np.float32))
            report("share", sum(e.nbytes for e in work.inputs))
