"""Whole tensors, for what cannot be computed tile by tile: read as numbers or as stored words, and stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from weightsmith.checkpoint.entry import Entry
from weightsmith.engine.stream import Piece, Work, Worker
from weightsmith.errors import NonFiniteError, shown
from weightsmith.matrices import Given, as_matrix
from weightsmith.method import Method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import stored_bytes


def numbers(worker: Worker, tile: int, entry: Entry) -> Array:
    """Return a whole tensor as numbers, in the job's compute dtype."""
    out = np.empty(entry.size, worker.job.compute_dtype)
    for start in range(0, entry.size, tile):
        stop = min(start + tile, entry.size)
        worker.read(entry, start, stop, out[start:stop])
    return out.reshape(entry.shape)


def check_finite(values: Array, name: str, do: str) -> None:
    """Refuse a matrix that is about to be decomposed; NonFiniteError where it holds NaN or infinity, let pass or not."""
    if not np.isfinite(values).all():
        got = f"{int((~np.isfinite(values)).sum())} that are NaN or infinite"
        raise NonFiniteError(
            f"tensor '{shown(name)}'", expected="finite numbers, which a decomposition needs", got=got, do=do
        )


def encoded(worker: Worker, entry: Entry, values: Array) -> Array:
    """Return numbers as the tensor's stored dtype, flat bytes."""
    out = np.empty(values.size * stored_bytes(entry.dtype), np.uint8)
    worker.store(Work(entry.name, values.shape, entry.dtype, (entry,)), 0, values.reshape(-1), out)
    return out


def raw_words(worker: Worker, entry: Entry) -> Array:
    """Return a whole tensor as stored: words of its dtype's width, in its shape."""
    raw = np.empty(entry.nbytes, np.uint8)
    worker.copy(Piece(Work(entry.name, entry.shape, entry.dtype, (entry,)), 0, entry.nbytes), raw)
    return raw.view(f"<u{stored_bytes(entry.dtype)}").reshape(entry.shape)


def given(method: Method, work: Work) -> Given:
    """Return what headers tell of a work that the method takes as matrices."""
    base = work.inputs[0] if method.has_base and "task_vectors" in method.inputs else None
    models = work.inputs[method.has_base :]
    return Given(*as_matrix(work.shape), tuple(_rank(base, e) for e in models), work.parameters or {})


def input_bytes(method: Method, work: Work) -> int:
    """Return the stored bytes that are read to compute a merged work, its statistics apart.

    The factors of a matrix's only adapter are read once, those of several anew whenever they are asked for.
    """
    if not method.takes_matrix(work.shape):
        return sum(work.size * stored_bytes(e.dtype) for e in work.inputs)
    what = given(method, work)
    need = method.need(what)
    models = work.inputs[method.has_base :]
    total = sum(work.size * stored_bytes(e.dtype) for e in work.inputs[: method.has_base])
    alone = sum(e.low_rank is not None for e in models) == 1
    for entry, rank, loads in zip(models, what.ranks, need.loads, strict=True):
        total += loads * work.size * stored_bytes(entry.dtype)
        if entry.low_rank is not None:
            uses = loads + (need.factors if rank is not None else 0)
            total += (min(uses, 1) if alone else uses) * (entry.low_rank.down.nbytes + entry.low_rank.up.nbytes)
    return total


def matrix_bytes(method: Method, work: Work, wide: bool) -> int:
    """Return what a thread holds for a tensor taken as a matrix: base, one input, the result, its bytes, and the method's.

    wide: Whether it computes in float64. 0 for a tensor that is not taken as a matrix.
    """
    if not method.takes_matrix(work.shape):
        return 0
    need = method.need(given(method, work))
    arrays = 3 if any(need.loads) else 2
    return work.size * (arrays * (8 if wide else 4) + 8) + round(8 * need.held * work.size)


def _rank(base: Entry | None, entry: Entry) -> int | None:
    """Return the rank of the factors of a task vector, as `Worker` gives them; None where there are none."""
    if base is None or replace(entry, low_rank=None) != base:
        return None
    return 0 if entry.low_rank is None else entry.low_rank.down.shape[0]
