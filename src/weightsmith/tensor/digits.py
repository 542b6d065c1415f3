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
def count_digits(bits, mask, shift, prefixes, counts):
    """Count the 16-bit digit at `shift` of magnitudes whose higher digits equal the prefix, per vector and rank.

    counts: (T, ranks, RADIX + PAD); what does not match is counted, unread, in the pad. `mask` clears the sign: a shift
    out and in would not, since numba widens what it shifts.
    """
    place = np.empty(PART, np.uint32)
    radix = counts.shape[2] - PAD
    for t in range(bits.shape[0]):
        for r in range(prefixes.shape[1]):
            prefix, counted = prefixes[t, r], counts[t, r]
            for start in range(0, bits.shape[1], PART):
                b = bits[t, start : start + PART]
                for i in range(b.size):
                    high = (b[i] & mask) >> shift
                    place[i] = high & 0xFFFF if (high >> 16) == prefix else radix + (i & (PAD - 1))
                for i in range(b.size):
                    counted[place[i]] += 1
