"""The loops of `importance.py`: the same operations in the same order. Reached through `compiled.py`."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.arrays import LANES
from weightsmith.tensor.importance import EXPONENTIAL, GROWTH, LEAST_CHANCE, NEAR, SQUARINGS, WIDTH
from weightsmith.tensor.loops import loop


@loop
def near_divergence(base, other, length):
    """Return the divergence of each row from the base's, (rows,) float64; -1 where they are not near each other."""
    rows = base.size // length
    out = np.empty(rows)
    change, powers, terms = np.empty(length), np.empty(length), np.empty(length)
    for row in range(rows):
        b, x = base[row * length : (row + 1) * length], other[row * length : (row + 1) * length]
        farthest, top, width = _extent(b, x, change, powers)
        out[row] = -1.0
        if farthest <= NEAR and width <= WIDTH * 2.0**SQUARINGS:
            _exponentials(powers, top, width)
            for i in range(length):
                terms[i] = powers[i] * _growth(change[i])
            whole = _sum(powers)
            grown = _sum(terms) / whole
            ratio = grown / (2.0 + grown)
            square = ratio * ratio
            shift = 2.0 * ratio * (1.0 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square / 9))))
            share = 1.0 / whole
            for i in range(length):
                chance = powers[i] * share
                step = chance * _growth(change[i] - shift)
                both = 2.0 * chance + 2.0 * LEAST_CHANCE + step
                h = step / both
                w = h * h
                terms[i] = both * (w + (1.0 + h) * h * w * (1 / 3 + w * (1 / 5 + w / 7)))
            out[row] = 0.0 if length == 1 else _sum(terms)
    return out


@loop
def _extent(base, other, change, wide):
    """Write other - base to `change` and the base to `wide`; return the largest change, the base's maximum and its width."""
    top, least = np.full(LANES, base[0]), np.full(LANES, base[0])
    most, wrong = np.zeros(LANES), np.zeros(LANES)
    for start in range(0, base.size, LANES):
        b, x = base[start : start + LANES], other[start : start + LANES]
        d, w = change[start : start + LANES], wide[start : start + LANES]
        for j in range(b.size):
            top[j] = b[j] if b[j] > top[j] else top[j]
            least[j] = b[j] if b[j] < least[j] else least[j]
            w[j] = b[j]
            d[j] = np.float64(x[j]) - np.float64(b[j])
            distance = abs(d[j])
            most[j] = distance if distance > most[j] else most[j]
            wrong[j] += distance * 0.0  # NaN where it is not finite, which no bound holds
    return most.max() + wrong.sum(), np.float64(top.max()), np.float64(top.max()) - np.float64(least.min())


@loop
def _exponentials(values, top, width):
    """Turn values, in place, into exp(value - top)."""
    scale, squarings = 1.0, 0
    while width > WIDTH * scale:
        scale, squarings = 2.0 * scale, squarings + 1
    share, c = 1.0 / scale, EXPONENTIAL
    for i in range(values.size):
        z = (values[i] - top) * share + WIDTH / 2
        value = (((c[0] * z + c[1]) * z + c[2]) * z + c[3]) * z + c[4]
        values[i] = ((value * z + c[5]) * z + c[6]) * z + c[7]
    for _ in range(squarings):
        for i in range(values.size):
            values[i] *= values[i]


@loop
def _growth(u):
    """Return exp(u) - 1."""
    c = GROWTH
    value = ((c[0] * u + c[1]) * u + c[2]) * u + c[3]
    return (((value * u + c[4]) * u + c[5]) * u + c[6]) * u


@loop
def weigh_changes(base, other, divergence, length):
    out = np.empty(base.size, base.dtype)
    for row in range(divergence.size):
        b, x = base[row * length : (row + 1) * length], other[row * length : (row + 1) * length]
        o, factor = out[row * length : (row + 1) * length], divergence[row]
        for i in range(length):
            o[i] = abs(x[i] - b[i]) * factor
    return out


@loop
def _sum(values):
    """Return the sum: entry i is added to lane i % LANES, in order; the lanes by halving."""
    lanes = np.zeros(LANES)
    for i in range(0, values.size, LANES):
        u = values[i : i + LANES]
        for j in range(u.size):
            lanes[j] += u[j]
    half = LANES // 2
    while half >= 1:
        for j in range(half):
            lanes[j] += lanes[j + half]
        half //= 2
    return lanes[0]
