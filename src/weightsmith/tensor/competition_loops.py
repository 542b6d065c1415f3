"""The loops of `competition.py`: the same operations in the same order. Reached through `compiled.py`."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.competition import (
    ABOVE,
    BELOW,
    EXPONENTIAL,
    HALVINGS,
    LARGEST,
    MIDDLE,
    SERIES,
    SMALL,
    SMALLEST_SUM,
    SQUARINGS,
)
from weightsmith.tensor.loops import PART, loop

HALF = 2.0**HALVINGS
EIGHTH = 1 / 2.0**SQUARINGS


@loop
def competition(vectors, low, high, rates, normalized):
    count, size = vectors.shape
    out = np.empty((count, size), vectors.dtype)
    total, base, power = np.empty(PART), np.empty(PART), np.empty(PART)
    for start in range(0, size, PART):
        total[:] = 0.0
        for t in range(count):
            v = vectors[t, start : start + PART]
            if normalized:
                for i in range(v.size):
                    x = _scaled(v[i], low[t], high[t], rates[t])
                    total[i] += x if v[i] > 0 else (-x if v[i] < 0 else 0.0)
            else:
                for i in range(v.size):
                    total[i] += np.float64(v[i])
        for t in range(count):
            v, o = vectors[t, start : start + PART], out[t, start : start + PART]
            for i in range(v.size):
                x = _scaled(v[i], low[t], high[t], rates[t])
                base[i] = _exponential(x * x - 1.0)
                power[i] = base[i]
            for _ in range(count - 1):
                for i in range(v.size):
                    power[i] *= base[i]
            large = 0
            for i in range(v.size):
                z = np.float64(v[i]) * total[i]
                large += int(not (abs(z) < SMALL))
                o[i] = power[i] * _small(z)
            if large > 0:
                _saturate(v, total, power, o)
    return out


@loop
def _scaled(value, low, high, rate):
    size = abs(np.float64(value))
    size = low if size < low else size
    return ((high if size > high else size) - low) * rate


@loop
def _exponential(y):
    z, c = y * EIGHTH + MIDDLE, EXPONENTIAL
    value = (((c[0] * z + c[1]) * z + c[2]) * z + c[3]) * z + c[4]
    value = ((value * z + c[5]) * z + c[6]) * z + c[7]
    for _ in range(SQUARINGS):
        value = value * value
    return value


@loop
def _small(z):
    square = z * z
    return z * (((SERIES[0] * square + SERIES[1]) * square + SERIES[2]) * square + SERIES[3])


@loop
def _saturate(v, total, power, out):
    for i in range(v.size):
        z = np.float64(v[i]) * total[i]
        if not (abs(z) < SMALL):
            if abs(z) < 1.0:
                slow = _ratio(z)
            else:
                slow = _ratio(min(max(z, -LARGEST), LARGEST) / HALF)
                for _ in range(HALVINGS):
                    slow = 2.0 * slow / (1.0 + slow * slow)
            out[i] = power[i] * slow


@loop
def _ratio(z):
    square = z * z
    above, below = square * ABOVE[0] + ABOVE[1], square * BELOW[0] + BELOW[1]
    above, below = above * square + ABOVE[2], below * square + BELOW[2]
    above, below = above * square + ABOVE[3], below * square + BELOW[3]
    return z * above / below


@loop
def scored_mean(vectors, balance, low, high, bound, span, scale):
    count, size = vectors.shape
    total, scores = np.zeros(size, vectors.dtype), np.zeros(size, vectors.dtype)
    zero, least = np.zeros(1, vectors.dtype)[0], np.full(1, SMALLEST_SUM, vectors.dtype)[0]
    for start in range(0, size, PART):
        merged, sums = total[start : start + PART], scores[start : start + PART]
        for t in range(count):
            v, b = vectors[t, start : start + PART], balance[t, start : start + PART]
            lo, hi, bo, sp, sc = low[t], high[t], bound[t], span[t], scale[t]
            for i in range(v.size):
                score = (max(b[i], bo) - bo) / sp
                a = min(max(abs(v[i]), lo), hi)
                clipped = a if v[i] > 0 else (-a if v[i] < 0 else zero)
                merged[i] += score * sc * clipped
                sums[i] += score
        for i in range(merged.size):
            merged[i] = merged[i] / max(sums[i], least)
    return total
