"""The loops of `variance.py`: the same operations in the same order. Reached through `compiled.py`."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.arrays import BLOCK, LANES
from weightsmith.tensor.loops import PART, loop
from weightsmith.tensor.rounding_loops import step


@loop
def _spread(vectors, start, mean, spread, out, precision):
    """Write the variances of the entries from `start` on to out; mean and spread are scratch."""
    share = 1.0 / vectors.shape[0]
    m, s = mean[: out.size], spread[: out.size]
    m[:] = 0.0
    s[:] = 0.0
    for t in range(vectors.shape[0]):
        v = vectors[t, start : start + out.size]
        for i in range(v.size):
            m[i] += np.float64(step(v[i], precision))
    for i in range(m.size):
        m[i] *= share
    for t in range(vectors.shape[0]):
        v = vectors[t, start : start + out.size]
        for i in range(v.size):
            d = np.float64(step(v[i], precision)) - m[i]
            s[i] += d * d
    for i in range(s.size):
        out[i] = s[i] * share
        out[i] = step(out[i], precision)


@loop
def variances(vectors, precision):
    out = np.empty(vectors.shape[1], vectors.dtype)
    mean, spread = np.empty(PART), np.empty(PART)
    for start in range(0, out.size, PART):
        _spread(vectors, start, mean, spread, out[start : start + PART], precision)
    return out


@loop
def _keep(vectors, start, size, bound, cut, mean, spread, found, kept, precision):
    """Write to kept (T, PART) what is kept of `size` entries from `start` on, rounded; mean, spread and found are scratch."""
    zero, one = np.zeros(1, vectors.dtype)[0], np.ones(1, vectors.dtype)[0]
    chosen = found[:size]
    if bound is not None:
        _spread(vectors, start, mean, spread, chosen, precision)
        last = min(max(cut - start, 0), size)  # before it an entry equal to the bound is kept
        before, after = chosen[:last], chosen[last:]
        for i in range(before.size):
            before[i] = one if before[i] >= bound else zero
        for i in range(after.size):
            after[i] = one if after[i] > bound else zero
    for t in range(vectors.shape[0]):
        v, o = vectors[t, start : start + size], kept[t, :size]
        for i in range(v.size):
            x = step(v[i], precision)
            if bound is not None:
                x = x * chosen[i]
            o[i] = x


@loop
def energies(vectors, bound, cut, precision):
    count, size = vectors.shape
    blocks = -(-size // BLOCK)
    out, lanes = np.empty((blocks, count)), np.empty((count, LANES))
    mean, spread = np.empty(PART), np.empty(PART)
    found, kept = np.empty(PART, vectors.dtype), np.empty((count, PART), vectors.dtype)
    for b in range(blocks):
        lanes[:] = 0.0
        for start in range(b * BLOCK, min((b + 1) * BLOCK, size), PART):
            length = min(PART, size - start)
            _keep(vectors, start, length, bound, cut, mean, spread, found, kept, precision)
            for t in range(count):
                x, sums = kept[t, :length], lanes[t]
                for i in range(0, x.size, LANES):
                    u = x[i : i + LANES]
                    for j in range(u.size):
                        sums[j] += np.float64(step(u[j] * u[j], precision))
        half = LANES // 2
        while half >= 1:
            for t in range(count):
                for j in range(half):
                    lanes[t, j] += lanes[t, j + half]
            half //= 2
        for t in range(count):
            out[b, t] = lanes[t, 0]
    return out


@loop
def merge_shares(base, vectors, bound, cut, weights, least, precision):
    count, size = vectors.shape
    out = np.empty(size, base.dtype)
    vote, merged, divisor = np.empty(PART, base.dtype), np.empty(PART, base.dtype), np.empty(PART, base.dtype)
    mean, spread = np.empty(PART), np.empty(PART)
    found, kept = np.empty(PART, base.dtype), np.empty((count, PART), base.dtype)
    zero, one = np.zeros(1, base.dtype)[0], np.ones(1, base.dtype)[0]
    for start in range(0, size, PART):
        b, o = base[start : start + PART], out[start : start + PART]
        s, m, d = vote[: b.size], merged[: b.size], divisor[: b.size]
        _keep(vectors, start, b.size, bound, cut, mean, spread, found, kept, precision)
        s[:] = zero  # one by one: the compiler does not vectorize a loop after they were assigned together
        m[:] = zero
        d[:] = zero
        for t in range(count):
            v = kept[t, : b.size]
            for i in range(v.size):
                s[i] += v[i]
        for i in range(s.size):
            s[i] = one if step(s[i], precision) >= zero else -one
        for t in range(count):
            v, weight = kept[t, : b.size], weights[t]
            for i in range(v.size):
                part, agrees = step(v[i] * weight, precision), v[i] * s[i] > zero
                m[i] += part if agrees else zero
                d[i] += weight if agrees else zero
        for i in range(o.size):
            whole = step(d[i], precision)
            whole = whole if whole > least else least
            change = step(step(m[i], precision) / (one if whole == zero else whole), precision)
            o[i] = b[i] if change == zero else step(b[i] + change, precision)
    return out
