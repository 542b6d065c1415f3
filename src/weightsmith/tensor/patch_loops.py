"""The loops that add to stored bfloat16 numbers in place: widened, added and rounded one by one. Reached through `compiled.py`.

What they store is bit for bit what decoding, the loop of the same name in `frame_loops.py` and encoding give; an element to which
nothing is added keeps its bits. Whole numbers are kept to 32 bits explicitly, as in `loops.py`.
"""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.frame_loops import rice_decode, rice_decode_two
from weightsmith.tensor.loops import PART, loop

RICE, HEAD, LARGEST = 3, 6, 31  # of a frame: its first byte, the bytes before its codes, the longest remainder


@loop
def _widened(word):
    """Return the float32 number of bfloat16 bits."""
    return np.uint32(np.uint32(word) << np.uint32(16)).view(np.float32)


@loop
def _rounded(number):
    """Return the bfloat16 bits nearest to a float32 number, ties to even; NaN stays NaN."""
    u = np.float32(number).view(np.uint32)
    high = np.uint32(u >> np.uint32(16))
    r = np.uint32(np.uint32(u + np.uint32(0x7FFF) + np.uint32(high & np.uint32(1))) >> np.uint32(16))
    is_nan = np.uint32(u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(np.uint32(high | np.uint32(0x40)) if is_nan else r)


@loop
def patch_selected(words, selected, shared, scale):
    """Add scale * shared to words (n,) uint16 where selected, uint8, is not 0."""
    for i in range(words.size):
        step = np.float32(shared[i] * scale)
        r = _rounded(np.float32(_widened(words[i]) + step))
        words[i] = r if (selected[i] != 0) & (step != 0) else words[i]


@loop
def patch_shared_at(words, positions, shared, scale):
    """Add scale * shared at positions."""
    numbers, steps = np.empty(PART, np.float32), np.empty(PART, np.float32)
    for start in range(0, positions.size, PART):
        at = positions[start : start + PART]
        n, s = numbers[: at.size], steps[: at.size]
        for k in range(at.size):
            n[k] = _widened(words[at[k]])
            s[k] = shared[at[k]] * scale
        _store(n, s, at, words)


@loop
def patch_signed_at(words, positions, negative, scale):
    """Add scale, or -scale where negative (k,), uint8, is 1, at positions."""
    numbers, steps, one = np.empty(PART, np.float32), np.empty(PART, np.float32), np.empty(1, np.float32)
    one[0] = scale
    bits, unsigned = steps.view(np.uint32), one.view(np.uint32)[0]
    for start in range(0, positions.size, PART):
        at, signs = positions[start : start + PART], negative[start : start + PART]
        n, b = numbers[: at.size], bits[: at.size]
        for k in range(at.size):
            b[k] = np.uint32(unsigned ^ np.uint32(np.uint32(signs[k]) << np.uint32(31)))
        for k in range(at.size):
            n[k] = _widened(words[at[k]])
        _store(n, steps[: at.size], at, words)


@loop
def patch_ternary_frames(words, data, ends, frame, scale, tables):
    """Add ternary frames of `frame` words each, coded by Rice: data from ends[0] to ends[-1]; return how many were added.

    It ends before a frame that is coded otherwise, or damaged: that is for `frames.patch`. Two are decoded at a time.
    """
    longest = np.int64(0)
    for k in range(ends.size - 1):
        longest = max(longest, ends[k + 1] - ends[k])
    positions, codes = np.empty((2, frame), np.int32), np.empty((2, longest // 8 + 3), np.uint64)
    negative, counts, lengths = np.empty(frame + 8, np.uint8), np.zeros(2, np.int64), np.zeros(2, np.int64)
    done, total = 0, ends.size - 1
    while done < total:
        pair = min(2, total - done)
        for i in range(pair):
            piece = data[ends[done + i] : ends[done + i + 1]]
            size = min(frame, words.size - (done + i) * frame)
            counts[i], lengths[i] = _read_codes(piece, size, codes[i])
        if counts[0] == 0:
            break
        size = min(frame, words.size - done * frame)
        piece, at, bits = data[ends[done] : ends[done + 1]], positions[0, : counts[0]], 8 * lengths[0]
        both = False
        if pair == 2 and counts[1] > 0:
            following, where = data[ends[done + 1] : ends[done + 2]], positions[1, : counts[1]]
            other_size = min(frame, words.size - (done + 1) * frame)
            other = codes[1], 8 * lengths[1], np.int64(following[1]), other_size, where
            both = rice_decode_two(codes[0], bits, np.int64(piece[1]), size, at, *other, tables)
        if not both and rice_decode(codes[0], bits, np.int64(piece[1]), size, at) != 0:
            break
        for i in range(1 + both):
            tail = data[ends[done] + HEAD + lengths[i] : ends[done + 1]]
            for j in range(tail.size):
                for bit in range(8):
                    negative[8 * j + bit] = tail[j] >> bit & 1
            place = words[done * frame : (done + 1) * frame]
            patch_signed_at(place, positions[i, : counts[i]], negative[: counts[i]], scale)
            done += 1
    return done


@loop
def _read_codes(piece, size, codes):
    """Put the codes of one frame of `size` words into words; return how many it selects, and the bytes of its codes.

    0 selected where it is not coded by Rice, or what stands before and after the codes is damaged.
    """
    if piece.size < HEAD or piece[0] != RICE or piece[1] > LARGEST:
        return 0, 0
    count = np.int64(0)
    for i in range(4):
        count |= np.int64(piece[2 + i]) << (8 * i)
    signs = (count + 7) // 8
    length = piece.size - signs - HEAD
    if count == 0 or count > size or length < 0 or (count % 8 != 0 and piece[-1] >> (count % 8) != 0):
        return 0, 0
    codes[length // 8 : length // 8 + 3] = 0
    codes.view(np.uint8)[:length] = piece[HEAD : HEAD + length]
    return count, length


@loop
def patch_at(words, positions, values, scale):
    """Add scale * values at positions."""
    numbers, steps = np.empty(PART, np.float32), np.empty(PART, np.float32)
    for start in range(0, positions.size, PART):
        at, v = positions[start : start + PART], values[start : start + PART]
        n, s = numbers[: at.size], steps[: at.size]
        for k in range(at.size):
            n[k] = _widened(words[at[k]])
            s[k] = v[k] * scale
        _store(n, s, at, words)


@loop
def _store(numbers, steps, positions, words):
    """Write numbers + steps at positions; both (k,), and changed."""
    for k in range(numbers.size):
        numbers[k] = numbers[k] + steps[k] if steps[k] != 0 else numbers[k]
    bits = numbers.view(np.uint32)
    for k in range(bits.size):
        u = bits[k]
        high = np.uint32(u >> np.uint32(16))
        r = np.uint32(np.uint32(u + np.uint32(0x7FFF) + np.uint32(high & np.uint32(1))) >> np.uint32(16))
        is_nan = np.uint32(u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        bits[k] = np.uint32(high | np.uint32(0x40)) if is_nan else r
    for k in range(bits.size):
        words[positions[k]] = np.uint16(bits[k])


@loop
def patch_signs(words, negative, scale):
    """Add scale, not 0, or -scale where negative, uint8, is not 0."""
    for i in range(words.size):
        words[i] = _rounded(np.float32(_widened(words[i]) + (-scale if negative[i] != 0 else scale)))
