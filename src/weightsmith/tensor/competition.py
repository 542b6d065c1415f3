"""Which entries win when tasks compete for them: intra- and inter-task balance, after PCB-Merging.

Formed in float64 from sums, products and quotients alone, so that the compiled and the eager form agree in every bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, cast, is_compiled, like, namespace

# exp(y) for y in [-1, 0]: squared so often, exp(y / 8), by its Taylor series about -1/16, highest power first; off by 1e-13.
SQUARINGS = 3
MIDDLE = 0.5 / 2**SQUARINGS
EXPONENTIAL = tuple(math.exp(-MIDDLE) / math.factorial(k) for k in range(7, -1, -1))
# tanh(z) = z * P(z^2), highest power first; off by 1e-13 at most for |z| < SMALL, as the products of task vectors mostly are.
SMALL = 1 / 32
SERIES = (-17 / 315, 2 / 15, -1 / 3, 1.0)
# tanh(z) = z * P(z^2) / Q(z^2) from its continued fraction, highest power first; off by 3e-12 at most for |z| < 1.
ABOVE, BELOW = (1.0, 378.0, 17325.0, 135135.0), (28.0, 3150.0, 62370.0, 135135.0)
LARGEST = 20.0  # from here on tanh is 1
HALVINGS = 5  # tanh of what is not below 1: halved so often, then doubled back by tanh(2 y) = 2 t / (1 + t^2)
SMALLEST_SUM = 1e-12  # of scores


def competition(vectors: Array, low: Array, high: Array, normalized: bool) -> Array:
    """Return the balance of each task's entries, up to one factor per call.

    With x_t = (min(max(|v_t|, low_t), high_t) - low_t) / (high_t - low_t), 0 where high_t = low_t:

        exp(T (x_t^2 - 1)) * tanh(v_t * sum_j v_j)                   or sum_j sign(v_j) x_j with `normalized`

    Args:
        vectors: (T, n).
        low: (T,), float64, on the host.
        high: (T,), float64, on the host.
        normalized: Sum signs times x instead of the entries.

    Returns:
        (T, n), dtype of vectors.
    """
    rates = np.divide(1.0, high - low, out=np.zeros_like(low), where=high > low)
    if is_compiled(vectors):
        return compiled.competition(vectors, low, high, rates, normalized)
    xp = namespace(vectors)
    wide = [cast(v, "float64") for v in vectors]
    sizes = [(xp.clip(xp.abs(v), lo, hi) - lo) * r for v, lo, hi, r in zip(wide, low, high, rates, strict=True)]
    total = xp.zeros_like(wide[0])
    for v, x in zip(wide, sizes, strict=True):
        total = total + (xp.sign(v) * x if normalized else v)
    found = [_exponential(x * x - 1.0, len(wide)) * _tanh(v * total) for v, x in zip(wide, sizes, strict=True)]
    return cast(xp.stack(found), str(vectors.dtype).rpartition(".")[2])


def _exponential(y: Array, power: int) -> Array:
    """Return exp(y) ^ power for y in [-1, 0]."""
    value = _horner(EXPONENTIAL, y / 2.0**SQUARINGS + MIDDLE)
    for _ in range(SQUARINGS):
        value = value * value
    result = value
    for _ in range(power - 1):
        result = result * value
    return result


def _tanh(z: Array) -> Array:
    xp = namespace(z)
    small = xp.clip(z, -SMALL, SMALL)
    slow = _ratio(xp.clip(z, -LARGEST, LARGEST) / 2.0**HALVINGS)
    for _ in range(HALVINGS):
        slow = 2.0 * slow / (1.0 + slow * slow)
    slow = xp.where(xp.abs(z) < 1.0, _ratio(xp.clip(z, -1.0, 1.0)), slow)
    return xp.where(xp.abs(z) < SMALL, small * _horner(SERIES, small * small), slow)


def _horner(coefficients: tuple[float, ...], x: Array) -> Array:
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def _ratio(z: Array) -> Array:
    square = z * z
    above, below = square * ABOVE[0] + ABOVE[1], square * BELOW[0] + BELOW[1]
    for p, q in zip(ABOVE[2:], BELOW[2:], strict=True):
        above, below = above * square + p, below * square + q
    return z * above / below


def scored_mean(vectors: Array, balance: Array, limits: Any, factors: Any) -> Array:
    """Return the mean of the clipped vectors, entry by entry, weighted by how far their balance exceeds its bound.

    With s_t = (max(b_t, bound_t) - bound_t) / (top_t - bound_t), 0 where top_t = bound_t, and v_t with its magnitude
    clipped to [low_t, high_t], zeros staying zero:

        sum_t s_t c_t v_t / max(sum_t s_t, 1e-12)

    Args:
        vectors: (T, n).
        balance: b, (T, n).
        limits: (4, T), float64: low, high, bound, top.
        factors: c, T numbers.

    Returns:
        (n,), dtype of vectors.
    """
    low, high, bound = (like(v, vectors) for v in limits[:3])
    span = like(np.where(limits[3] > limits[2], limits[3] - limits[2], 1.0), vectors)
    scale = like(factors, vectors)
    if is_compiled(vectors, balance):
        return compiled.scored_mean(vectors, balance, low, high, bound, span, scale)
    xp = namespace(vectors)
    total, scores = xp.zeros_like(vectors[0]), xp.zeros_like(vectors[0])
    for t in range(len(vectors)):
        score = (xp.maximum(balance[t], bound[t]) - bound[t]) / span[t]
        clipped = xp.sign(vectors[t]) * xp.minimum(xp.maximum(xp.abs(vectors[t]), low[t]), high[t])
        total, scores = total + score * scale[t] * clipped, scores + score
    return total / xp.maximum(scores, like(SMALLEST_SUM, vectors))
