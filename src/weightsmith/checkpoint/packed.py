"""Reading a tensor of a bundle's task: its bytes are formed from the base and what the bundle stores, frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count, pairwise
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
    PATCHED,
    add_masked,
    add_rounded,
    add_signs,
    add_sparse,
    add_ternary,
    decode_frame,
    patch,
    patch_frames,
)
from weightsmith.tensor.int8 import from_int8
from weightsmith.tensor.lowrank import add_low_rank
from weightsmith.tensor.mixed import from_codes
from weightsmith.tensor.vector import add_scaled

FORMS = (*FRAMED, "dense", "low_rank", "basis")
RUN_FRAMES = 16  # formed at a time, from one read of the base and one of the frames
Read = Callable[[Entry, int, memoryview], None]  # fill a buffer from a byte of an entry


def element_bytes(dtype: str) -> int:
    """Return the bytes of one element of any dtype; 1 where several share a byte, so that bytes count as elements."""
    return max(1, DTYPE_BITS[dtype] // 8)


def frame_count(size: int) -> int:
    """Return how many frames a tensor of `size` elements is cut into."""
    return -(-size // FRAME)


class Memo:
    """What one thread keeps: of the terms that it read last where their frames end, or their factors; the last frame; room."""

    def __init__(self) -> None:
        self._kept: dict[Term, Any] = {}
        self._last: tuple[Packed | None, int, Array] = (None, 0, np.empty(0, np.uint8))
        self._room: dict[str, Array] = {}

    def get(self, term: Term, make: Callable[[], Any]) -> Any:
        """Return what belongs to a term, made where it is not kept."""
        if term not in self._kept:
            is_large = term.form in ("low_rank", "basis")
            if is_large or len(self._kept) >= 64:
                self._kept.clear()
            self._kept[term] = make()
        return self._kept[term]

    def frame(self, packed: Packed, begin: int, make: Callable[[], Array]) -> Array:
        """Return the bytes of the frame that begins at an element, of which parts are read one after the other."""
        if self._last[0] is not packed or self._last[1] != begin:
            self._last = packed, begin, make()
        return self._last[2]

    def room(self, use: str, count: int) -> Array:
        """Return float32 numbers (count,), at most FRAME, that are valid until the same use asks again."""
        if use not in self._room:
            self._room[use] = np.empty(FRAME, np.float32)
        return self._room[use][:count]


def rebuild(entry: Entry, packed: Packed, start: int, target: memoryview, read: Read, memo: Memo) -> None:
    """Fill target with the bytes that a packed entry has from byte `start` on; start and end lie between elements.

    Raises:
        CheckpointError: A frame is damaged.
        ResourceError: The disk fails, or the package zstandard is missing.
    """
    width = element_bytes(entry.dtype)
    out = np.frombuffer(target, np.uint8)
    total, place = entry.nbytes // width, start // width
    first, stop = place, place + len(out) // width
    while place < stop:
        begin = place - place % FRAME
        end = min(begin + FRAME, total)
        if place == begin and end <= stop:
            end = stop if stop == total else stop - stop % FRAME
            end = min(end, begin + RUN_FRAMES * FRAME)
            _fill(entry, packed, begin, end, out[(begin - first) * width : (end - first) * width], read, memo)
        else:
            whole = memo.frame(packed, begin, partial(_formed, entry, packed, begin, end, read, memo))
            end = min(end, stop)
            out[(place - first) * width : (end - first) * width] = whole[
                (place - begin) * width : (end - begin) * width
            ]
        place = end


def _formed(entry: Entry, packed: Packed, begin: int, end: int, read: Read, memo: Memo) -> Array:
    out = np.empty((end - begin) * element_bytes(entry.dtype), np.uint8)
    _fill(entry, packed, begin, end, out, read, memo)
    return out


def _fill(entry: Entry, packed: Packed, begin: int, end: int, out: Array, read: Read, memo: Memo) -> None:
    """Form the bytes of elements begin .. end, which are whole frames."""
    base, terms = packed.base, packed.terms
    if terms and terms[0].form == "difference":
        _fill_exactly(entry, base, terms[0], begin, end, out, read, memo)
        return
    if base is not None and len(terms) == 1 and terms[0].form in PATCHED and entry.dtype == base.dtype == "BF16":
        _fill_in_place(entry, base, terms[0], begin, end, out, read, memo)
        return
    width = element_bytes(entry.dtype)
    frames = {term: _frames(entry, term, begin, end, read, memo) for term in terms if term.form in FRAMED}
    for number, low in enumerate(range(begin, end, FRAME)):
        high = min(low + FRAME, end)
        piece, values = out[(low - begin) * width : (high - begin) * width], memo.room("values", high - low)
        if base is None:
            values[:] = 0
        else:
            _read_base(base, entry.dtype, low, high, values, piece, read)
        for term in terms:
            values = _added(values, entry, term, low, frames[term][number] if term in frames else None, read, memo)
        encode(values, entry.dtype, piece)  # infinity is refused where the tile is read


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
    for start, (data, where) in zip(count(0, FRAME), _frames(entry, term, begin, end, read, memo), strict=False):
        some = words[start : start + FRAME]
        decode_frame("difference", data, term.settings, some, base=some, where=where)


def _fill_in_place(
    entry: Entry, base: Entry, term: Term, begin: int, end: int, out: Array, read: Read, memo: Memo
) -> None:
    """Read the base's bytes to their place, and add to the numbers there."""
    words, scale = out.view("<u2"), float(term.settings.get("scale", 1.0))
    read(base, 2 * begin, out.data)
    data, ends, name = _frame_bytes(entry, term, begin, end, read, memo)
    number = 0
    while number < len(ends) - 1:
        number += patch_frames(words[number * FRAME :], term.form, data, ends[number:], scale)
        if number == len(ends) - 1:
            break
        low = begin + number * FRAME
        high = min(low + FRAME, end)
        shared = dense_values(term, low, high, read, memo.room("shared", high - low)) if term.form == "mask" else None
        part, frame = words[low - begin : high - begin], data[ends[number] : ends[number + 1]]
        patch(part, term.form, frame, term.settings, scale, shared, name(number))
        number += 1


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


