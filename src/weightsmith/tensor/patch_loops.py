"""The loops that add to stored bfloat16 numbers in place: widened, added and rounded one by one. Reached through `compiled.py`.

What they store is bit for bit what decoding, the loop of the same name in `frame_loops.py` and encoding give; an element to which
nothing is added keeps its bits. Whole numbers are kept to 32 bits explicitly, as in `loops.py`.
"""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.frame_loops import rice_decode
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
def patch_ternary_frames(words, data, ends, frame, scale):
    """Add ternary frames of `frame` words each, coded by Rice: data from ends[0] to ends[-1]; return how many were added.

    It ends before a frame that is coded otherwise, or damaged: that is for `frames.patch`.
    """
    longest = np.int64(0)
    for k in range(ends.size - 1):
        longest = max(longest, ends[k + 1] - ends[k])
    positions, negative = np.empty(frame, np.int32), np.empty(frame + 8, np.uint8)
    codes = np.empty(longest // 8 + 2, np.uint64)
    for k in range(ends.size - 1):
        piece, part = data[ends[k] : ends[k + 1]], words[k * frame : (k + 1) * frame]
        if piece.size < HEAD or piece[0] != RICE:
            return k
        count = np.int64(0)
        for i in range(4):
            count |= np.int64(piece[2 + i]) << (8 * i)
        signs = (count + 7) // 8
        length = piece.size - signs - HEAD  # bytes of codes
        if count == 0 or count > part.size or piece[1] > LARGEST or length < 0:
            return k
        codes[length // 8 : length // 8 + 2] = 0
        codes.view(np.uint8)[:length] = piece[HEAD : HEAD + length]
        tail, at = piece[HEAD + length :], positions[:count]
        if count % 8 != 0 and tail[signs - 1] >> (count % 8) != 0:
            return k
        if rice_decode(codes, 8 * length, np.int64(piece[1]), part.size, at) != 0:
            return k
        for i in range(signs):
            for j in range(8):
                negative[8 * i + j] = tail[i] >> j & 1
        patch_signed_at(part, at, negative[:count], scale)
    return ends.size - 1


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
