"""Whole tensors, for what cannot be computed tile by tile: read as numbers or as stored words, and stored."""

from __future__ import annotations

import numpy as np

from weightsmith.checkpoint.entry import Entry
from weightsmith.engine.stream import Piece, Work, Worker
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import stored_bytes


def numbers(worker: Worker, tile: int, entry: Entry) -> Array:
    """Return a whole tensor as numbers, in the job's compute dtype."""
    out = np.empty(entry.size, worker.job.compute_dtype)
    for start in range(0, entry.size, tile):
        stop = min(start + tile, entry.size)
        worker.read(entry, start, stop, out[start:stop])
    return out.reshape(entry.shape)


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
