"""Reading a tensor of a bundle's task: its bytes are formed from the base and what the bundle stores, frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from weightsmith.checkpoint.entry import DTYPE_BITS, Entry, Packed, Term
from weightsmith.errors import CheckpointError, shown
from weightsmith.tensor.affine import rebuilt
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import decode, encode
from weightsmith.tensor.frames import FORMS as FRAMED
from weightsmith.tensor.frames import (
    FRAME,
    add_masked,
    add_rounded,
    add_signs,
    add_sparse,
    add_ternary,
    decode_frame,
)
from weightsmith.tensor.int8 import from_int8
from weightsmith.tensor.lowrank import add_low_rank
from weightsmith.tensor.mixed import from_codes
from weightsmith.tensor.vector import add_scaled

FORMS = (*FRAMED, "dense", "low_rank", "basis")
KEPT_FRAMES = 16
Read = Callable[[Entry, int, memoryview], None]  # fill a buffer from a byte of an entry


def element_bytes(dtype: str) -> int:
    """Return the bytes of one element of any dtype; 1 where several share a byte, so that bytes count as elements."""
    return max(1, DTYPE_BITS[dtype] // 8)


def frame_count(size: int) -> int:
    """Return how many frames a tensor of `size` elements is cut into."""
    return -(-size // FRAME)


class Memo:
    """What one thread keeps of what it read last: where a term's frames end, its factors, frames that were read in part."""

    def __init__(self) -> None:
        self._kept: dict[Term, Any] = {}
        self._frames: dict[tuple[Packed, int], Array] = {}

    def get(self, term: Term, make: Callable[[], Any]) -> Any:
        """Return what belongs to a term, made where it is not kept."""
        if term not in self._kept:
            is_large = term.form in ("low_rank", "basis")
            if is_large or len(self._kept) >= 64:
                self._kept.clear()
            self._kept[term] = make()
        return self._kept[term]

    def frame(self, packed: Packed, number: int) -> Array | None:
        """Return the bytes of a frame, where they are kept."""
        return self._frames.get((packed, number))

    def keep(self, packed: Packed, number: int, raw: Array) -> None:
        """Keep the bytes of a frame, in place of the oldest ones where there are many."""
        if len(self._frames) >= KEPT_FRAMES:
            del self._frames[next(iter(self._frames))]
        self._frames[packed, number] = raw


