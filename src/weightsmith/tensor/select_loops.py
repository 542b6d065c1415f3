"""Loops that look for k-th magnitudes inside guessed windows. Reached through `compiled.py`."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.loops import PART, loop


@loop
def sift(vectors, low, top, above, index):
    """Write to `index` which entries are open; see `select.sift`.

    Flags and sums are of the vectors' type, and counts of its width: the compiler does not vectorize loops over both
    wide and narrow numbers well.
    """
    count, size = vectors.shape
    zero, one = np.zeros(1, vectors.dtype)[0], np.ones(1, vectors.dtype)[0]
    flags, sums = np.empty(PART, vectors.dtype), np.empty(PART, vectors.dtype)
    found, balance = 0, 0
    for start in range(0, size, PART):
        is_open, total = flags[: min(PART, size - start)], sums[: min(PART, size - start)]
        is_open[:] = zero
        total[:] = zero
        for t in range(count):
            v = vectors[t, start : start + PART]
            for r in range(low.shape[1]):
                least, most = low[t, r], top[t, r]
                larger = np.int32(0)
                for i in range(v.size):
                    magnitude = abs(v[i])
                    is_open[i] += one if (magnitude >= least) & (magnitude <= most) else zero
                    larger = np.int32(larger + np.int32(magnitude > most))
                above[t, r] += larger
            most = top[t, 0]
            for i in range(v.size):
                total[i] += v[i] * (abs(v[i]) > most)
        for i in range(total.size):
            index[found] = start + i
            found += int(is_open[i] > zero)
        part = np.int32(0)
        for i in range(total.size):
            total[i] *= is_open[i] == zero
        for i in range(total.size):
            part = np.int32(part + np.int32(total[i] > zero) - np.int32(total[i] < zero))
        balance += int(part)
    return found, balance


@loop
def gather_inside(vector, low, top, out):
    """Write to `out` the magnitudes from low to top, in order; return how many they are."""
    found = 0
    for i in range(vector.size):
        magnitude = abs(vector[i])
        out[found] = magnitude
        found += int((magnitude >= low) & (magnitude <= top))
    return found


@loop
def gather_window(vector, low, top, kept, index, mode):
    """Return how many values lie from low to top and how many above; keep them in order, and their indices.

    Mode 0 keeps nothing, 1 the values, 2 values and indices.
    """
    found, above = 0, 0
    for start in range(0, vector.size, PART):
        v = vector[start : start + PART]
        inside, larger = np.int32(0), np.int32(0)
        for i in range(v.size):
            inside = np.int32(inside + np.int32((v[i] >= low) & (v[i] <= top)))
        for i in range(v.size):
            larger = np.int32(larger + np.int32(v[i] > top))
        above += int(larger)
        if mode == 0 or inside == 0:
            found += int(inside)
        elif mode == 1:
            for i in range(v.size):
                kept[found] = v[i]
                found += int((v[i] >= low) & (v[i] <= top))
        else:
            for i in range(v.size):
                kept[found] = v[i]
                index[found] = start + i
                found += int((v[i] >= low) & (v[i] <= top))
    return found, above
