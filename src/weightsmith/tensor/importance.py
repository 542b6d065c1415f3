"""How much an entry matters to what its row says, seen as a distribution.

Two rows that are almost the same diverge by the small rest of a sum of large terms. So the sum is formed of terms that
are never negative, in float64; for rows near each other from sums, products and quotients alone, so that the compiled and
the eager form agree in every bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import LANES, Array, is_compiled, is_torch
from weightsmith.tensor.rounding import rounded

LEAST_CHANCE = 1e-8
NEAR = (
    1 / 32
)  # rows whose entries differ by no more are near each other: the series below are then off by 1e-11 at most
WIDTH = 0.25  # exp(y) for y in [-WIDTH, 0]: Taylor series about the middle, highest power first; off by 1e-12 at most
EXPONENTIAL = tuple(math.exp(-WIDTH / 2) / math.factorial(k) for k in range(7, -1, -1))
SQUARINGS = 8  # as many at most bring the exponential of a wider row from such a y
GROWTH = tuple(1 / math.factorial(k) for k in range(7, 0, -1))  # (exp(u) - 1) / u

Host = np.ndarray[Any, np.dtype[Any]]


def row_divergence(base: Array, other: Array, length: int, precision: str) -> Host:
    """Return the divergence of each row's softmax from that of the base's row.

    With P = softmax(other) + 1e-8 and Q = softmax(base) + 1e-8 over a row: sum P log(P / Q), which is
    sum (P log(P / Q) - P + Q), since P and Q have the same sum. Formed in float64 and rounded to the dtype; in a narrow
    precision as sum P log(P / Q), each step rounded to it. On the host, since exponentials of two libraries differ.

    Args:
        base: (rows * length,).
        other: (rows * length,).
        length: Entries of a row.
        precision: See `rounding.rounded`.

    Returns:
        (rows,), dtype of base, on the host; 0 for rows of one entry.
    """
    b, x = (np.asarray(v.cpu() if is_torch(v) else v).reshape(-1, length) for v in (base, other))
    with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are refused where they are stored
        if precision != "float32":
            return _narrow_divergence(b, x, precision)
        if is_compiled(base, other):
            found = compiled.near_divergence(base, other, length)
        else:
            found = _near_divergence(b.astype(np.float64), x.astype(np.float64))
        far = np.flatnonzero(found < 0)
        if len(far):
            found[far] = _far_divergence(b[far].astype(np.float64), x[far].astype(np.float64))
        return np.asarray(found, b.dtype)


def row_importance(base: Array, other: Array, divergence: Host, length: int, precision: str) -> Host:
    """Return |other - base| times the divergence of the row, each step rounded: (rows * length,), dtype of base, on the host."""
    if precision == "float32" and is_compiled(base, other, divergence):
        return np.asarray(compiled.weigh_changes(base, other, divergence, length))
    b, x = (np.asarray(v.cpu() if is_torch(v) else v).reshape(-1, length) for v in (base, other))
    found: Host = rounded(rounded(np.abs(x - b), precision) * rounded(divergence, precision)[:, None], precision)
    return found.reshape(-1)


def _near_divergence(base: Host, other: Host) -> Host:
    """Return the divergence of rows near each other, -1 for others; as `importance_loops.near_divergence`."""
    change = other - base
    down = base - base.max(axis=1, keepdims=True)
    width = -down.min(axis=1, keepdims=True)
    is_near = (np.abs(change).max(axis=1, keepdims=True) <= NEAR) & (width <= WIDTH * 2.0**SQUARINGS)
    change, down, width = (np.where(is_near, v, 0.0) for v in (change, down, width))
    squarings = sum((width > WIDTH * 2.0**k).astype(np.float64) for k in range(SQUARINGS))
    powers = _horner(EXPONENTIAL, down / 2.0**squarings + WIDTH / 2)
    for k in range(SQUARINGS):
        powers = np.where(squarings > k, powers * powers, powers)
    whole = _row_sums(powers)
    grown = _row_sums(powers * (_horner(GROWTH, change) * change)) / whole
    ratio = grown / (2.0 + grown)
    square = ratio * ratio
    shift = 2.0 * ratio * (1.0 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square / 9))))
    move = change - shift
    chance = powers * (1.0 / whole)
    step = chance * (_horner(GROWTH, move) * move)
    both = 2.0 * chance + 2.0 * LEAST_CHANCE + step
    h = step / both
    w = h * h
    terms = both * (w + (1.0 + h) * h * w * (1 / 3 + w * (1 / 5 + w / 7)))
    return np.where(is_near[:, 0], 0.0 if base.shape[1] == 1 else _row_sums(terms)[:, 0], -1.0)


def _horner(coefficients: tuple[float, ...], x: Host) -> Host:
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def _far_divergence(base: Host, other: Host) -> Host:
    """Return the divergence of any rows, by numpy's exponential and logarithm."""
    p, q = (powers / _row_sums(powers) for powers in (np.exp(v - v.max(axis=1, keepdims=True)) for v in (other, base)))
    gain, before = p - q, q + LEAST_CHANCE
    terms = (p + LEAST_CHANCE) * np.log1p(gain / before) - gain
    return _row_sums(terms)[:, 0] if base.shape[1] > 1 else np.zeros(len(base))


def _narrow_divergence(base: Host, other: Host, precision: str) -> Host:
    """Return the divergence with each step rounded to a precision."""
    p, q = (_narrow_chances(v, precision) for v in (other, base))
    terms = rounded(p * rounded(np.log(rounded(p / q, precision)), precision), precision)
    return np.asarray(rounded(_row_sums(terms).astype(base.dtype), precision)[:, 0])


def _narrow_chances(rows: Host, precision: str) -> Host:
    """Return softmax(rows) + 1e-8 over the last axis."""
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    chances = powers / _row_sums(powers).astype(rows.dtype)
    found: Host = rounded(rounded(chances, precision) + rows.dtype.type(LEAST_CHANCE), precision)
    return found


def _row_sums(rows: Host) -> Host:
    """Return the sum of each row (rows, 1), float64: entry i is added to lane i % LANES, in order; the lanes by halving."""
    lanes = np.zeros((len(rows), LANES))
    for start in range(0, rows.shape[1], LANES):
        part = rows[:, start : start + LANES]
        lanes[:, : part.shape[1]] += part
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes
