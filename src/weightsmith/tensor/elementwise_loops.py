"""Loops that go entry by entry: picking by magnitude or sign. Reached through `compiled.py`."""

from __future__ import annotations

import numpy as np

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
