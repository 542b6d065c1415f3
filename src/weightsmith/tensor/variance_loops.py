"""The loops of `variance.py`: the same operations in the same order. Reached through `compiled.py`."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.arrays import BLOCK, LANES
from weightsmith.tensor.loops import PART, loop
from weightsmith.tensor.rounding_loops import step


@loop
def _spread(vectors, start, mean, spread, out, precision):
    """Write the variances of the entries from `start` on to out; mean and spread are scratch."""
    count = vectors.shape[0]
    mean[:], spread[:] = 0.0, 0.0
    for t in range(count):
        v = vectors[t, start : start + PART]
        for i in range(v.size):
            mean[i] += np.float64(step(v[i], precision))
    for i in range(out.size):
        mean[i] /= count
    for t in range(count):
        v = vectors[t, start : start + PART]
        for i in range(v.size):
            d = np.float64(step(v[i], precision)) - mean[i]
            spread[i] += d * d
    for i in range(out.size):
        out[i] = spread[i] / count
        out[i] = step(out[i], precision)


@loop
def variances(vectors, precision):
    size = vectors.shape[1]
    out = np.empty(size, vectors.dtype)
    mean, spread = np.empty(PART, np.float64), np.empty(PART, np.float64)
    for start in range(0, size, PART):
        _spread(vectors, start, mean, spread, out[start : start + PART], precision)
    return out


@loop
def count_varying(vectors, precision):
    size = vectors.shape[1]
    found, part = np.empty(PART, vectors.dtype), 0
    mean, spread = np.empty(PART, np.float64), np.empty(PART, np.float64)
    for start in range(0, size, PART):
        here = found[: min(PART, size - start)]
        _spread(vectors, start, mean, spread, here, precision)
        for i in range(here.size):
            part += int(here[i] != 0)
    return part


@loop
def keep_varying(vectors, bound, cut, precision):
    count, size = vectors.shape
    out = np.empty((count, size), vectors.dtype)
    found, zero = np.empty(PART, vectors.dtype), np.zeros(1, vectors.dtype)[0]
    mean, spread = np.empty(PART, np.float64), np.empty(PART, np.float64)
    for start in range(0, size, PART):
        here = found[: min(PART, size - start)]
        _spread(vectors, start, mean, spread, here, precision)
        last = min(max(cut - start, 0), here.size)  # before it an entry equal to the bound is kept
        for t in range(count):
            v, o = vectors[t, start : start + PART], out[t, start : start + PART]
            for i in range(last):
                o[i] = v[i] if here[i] >= bound else v[i] * zero
            for i in range(last, here.size):
                o[i] = v[i] if here[i] > bound else v[i] * zero
    return out


@loop
def energies(vectors, precision):
    count, size = vectors.shape
    blocks = -(-size // BLOCK)
    out = np.empty((blocks, count), np.float64)
    lanes = np.empty(LANES, np.float64)
    for b in range(blocks):
        for t in range(count):
            x = vectors[t, b * BLOCK : (b + 1) * BLOCK]
            lanes[:] = 0.0
            for i in range(0, x.size, LANES):
                u = x[i : i + LANES]
                for j in range(u.size):
                    v = step(u[j], precision)
                    lanes[j] += np.float64(step(v * v, precision))
            half = LANES // 2
            while half >= 1:
                for j in range(half):
                    lanes[j] += lanes[j + half]
                half //= 2
            out[b, t] = lanes[0]
    return out


@loop
def merge_shares(base, vectors, weights, least, precision):
    count, size = vectors.shape
    out = np.empty(size, base.dtype)
    vote, merged, divisor = np.empty(PART, base.dtype), np.empty(PART, base.dtype), np.empty(PART, base.dtype)
    zero, one = np.zeros(1, base.dtype)[0], np.ones(1, base.dtype)[0]
    for start in range(0, size, PART):
        b, o = base[start : start + PART], out[start : start + PART]
        vote[:], merged[:], divisor[:] = zero, zero, zero
        for t in range(count):
            v = vectors[t, start : start + PART]
            for i in range(b.size):
                vote[i] += step(v[i], precision)
        for i in range(b.size):
            vote[i] = one if step(vote[i], precision) >= zero else -one
        for t in range(count):
            v, weight = vectors[t, start : start + PART], weights[t]
            for i in range(b.size):
                value = step(v[i], precision)
                agrees = value * vote[i] > zero
                merged[i] += step(value * weight, precision) if agrees else zero
                divisor[i] += weight if agrees else zero
        for i in range(b.size):
            d = max(step(divisor[i], precision), least)
            change = step(step(merged[i], precision) / (one if d == zero else d), precision)
            o[i] = b[i] if change == zero else step(b[i] + change, precision)
    return out
