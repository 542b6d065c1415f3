"""More loops: counting the digits of magnitudes, for the search of a k-th magnitude. Reached through `compiled.py`."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.arrays import PAD
from weightsmith.tensor.loops import PART, loop


@loop
def cuts(magnitude, value, rank):
    count, units, size = magnitude.shape
    out = np.empty((count, units), np.int64)
    for t in range(count):
        for u in range(units):
            bound = value[t, u]
            left = rank
            for i in range(size):
                left -= magnitude[t, u, i] > bound
            last = 0
            for i in range(size):
                if left > 0 and magnitude[t, u, i] == bound:
                    left -= 1
                    last = i + 1
            out[t, u] = last
    return out


@loop
def _count(bits, mask, shift, prefix, counted, place):
    """Count into counted, whose last PAD counters take what does not match. First all places, then all counts."""
    radix = counted.size - PAD
    for i in range(bits.size):
        high = (bits[i] & mask) >> shift
        place[i] = high & 0xFFFF if (high >> 16) == prefix else radix + (i & (PAD - 1))
    for i in range(bits.size):
        counted[place[i]] += 1


@loop
def count_digits(bits, mask, shift, prefixes, counts):
    """Count the 16-bit digit at `shift` of magnitudes whose higher digits equal the prefix, per vector and rank.

    counts: (T, ranks, RADIX + PAD). `mask` clears the sign: a shift out and in would not, since numba widens what it shifts.
    """
    place = np.empty(PART, np.uint32)
    for t in range(bits.shape[0]):
        for k in range(prefixes.shape[1]):
            for start in range(0, bits.shape[1], PART):
                _count(bits[t, start : start + PART], mask, shift, prefixes[t, k], counts[t, k], place)


@loop
def count_digits_bfloat16(raw, mask, shift, prefixes, counts):
    """Do as `count_digits` with the later rows of bfloat16 (k, n) uint16 minus the first, which are never stored as a whole.

    Counts nothing and returns False where an entry is not finite.
    """
    bad = False
    for row in raw:
        for i in range(row.size):
            bad |= (row[i] & 0x7F80) == 0x7F80
    if bad:
        return False
    work, place = np.empty((2, PART), np.float32), np.empty(PART, np.uint32)
    bits = work.view(np.uint32)
    for start in range(0, raw.shape[1], PART):
        size = min(PART, raw.shape[1] - start)
        first, other, other_bits = work[0, :size], work[1, :size], bits[1, :size]
        _widen(raw[0, start : start + size], bits[0, :size])
        for t in range(raw.shape[0] - 1):
            _widen(raw[t + 1, start : start + size], other_bits)
            for i in range(size):
                other[i] -= first[i]
            for k in range(prefixes.shape[1]):
                _count(other_bits, mask, shift, prefixes[t, k], counts[t, k], place)
    return True


@loop
def _widen(raw, bits):
    for i in range(raw.size):
        bits[i] = np.uint32(raw[i]) << np.uint32(16)
