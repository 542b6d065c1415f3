"""The loops that code and decode frames; reached through `compiled.py`.

No reassociation and no fused multiply-add. Where zero is added, an element keeps its bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.cpython.unsafe import numbers

from weightsmith.tensor.loops import PART, loop

WORD = 64  # bits
LOOK, LOOKS = 11, 5  # bits that a table tells about, and how often it is asked before the next word is read
MASK, FIELD, CODES, FIFTEEN = np.uint64((1 << LOOK) - 1), np.uint64(0xFFF), np.uint64(3), np.uint64(15)
# Where an entry of a table holds what:
FIRST, SECOND, THIRD, LAST = np.uint64(6), np.uint64(18), np.uint64(30), np.uint64(42)
ONE, TWO = np.uint64(1), np.uint64(2)
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
def rice_tables(count):
    """Return what the next LOOK bits hold, for remainders of 0 to count - 1 bits: (count, 2^LOOK) uint64.

    From the lowest bit: how many whole codes, at most three (2 bits); the bits that they take (4); the first, the second and the
    third position (12 each), and where the search goes on after the last (12): from where this one began.
    """
    tables = np.zeros((count, 1 << LOOK), np.uint64)
    for b in range(count):
        for bits in range(1 << LOOK):
            at, start, codes, entry = 0, 0, 0, 0
            while codes < 3:
                end = at
                while end < LOOK and bits >> end & 1 == 0:
                    end += 1
                if end + 1 + b > LOOK:
                    break
                position = start + (end - at << b) + (bits >> end + 1 & (1 << b) - 1)
                entry |= position << 6 + 12 * codes
                at, start, codes = end + 1 + b, position + 1, codes + 1
            tables[b, bits] = codes | at << 2 | entry | start << 42
    return tables


@loop
def rice_decode(words, bits, b, size, positions):
    """Read the codes of positions (k,) from words, which end in two words of zeros; return what is wrong, see `rice`."""
    return _read_on(words, bits, b, size, positions, 0, 0, 0)


@loop
def rice_decode_two(words, bits, b, size, positions, others, other_bits, other_b, other_size, other_positions, tables):
    """Do what `rice_decode` does with two at once, in half the time; return whether both are right."""
    done = np.zeros(6, np.uint64)
    if b < len(tables) and other_b < len(tables):
        one, two = tables[b], tables[other_b]
        _look_up(words, bits, b, positions, one, others, other_bits, other_b, other_positions, two, done)
    k, at, start, m, to, begin = done
    return (
        _read_on(words, bits, b, size, positions, k, at, start) == 0
        and _read_on(others, other_bits, other_b, other_size, other_positions, m, to, begin) == 0
    )


@loop
def _look_up(words, bits, b, positions, table, others, other_bits, other_b, other_positions, other_table, done):
    """Read codes of two several at a time: while one waits for its table, the other goes on.

    done: zeros; of each, how many are read, at which bit the next begins, and from where its gap counts. Some codes are left, in
    which it shows whether positions are too large or bits too few.
    """
    k, at, start, m, to, begin = done
    most, end = _limits(positions.size, bits)
    other_most, other_end = _limits(other_positions.size, other_bits)
    while k < most and at < end and m < other_most and to < other_end:
        window, other_window = _window(words, at), _window(others, to)
        for _ in range(LOOKS):
            entry, other = table[window & MASK], other_table[other_window & MASK]
            positions[k] = start + (entry >> FIRST & FIELD)
            positions[k + ONE] = start + (entry >> SECOND & FIELD)
            positions[k + TWO] = start + (entry >> THIRD & FIELD)
            other_positions[m] = begin + (other >> FIRST & FIELD)
            other_positions[m + ONE] = begin + (other >> SECOND & FIELD)
            other_positions[m + TWO] = begin + (other >> THIRD & FIELD)
            window >>= entry >> TWO & FIFTEEN
            other_window >>= other >> TWO & FIFTEEN
            at += entry >> TWO & FIFTEEN
            to += other >> TWO & FIFTEEN
            start += entry >> LAST
            begin += other >> LAST
            k += entry & CODES
            m += other & CODES
        if entry & CODES == 0:
            position, taken = _long(words, at, b)
            if taken == 0:
                break
            positions[k] = start + position
            k, at, start = k + ONE, at + taken, start + position + ONE
        if other & CODES == 0:
            position, taken = _long(others, to, other_b)
            if taken == 0:
                break
            other_positions[m] = begin + position
            m, to, begin = m + ONE, to + taken, begin + position + ONE
    done[0], done[1], done[2] = k, at, start
    done[3], done[4], done[5] = m, to, begin


@loop
def _limits(count, bits):
    """Return below which code and which bit there is room for all that one window may hold."""
    return np.uint64(max(count - 3 * LOOKS - 1, 0)), np.uint64(max(bits - WORD, 0))


@loop
def _long(words, at, b):
    """Return the gap that begins at bit `at`, and the bits of its code; of these 0 where it does not lie in one word."""
    window = _window(words, at)
    first = np.uint64(trailing_zeros(window))
    if window == 0 or first + np.uint64(1 + b) > np.uint64(WORD):
        return np.uint64(0), np.uint64(0)
    rest = window >> first >> ONE & np.uint64((1 << b) - 1)
    return (first << np.uint64(b)) + rest, first + np.uint64(1 + b)


@loop
def _read_on(words, bits, b, size, positions, done, begin, start):
    """Read the codes that are not done, from bit `begin`, gaps from `start` on; return what is wrong, see `rice`."""
    at, last = np.int64(begin), np.int64(start) - 1
    low, width = np.uint64((1 << b) - 1), np.uint64(b)
    window, left = np.uint64(0), 0  # the next bits, and how many of them are read already
    for k in range(np.int64(done), positions.size):
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
    place, shift = np.uint64(at) >> np.uint64(6), np.uint64(at) & np.uint64(63)
    return (words[place] >> shift) | (words[place + ONE] << ONE << (np.uint64(63) - shift))


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