def rebuild(entry: Entry, packed: Packed, start: int, target: memoryview, read: Read, memo: Memo) -> None:
    """Fill target with the bytes that a packed entry has from byte `start` on; start and end lie between elements.

    Raises:
        CheckpointError: A frame is damaged.
        ResourceError: The disk fails, or the package zstandard is missing.
    """
    width = element_bytes(entry.dtype)
    out = np.frombuffer(target, np.uint8)
    first, last = start // width, (start + len(out)) // width
    for frame in range(first // FRAME, frame_count(last)):
        begin, end = frame * FRAME, min((frame + 1) * FRAME, entry.nbytes // width)
        low, high = max(first, begin), min(last, end)
        piece = out[(low - first) * width : (high - first) * width]
        if high - low == end - begin:
            _fill(entry, packed, begin, end, piece, read, memo)
            continue
        whole = memo.frame(packed, frame)
        if whole is None:
            whole = np.empty((end - begin) * width, np.uint8)
            _fill(entry, packed, begin, end, whole, read, memo)
            memo.keep(packed, frame, whole)
        piece[:] = whole[(low - begin) * width : (high - begin) * width]


def _fill(entry: Entry, packed: Packed, begin: int, end: int, out: Array, read: Read, memo: Memo) -> None:
    """Form the bytes of elements begin .. end, which are one frame."""
    if packed.terms and packed.terms[0].form == "difference":
        _fill_exactly(entry, packed.base, packed.terms[0], begin, end, out, read, memo)
        return
    values = np.empty(end - begin, np.float32)
    if packed.base is None:
        values[:] = 0
    else:
        _read_base(packed.base, entry.dtype, begin, end, values, out, read)
    for term in packed.terms:
        values = _added(values, entry, term, begin, read, memo)
    encode(values, entry.dtype, out)  # infinity is refused where the tile is read


def _read_base(base: Entry, dtype: str, begin: int, end: int, values: Array, spare: Array, read: Read) -> None:
    """Read the base's elements as numbers; `spare` holds its bytes where it has the dtype of the result."""
    width = element_bytes(base.dtype)
    raw = spare if base.dtype == dtype else np.empty((end - begin) * width, np.uint8)
    read(base, begin * width, raw.data)
    decode(raw, base.dtype, values)


def _fill_exactly(
    entry: Entry, base: Entry | None, term: Term, begin: int, end: int, out: Array, read: Read, memo: Memo
) -> None:
    words = out.view(f"<u{element_bytes(entry.dtype)}")
    read_words(base, entry.dtype, begin, end, words, read)
    data, where = _frame(entry, term, begin, read, memo)
    decode_frame("difference", data, term.settings, words, base=words, where=where)


def read_words(base: Entry | None, dtype: str, begin: int, end: int, words: Array, read: Read) -> None:
    """Read stored words, (end - begin,) of the width of `dtype`: rounded where the base has another; zeros without a base."""
    out = words.view(np.uint8)
    if base is None:
        out[:] = 0
    elif base.dtype == dtype:
        read(base, begin * element_bytes(dtype), out.data)
    else:
        values = np.empty(end - begin, np.float64)
        _read_base(base, dtype, begin, end, values, out, read)
        encode(values, dtype, out)


def _added(values: Array, entry: Entry, term: Term, begin: int, read: Read, memo: Memo) -> Array:
    """Return values plus one term; `values` may be changed."""
    scale = float(term.settings.get("scale", 1.0))
    if term.form == "dense":
        return add_scaled(values, dense_values(term, begin, begin + len(values), read), scale)
    if term.form in ("low_rank", "basis"):
        left, right = memo.get(term, lambda: _factors(entry, term, read))
        add_low_rank(values, left, right, scale, begin)
        return values
    data, where = _frame(entry, term, begin, read, memo)
    if term.form == "mask":
        add_masked(values, data, dense_values(term, begin, begin + len(values), read), scale, where)
    elif term.form == "ternary":
        add_ternary(values, data, scale, where)
    elif term.form == "sign":
        add_signs(values, data, np.array([scale], np.float32), where=where)
    elif term.form == "rounded":
        add_rounded(values, data, scale, where)
    else:
        add_sparse(values, data, term.settings, scale, where)
    return values


def dense_values(term: Term, begin: int, end: int, read: Read) -> Array:
    """Return elements begin .. end of a term's part "vector" in float32; of I8 each row has one of "scales"."""
    vector = term.parts["vector"]
    width = element_bytes(vector.dtype)
    values = np.empty(end - begin, np.float32)
    raw = values.view(np.uint8) if vector.dtype == "F32" else np.empty((end - begin) * width, np.uint8)
    read(vector, begin * width, raw.data)
    if vector.dtype == "I8":
        columns = vector.shape[-1] if vector.shape else 1
        from_int8(raw.view(np.int8), _stored(term.parts["scales"], read).view("<f4"), columns, values, begin)
    elif vector.dtype != "F32":
        decode(raw, vector.dtype, values)
    return values


def _factors(entry: Entry, term: Term, read: Read) -> tuple[Array, Array]:
    """Return left (rows, r) and right (r, columns) in float32, from few bits or from a basis where they are stored so."""
    settings = term.settings
    if "bits" in settings:
        codes = [_stored(term.parts[n], read) for n in ("left", "left_scales", "right", "right_scales")]
        how = settings["bits"], settings["widths"], settings["group"]
        left = from_codes(codes[0], codes[1].view("<f2"), entry.shape[0], *how).T
        right = from_codes(codes[2], codes[3].view("<f2"), entry.size // max(1, entry.shape[0]), *how)
    elif term.form == "basis":
        part = {name: _numbers(piece, read) for name, piece in term.parts.items()}
        left = rebuilt(part["mean_left"], part["basis_left"], part["left"])
        right = rebuilt(part["mean_right"], part["basis_right"], part["right"]).T
    else:
        left, right = (_numbers(term.parts[n], read) for n in ("left", "right"))
    return np.ascontiguousarray(left, np.float32), np.ascontiguousarray(right, np.float32)


def _numbers(part: Entry, read: Read) -> Array:
    values = np.empty(part.size, np.float32)
    decode(_stored(part, read), part.dtype, values)
    return values.reshape(part.shape)


def _stored(part: Entry, read: Read) -> Array:
    raw = np.empty(part.nbytes, np.uint8)
    read(part, 0, raw.data)
    return raw


def _frame(entry: Entry, term: Term, begin: int, read: Read, memo: Memo) -> tuple[Array, str]:
    """Return the bytes of the frame that begins at an element, and what messages call it."""
    number = begin // FRAME
    ends, place = memo.get(term, lambda: _ends(entry, term, read))
    low, high = int(ends[number]), int(ends[number + 1])
    data = np.empty(high - low, np.uint8)
    read(term.parts["frames"], low, data.data)
    return data, f"{place}, frame {number}"


def _ends(entry: Entry, term: Term, read: Read) -> tuple[Array, str]:
    """Return where each frame begins in "frames", and the end of the last, checked before any is decoded; and their place."""
    part, frames = term.parts["lengths"], term.parts["frames"]
    place = f"file '{shown(frames.file)}', tensor '{shown(entry.name)}'"
    ends = np.concatenate([[0], np.cumsum(_stored(part, read).view("<u4"), dtype=np.int64)])
    longest = 64 + 9 * FRAME  # no codec takes more
    if ends[-1] != frames.nbytes or any(not 0 < b - a <= longest for a, b in pairwise(ends.tolist())):
        raise CheckpointError(
            f"{place}: the lengths of its frames",
            expected=f"lengths of at most {longest} bytes that add up to {frames.nbytes}",
            got=f"{int(ends[-1])} bytes in all",
            do="The bundle is damaged: pack this task again",
        )
    return ends, place
