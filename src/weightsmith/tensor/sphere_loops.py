"""The loops of `sphere.py` and `gram.py` that form merged numbers: the same operations in the same order.

Reached through `compiled.py`.
"""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.arrays import BLOCK, LANES
from weightsmith.tensor.loops import PART, fold_lanes, loop
from weightsmith.tensor.rounding_loops import step


@loop
def interpolate(vectors, more, far):
    size, length = vectors.shape[1], vectors.shape[1] // more.size
    out = np.empty(size, vectors.dtype)
    for unit in range(more.size):
        start, stop = unit * length, (unit + 1) * length
        x, y, o = vectors[0, start:stop], vectors[1, start:stop], out[start:stop]
        m, f = more[unit], far[unit]
        for i in range(o.size):
            o[i] = x[i] + (x[i] * m + (y[i] - x[i]) * f)
    return out


@loop
def interpolate_columns(first, second, more, far):
    out = np.empty(first.shape, first.dtype)
    for row in range(first.shape[0]):
        x, y, o = first[row], second[row], out[row]
        for i in range(o.size):
            o[i] = x[i] + (x[i] * more[i] + (y[i] - x[i]) * far[i])
    return out


@loop
def from_first(vectors, factors):
    count, size = vectors.shape
    out, total = np.empty(size, vectors.dtype), np.empty(PART, vectors.dtype)
    for start in range(0, size, PART):
        x, o = vectors[0, start : start + PART], out[start : start + PART]
        for i in range(o.size):
            total[i] = x[i] * factors[0]
        for t in range(1, count - 1):
            v, factor = vectors[t, start : start + PART], factors[t]
            for i in range(o.size):
                total[i] += (v[i] - x[i]) * factor
        v, factor = vectors[count - 1, start : start + PART], factors[count - 1]
        for i in range(o.size):
            change = total[i] + (v[i] - x[i]) * factor
            o[i] = x[i] if change == 0 else x[i] + change
    return out


@loop
def add_sum(base, vectors, factors):
    count, size = vectors.shape
    out, total, length = np.empty(size, base.dtype), np.empty(PART, base.dtype), size // factors.size
    for unit in range(factors.size):
        factor = factors[unit]
        for start in range(unit * length, (unit + 1) * length, PART):
            stop = min(start + PART, (unit + 1) * length)
            b, o, v = base[start:stop], out[start:stop], vectors[count - 1, start:stop]
            total[:] = 0
            for t in range(count - 1):
                u = vectors[t, start:stop]
                for i in range(o.size):
                    total[i] += u[i]
            for i in range(o.size):
                change = (total[i] + v[i]) * factor
                o[i] = b[i] if change == 0 else b[i] + change
    return out


@loop
def walk(vectors, used, lengths, share, length, arcs, last, scale, goal):
    """Return what `goal` says of a `Walk` in bfloat16: 0 the sum, 1 the mean, 2 the tangent of the arc `last`, 3 the result.

    All numbers as float32; an arc is its T inner products, T pulls, cosine and sine of its size, its size and its length.
    """
    size = vectors.shape[1]
    out = np.empty(size, np.float32)
    units, mean = np.empty((used.size, PART), np.float32), np.empty(PART, np.float32)
    tangent = np.empty(PART, np.float32)
    for start in range(0, size, PART):
        o = out[start : start + PART]
        _divide(vectors, start, o.size, used, lengths, units)
        _sum(units, share, mean, o.size)
        if goal > 0:
            _go(units, length, arcs, mean, tangent, o.size)
        if goal == 2:
            _add_pulls(units, last, mean, tangent, o.size)
            o[:] = tangent[: o.size]
        elif goal == 3:
            for i in range(o.size):
                o[i] = step(scale * mean[i], 1)
        else:
            o[:] = mean[: o.size]
    return out


@loop
def walk_products(vectors, used, lengths, share, length, arcs):
    """Return block sums of the products of the mean with each unit vector, (blocks, T)."""
    size = vectors.shape[1]
    blocks = -(-size // BLOCK)
    out = np.empty((blocks, used.size), np.float64)
    units, mean = np.zeros((used.size, PART), np.float32), np.zeros(PART, np.float32)
    tangent, lanes = np.empty(PART, np.float32), np.empty((used.size, LANES), np.float64)
    for block in range(blocks):
        lanes[:] = 0.0
        for start in range(block * BLOCK, min((block + 1) * BLOCK, size), PART):
            count = min(PART, size - start)
            _divide(vectors, start, count, used, lengths, units)
            _sum(units, share, mean, count)
            _go(units, length, arcs, mean, tangent, count)
            mean[count:] = 0  # changes no sum
            for k in range(used.size):
                own = lanes[k]
                for i in range(0, PART, LANES):
                    u, m = units[k, i : i + LANES], mean[i : i + LANES]
                    for j in range(LANES):
                        own[j] += np.float64(m[j]) * np.float64(u[j])
        for k in range(used.size):
            out[block, k] = fold_lanes(lanes[k])
    return out


@loop
def _divide(vectors, start, count, used, lengths, units):
    for k in range(used.size):
        u, v, length = units[k], vectors[used[k], start : start + count], lengths[k]
        for i in range(v.size):
            u[i] = step(v[i] / length, 1)


@loop
def _sum(units, share, mean, count):
    first, factor = units[0], share[0]
    for i in range(count):
        mean[i] = step(factor * first[i], 1)
    for k in range(1, share.size):
        u, factor = units[k], share[k]
        for i in range(count):
            mean[i] = step(mean[i] + step(factor * u[i], 1), 1)


@loop
def _go(units, length, arcs, mean, tangent, count):
    """From the sum to the mean, and along all arcs."""
    first = units[0]
    for i in range(count):
        mean[i] = step(mean[i] / length, 1) if length > 0 else first[i]
    for a in range(arcs.shape[0]):
        _add_pulls(units, arcs[a], mean, tangent, count)
        ahead, aside, size, after = arcs[a, -4], arcs[a, -3], arcs[a, -2], arcs[a, -1]
        for i in range(count):
            onward = step(aside * step(tangent[i] / size, 1), 1)
            mean[i] = step(step(step(ahead * mean[i], 1) + onward, 1) / after, 1)


@loop
def _add_pulls(units, arc, mean, tangent, count):
    zero, vectors = np.float32(0), units.shape[0]
    for i in range(count):
        tangent[i] = mean[i] * zero
    for k in range(vectors):
        u, along, pull = units[k], arc[k], arc[vectors + k]
        if pull != 0:
            for i in range(count):
                aside = step(u[i] - step(along * mean[i], 1), 1)
                tangent[i] = step(tangent[i] + step(pull * aside, 1), 1)
