"""Loops that go entry by entry: picking by magnitude or sign, inner products of rows. Reached through `compiled.py`."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.arrays import LANES
from weightsmith.tensor.loops import loop


@loop
def largest_magnitude(vectors):
    count, size = vectors.shape
    out = vectors[0].copy()
    for t in range(1, count):
        for i in range(size):
            v = vectors[t, i]
            out[i] = v if abs(v) >= abs(out[i]) else out[i]
    return out


@loop
def where_signs_agree(vector, merged):
    out = np.empty(merged.size, merged.dtype)
    zero = np.zeros(1, merged.dtype)[0]
    for i in range(merged.size):
        v, m = vector[i], merged[i]
        out[i] = m if ((v > 0) & (m > 0)) | ((v < 0) & (m < 0)) else zero
    return out


@loop
def row_gram(vectors, length):
    count, size = vectors.shape
    rows = size // length
    out = np.empty((rows, count * (count + 1) // 2), np.float64)
    lanes = np.empty(LANES, np.float64)
    for r in range(rows):
        pair = 0
        for s in range(count):
            for t in range(s, count):
                x, y = vectors[s, r * length : (r + 1) * length], vectors[t, r * length : (r + 1) * length]
                lanes[:] = 0.0
                for i in range(0, length, LANES):
                    u, v = x[i : i + LANES], y[i : i + LANES]
                    for j in range(u.size):
                        lanes[j] += np.float64(u[j]) * np.float64(v[j])
                half = LANES // 2
                while half >= 1:
                    for j in range(half):
                        lanes[j] += lanes[j + half]
                    half //= 2
                out[r, pair] = lanes[0]
                pair += 1
    return out
