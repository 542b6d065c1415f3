"""Reading a tensor whose rows were re-ordered by token: each run of rows is read where it lies, in any model's file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from weightsmith.checkpoint.entry import MEAN, PADDING, ZERO, Entry, Rows
from weightsmith.tensor.coding import decode, encode, stored_bytes

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Read = Callable[[Entry, int, memoryview], None]  # fill a buffer from a byte of an entry

BLOCK_BYTES = 1 << 20  # rows are converted and summed in blocks of about this many bytes


def gather(entry: Entry, rows: Rows, start: int, target: memoryview, read: Read) -> None:
    """Fill target with the bytes that a re-ordered entry has from byte `start` on; start and end lie between elements."""
    width = entry.nbytes // entry.shape[0]
    out = np.frombuffer(target, np.uint8)
    run = int(np.searchsorted(rows.begins, start // width, "right")) - 1
    place, stop = start, start + len(out)
    while place < stop:
        begin = int(rows.begins[run])
        end = min(stop, width * (int(rows.begins[run + 1]) if run + 1 < len(rows.begins) else entry.shape[0]))
        part, first = int(rows.parts[run]), int(rows.firsts[run])
        piece = out[place - start : end - start]
        if part == ZERO:
            piece[:] = 0
        elif part in (MEAN, PADDING):
            _fill_formed(entry, rows, first if part == MEAN else None, place - begin * width, piece, read)
        else:
            source = rows.sources[part]
            skipped = (place - begin * width) // stored_bytes(entry.dtype)
            _fill_stored(source, first * (source.size // source.shape[0]) + skipped, entry.dtype, piece, read)
        place, run = end, run + 1


def row_blocks(entry: Entry, count: int) -> Iterator[tuple[int, int]]:
    """Cut the first `count` rows into blocks, in whose order their mean is formed."""
    step = max(1, BLOCK_BYTES // max(1, entry.nbytes // entry.shape[0]))
    for begin in range(0, count, step):
        yield begin, min(begin + step, count)


def _fill_stored(source: Entry, first: int, dtype: str, out: Bytes, read: Read) -> None:
    """Read elements of a stored tensor from `first` on, rounded to a dtype where it has another."""
    width = stored_bytes(source.dtype)
    if source.dtype == dtype:
        read(source, first * width, out.data)
        return
    count, step = len(out) // stored_bytes(dtype), BLOCK_BYTES // 8
    for start in range(0, count, step):
        stop = min(start + step, count)
        values = _numbers(source, first + start, first + stop, read)
        encode(values, dtype, out[start * stored_bytes(dtype) : stop * stored_bytes(dtype)])


def _fill_formed(entry: Entry, rows: Rows, mean: int | None, skipped: int, out: Bytes, read: Read) -> None:
    """Write rows that are means, from byte `skipped` of the run on; None for padding."""
    width = entry.nbytes // entry.shape[0]
    place = 0
    while place < len(out):
        row, within = divmod(skipped + place, width)
        raw = _padding(entry, rows, read) if mean is None else _mean(entry, rows, mean + row, read)
        end = min(len(out), place + width - within)
        out[place:end] = np.frombuffer(raw, np.uint8)[within : within + end - place]
        place = end


def _mean(entry: Entry, rows: Rows, place: int, read: Read) -> bytes:
    """Return the mean of the rows that means[place] lists, formed in float64 in their order."""
    length = entry.size // entry.shape[0]
    total = np.zeros(length)
    for part, row in rows.means[place]:
        with np.errstate(invalid="ignore"):
            total += _numbers(rows.sources[part], row * length, (row + 1) * length, read)
    return _encoded(total / len(rows.means[place]), entry.dtype)


def _padding(entry: Entry, rows: Rows, read: Read) -> bytes:
    """Return the mean of the first `real` rows, formed in float64 block by block, once; threads find the same bytes."""
    if not rows.padding:
        width, length = entry.nbytes // entry.shape[0], entry.size // entry.shape[0]
        total = np.zeros(length)
        for begin, end in row_blocks(entry, rows.real):
            raw = np.empty((end - begin) * width, np.uint8)
            gather(entry, rows, begin * width, raw.data, read)
            values = np.empty((end - begin) * length)
            decode(raw, entry.dtype, values)
            with np.errstate(invalid="ignore"):
                total += values.reshape(end - begin, length).sum(0)
        rows.padding.append(_encoded(total / max(1, rows.real), entry.dtype))
    return rows.padding[0]


def _numbers(source: Entry, start: int, stop: int, read: Read) -> np.ndarray[Any, np.dtype[np.float64]]:
    width = stored_bytes(source.dtype)
    raw = np.empty((stop - start) * width, np.uint8)
    read(source, start * width, raw.data)
    values = np.empty(stop - start)
    decode(raw, source.dtype, values)  # NaN and infinity are refused where the tile is read
    return values


def _encoded(values: np.ndarray[Any, np.dtype[np.float64]], dtype: str) -> bytes:
    out = np.empty(len(values) * stored_bytes(dtype), np.uint8)
    encode(values, dtype, out)
    return out.tobytes()
