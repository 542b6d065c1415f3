"""The loops that code and decode frames; reached through `compiled.py`.

No reassociation and no fused multiply-add. Where zero is added, an element keeps its bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.cpython.unsafe import numbers

from weightsmith.tensor.loops import PART, loop

WORD = 64  # bits
trailing_zeros: Any = numbers.trailing_zeros


@loop
def rice_bits(positions, b):
    """Return the bits of the codes of positions (k,)."""
    quotients, last = np.int64(0), np.int32(-1)
    for k in range(positions.size):
        quotients += np.int64((positions[k] - last - 1) >> b)
        last = positions[k]
    return quotients + positions.size * (b + 1)


@loop
def rice_encode(positions, b, words):
    """Write the codes of positions (k,) into zeroed words, uint64."""
    last, at = np.int64(-1), 0
    used, window = np.int64(0), np.uint64(0)  # how many bits of the word `at` are known, and the bits
    low, length = np.int64((1 << b) - 1), np.int64(b + 1)
    for k in range(positions.size):
        gap = np.int64(positions[k]) - last - 1
        last = np.int64(positions[k])
        used += gap >> b
        if used >= WORD:
            words[at] = window
            at += used >> 6
            used &= 63
            window = np.uint64(0)
        code = np.uint64(1 | (gap & low) << 1)
        window |= code << np.uint64(used)
        used += length
        if used >= WORD:
            words[at] = window
            at += 1
            used -= WORD
            window = code >> np.uint64(length - used)
    words[at] = window


@loop
def rice_decode(words, bits, b, size, positions):
    """Read the codes of positions (k,) from words, which end in a word of zeros; return what is wrong, see `rice`."""
    at, last = np.int64(0), np.int64(-1)
    low, width = np.uint64((1 << b) - 1), np.uint64(b)
    window, left = np.uint64(0), 0  # the next bits, and how many of them are read already
    for k in range(positions.size):
        passed = np.int64(0)
        first = np.int64(trailing_zeros(window))
        if first + 1 + b > left:
            window, left = _window(words, at), WORD
            while window == 0:
                passed += WORD
                at += WORD
                if at >= bits:
                    return 1
                if passed >= size:
                    return 2
                window = _window(words, at)
            first = np.int64(trailing_zeros(window))
            if first + 1 + b > WORD:
                passed += first
                at += first
                window, first = _window(words, at), np.int64(0)
        rest = window >> np.uint64(first) >> np.uint64(1)
        window = rest >> width
        left -= first + 1 + b
        at += first + 1 + b
        last += np.int64(np.uint64(passed + first) << width | (rest & low)) + 1
        if last >= size:
            return 2
        positions[k] = last
    if at > bits:
        return 1
    return 3 if bits - at >= 8 or _window(words, at) != 0 else 0


@loop
def _window(words, at):
    """Return the 64 bits that begin at bit `at`."""
    shift = np.uint64(at & 63)
    return (words[at >> 6] >> shift) | (words[(at >> 6) + 1] << np.uint64(1) << (np.uint64(63) - shift))


@loop
def bit_positions(words, positions):
    """List the set bits of words, uint64, in positions (k,); k is their count."""
    k = 0
    for w in range(words.size):
        left = words[w]
        while left != 0:
            positions[k] = w * WORD + np.int64(trailing_zeros(left))
            left &= left - np.uint64(1)
            k += 1


@loop
def take_negative(values, positions, out):
    """Tell which values at positions (k,) are below 0: out (k,) uint8."""
    for k in range(positions.size):
        out[k] = np.uint8(values[positions[k]] < 0)


@loop
def put(out, positions, values):
    """Write values at positions."""
    for k in range(positions.size):
        out[positions[k]] = values[k]


@loop
def add_selected(out, selected, shared, scale):
    """Add scale * shared to out where selected, uint8, is not 0."""
    for i in range(out.size):
        step = shared[i] * scale
        out[i] = out[i] + step if (selected[i] != 0) & (step != 0) else out[i]


@loop
def add_shared_at(out, positions, shared, scale):
    """Add scale * shared at positions."""
    for k in range(positions.size):
        at = positions[k]
        step = shared[at] * scale
        if step != 0:
            out[at] += step


@loop
def add_signed_at(out, positions, negative, scale):
    """Add scale, or -scale where the bit of negative is set, at positions."""
    for k in range(positions.size):
        out[positions[k]] += -scale if negative[k >> 3] >> (k & 7) & 1 else scale


@loop
def add_at(out, positions, values, scale):
    """Add scale * values at positions."""
    for k in range(positions.size):
        step = values[k] * scale
        if step != 0:
            out[positions[k]] += step


@loop
def add_signs(out, negative, scales, columns, start):
    """Add a row's scale, or minus it where negative, uint8, is not 0."""
    done = 0
    while done < out.size:
        row, column = (start + done) // columns, (start + done) % columns
        scale = scales[row]
        o, n = out[done : done + columns - column], negative[done : done + columns - column]
        if scale != 0:
            for i in range(o.size):
                o[i] += -scale if n[i] != 0 else scale
        done += o.size


@loop
def round_to_int8(values, scales, columns, start, out):
    done = 0
    while done < out.size:
        row, column = (start + done) // columns, (start + done) % columns
        scale = scales[row]
        v, o = values[done : done + columns - column], out[done : done + columns - column]
        for i in range(o.size):
            o[i] = min(max(np.rint(v[i] / scale), -127), 127) if scale != 0 else 0
        done += o.size


@loop
def scale_int8(codes, scales, columns, start, out):
    done = 0
    while done < out.size:
        row, column = (start + done) // columns, (start + done) % columns
        scale = scales[row]
        c, o = codes[done : done + columns - column], out[done : done + columns - column]
        for i in range(o.size):
            o[i] = np.float32(c[i]) * scale
        done += o.size


@loop
def fold_differences(base, finetuned, out):
    """Write finetuned - base, wrapping, as 2 d for d >= 0 and -2 d - 1 for d < 0."""
    top = out.itemsize * 8 - 1
    for i in range(out.size):
        d = np.int64(finetuned[i] - base[i]) << (63 - top) >> (63 - top)
        out[i] = np.uint64((d << 1) ^ (d >> 63))


@loop
def split_pairs(words, low, high):
    """Write the lower and the upper bytes of words (n,) uint16."""
    for i in range(words.size):
        low[i] = np.uint8(words[i] & np.uint16(0xFF))
    for i in range(words.size):
        high[i] = np.uint8(words[i] >> np.uint16(8))


@loop
def unfold_differences(planes, base, out):
    """Add to base the folded differences whose lowest bytes are planes[0], and so on: width arrays (n,), uint8.

    Base may be out itself: sums are formed aside, since a loop that reads and writes one array under two names is not vectorized.
    """
    folded = np.empty(PART, out.dtype)
    for start in range(0, out.size, PART):
        b, o = base[start : start + PART], out[start : start + PART]
        f = folded[: o.size]
        f[:] = 0
        for j in range(len(planes)):
            plane = planes[j][start : start + PART]
            for i in range(f.size):
                f[i] |= np.uint64(plane[i]) << np.uint64(8 * j)
        for i in range(f.size):
            f[i] = b[i] + ((f[i] >> np.uint64(1)) ^ (np.uint64(0) - (f[i] & np.uint64(1))))
        for i in range(f.size):
            o[i] = f[i]