def _added(
    values: Array, entry: Entry, term: Term, begin: int, frame: tuple[Array, str] | None, read: Read, memo: Memo
) -> Array:
    """Return values of one frame plus one term; `values` may be changed."""
    scale = float(term.settings.get("scale", 1.0))
    end = begin + len(values)
    if frame is None:
        if term.form == "dense":
            return add_scaled(values, dense_values(term, begin, end, read, memo.room("shared", len(values))), scale)
        left, right = memo.get(term, lambda: _factors(entry, term, read))
        add_low_rank(values, left, right, scale, begin)
        return values
    data, where = frame
    if term.form == "mask":
        add_masked(values, data, dense_values(term, begin, end, read, memo.room("shared", len(values))), scale, where)
    elif term.form == "ternary":
        add_ternary(values, data, scale, where)
    elif term.form == "sign":
        add_signs(values, data, np.array([scale], np.float32), where=where)
    elif term.form == "rounded":
        add_rounded(values, data, scale, where)
    else:
        add_sparse(values, data, term.settings, scale, where)
    return values


def dense_values(term: Term, begin: int, end: int, read: Read, out: Array) -> Array:
    """Write elements begin .. end of a term's part "vector" to out, float32; of I8 each row has one of "scales". Return out."""
    vector = term.parts["vector"]
    width = element_bytes(vector.dtype)
    raw = out.view(np.uint8) if vector.dtype == "F32" else np.empty((end - begin) * width, np.uint8)
    read(vector, begin * width, raw.data)
    if vector.dtype == "I8":
        columns = vector.shape[-1] if vector.shape else 1
        row = begin // columns
        scales = np.empty(-(-end // columns) - row, "<f4")
        read(term.parts["scales"], 4 * row, scales.view(np.uint8).data)
        from_int8(raw.view(np.int8), scales, columns, out, begin - row * columns)
    elif vector.dtype != "F32":
        decode(raw, vector.dtype, out)
    return out


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


def _frames(entry: Entry, term: Term, begin: int, end: int, read: Read, memo: Memo) -> list[tuple[Array, str]]:
    """Return the bytes of each frame of elements begin .. end, read at once, and what messages call it."""
    data, ends, name = _frame_bytes(entry, term, begin, end, read, memo)
    return [(data[low:high], name(number)) for number, (low, high) in enumerate(pairwise(ends.tolist()))]


def _frame_bytes(
    entry: Entry, term: Term, begin: int, end: int, read: Read, memo: Memo
) -> tuple[Array, Array, Callable[[int], str]]:
    """Return the frames of elements begin .. end side by side, where each begins and the last ends, and their names."""
    first, last = begin // FRAME, frame_count(end)
    all_ends, place = memo.get(term, lambda: _ends(entry, term, read))
    ends = all_ends[first : last + 1]
    data = np.empty(int(ends[-1] - ends[0]), np.uint8)
    read(term.parts["frames"], int(ends[0]), data.data)
    return data, ends - ends[0], lambda number: f"{place}, frame {first + number}"


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
