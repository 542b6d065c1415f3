"""The loops of `unified.py`: the same operations in the same order. Reached through `compiled.py`."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.arrays import BLOCK, LANES
from weightsmith.tensor.loops import PART, loop


@loop
def masked(vectors, task):
    out = np.empty(vectors.shape[1], vectors.dtype)
    sign = np.empty(PART, vectors.dtype)
    for start in range(0, out.size, PART):
        _mask(vectors, task, start, sign, out[start : start + PART])
    return out


@loop
def masked_sums(vectors, task):
    blocks = -(-vectors.shape[1] // BLOCK)
    out = np.empty((blocks, 2))
    sign, kept = np.empty(PART, vectors.dtype), np.empty(PART, vectors.dtype)
    whole, left = np.empty(LANES), np.empty(LANES)
    for block in range(blocks):
        whole[:], left[:] = 0.0, 0.0
        for start in range(block * BLOCK, min((block + 1) * BLOCK, vectors.shape[1]), PART):
            own = vectors[task, start : start + PART]
            here = kept[: own.size]
            _mask(vectors, task, start, sign, here)
            for i in range(0, own.size, LANES):
                u, w = own[i : i + LANES], here[i : i + LANES]
                for j in range(u.size):
                    whole[j] += abs(np.float64(u[j]))
                    left[j] += abs(np.float64(w[j]))
        half = LANES // 2
        while half >= 1:
            for j in range(half):
                whole[j] += whole[j + half]
                left[j] += left[j + half]
            half //= 2
        out[block, 0], out[block, 1] = whole[0], left[0]
    return out


@loop
def _mask(vectors, task, start, sign, out):
    """Write the masked entries from `start` on to out; sign is scratch."""
    zero, one = np.zeros(1, vectors.dtype)[0], np.ones(1, vectors.dtype)[0]
    sign[: out.size] = vectors[0, start : start + out.size]
    for t in range(1, vectors.shape[0]):
        v = vectors[t, start : start + out.size]
        for i in range(v.size):
            sign[i] += v[i]
    for i in range(out.size):
        sign[i] = one if sign[i] > zero else -one
    out[:] = zero
    for t in range(vectors.shape[0]):
        v = vectors[t, start : start + out.size]
        for i in range(v.size):
            along = v[i] * sign[i]
            out[i] = along if along > out[i] else out[i]
    own = vectors[task, start : start + out.size]
    for i in range(own.size):
        out[i] = out[i] * sign[i] if own[i] * sign[i] > zero else zero
