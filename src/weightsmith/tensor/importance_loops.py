"""The loops of `importance.py`, but for numpy's exponential and logarithm. Reached through `compiled.py`."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.arrays import LANES
from weightsmith.tensor.loops import loop
from weightsmith.tensor.rounding_loops import step


@loop
def below_row_maximum(vector, length):
    out, top = np.empty(vector.size, vector.dtype), np.empty(LANES, vector.dtype)
    for begin in range(0, vector.size, length):
        v, o = vector[begin : begin + length], out[begin : begin + length]
        top[:] = v[0]
        for i in range(0, length, LANES):
            u = v[i : i + LANES]
            for j in range(u.size):
                top[j] = u[j] if u[j] > top[j] else top[j]
        most = top.max()
        for i in range(length):
            o[i] = v[i] - most
    return out


@loop
def chances_of_powers(powers, length, least, precision):
    """Turn exponentials, in place, into shares of their rows' sums plus the least chance."""
    whole = np.empty(1, powers.dtype)
    for begin in range(0, powers.size, length):
        p = powers[begin : begin + length]
        whole[0] = _sum(p)
        total = whole[0]
        for i in range(length):
            p[i] = step(step(p[i] / total, precision) + least, precision)


@loop
def ratios(first, second, precision):
    """Divide first by second, in place of second."""
    for i in range(first.size):
        second[i] = step(first[i] / second[i], precision)


@loop
def weigh_changes(base, other, chances, logarithms, length, precision):
    out = np.empty(base.size, base.dtype)
    terms, whole = np.empty(length, base.dtype), np.empty(1, base.dtype)
    for begin in range(0, base.size, length):
        p, g = chances[begin : begin + length], logarithms[begin : begin + length]
        b, x, o = base[begin : begin + length], other[begin : begin + length], out[begin : begin + length]
        for i in range(length):
            terms[i] = step(p[i] * step(g[i], precision), precision)
        whole[0] = _sum(terms)
        divergence = step(whole[0], precision)
        for i in range(length):
            o[i] = step(step(abs(x[i] - b[i]), precision) * divergence, precision)
    return out


@loop
def _sum(values):
    """Return the sum, in float64: entry i is added to lane i % LANES, in order; the lanes by halving."""
    lanes = np.zeros(LANES, np.float64)
    for i in range(0, values.size, LANES):
        u = values[i : i + LANES]
        for j in range(u.size):
            lanes[j] += np.float64(u[j])
    half = LANES // 2
    while half >= 1:
        for j in range(half):
            lanes[j] += lanes[j + half]
        half //= 2
    return lanes[0]
