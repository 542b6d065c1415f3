"""How much an entry matters to what its row says, seen as a distribution."""

from __future__ import annotations

from typing import Any

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, Plain, is_compiled, is_torch
from weightsmith.tensor.gram import row_gram
from weightsmith.tensor.rounding import code, rounded

LEAST_CHANCE = 1e-8

Host = np.ndarray[Any, np.dtype[Any]]


def row_importance(base: Array, other: Array, length: int, precision: str) -> Host:
    """Return |other - base| times the divergence of the row's softmax from that of the base's row.

    With P = softmax(other) + 1e-8 and Q = softmax(base) + 1e-8 over each row: |other - base| * sum P log(P / Q), each step
    rounded to the dtype and the precision. Formed by numpy, since exponentials of two libraries differ in their last bits.

    Args:
        base: (rows * length,).
        other: (rows * length,).
        length: Entries of a row.
        precision: See `rounding.rounded`.

    Returns:
        (rows * length,), dtype of base, on the host.
    """
    if precision != "float16" and is_compiled(base, other):
        return _row_importance(base, other, length, code(precision))
    b, x = (np.asarray(v.cpu() if is_torch(v) else v).reshape(-1, length) for v in (base, other))
    p, q = (_chances(v, precision) for v in (x, b))
    terms = rounded(p * rounded(np.log(rounded(p / q, precision)), precision), precision)
    divergence = _row_sums(terms).astype(b.dtype)
    found: Host = rounded(rounded(np.abs(x - b), precision) * rounded(divergence, precision), precision).reshape(-1)
    return found


def _row_importance(base: Host, other: Host, length: int, precision: int | None) -> Host:
    """Return the same by loops, apart from exponentials and logarithms."""
    chances = []
    for vector in (other, base):
        powers = compiled.below_row_maximum(vector, length)
        np.exp(powers, out=powers)
        compiled.chances_of_powers(powers, length, base.dtype.type(LEAST_CHANCE), precision)
        chances.append(powers)
    p, logarithms = chances
    compiled.ratios(p, logarithms, precision)
    np.log(logarithms, out=logarithms)
    found: Host = compiled.weigh_changes(base, other, p, logarithms, length, precision)
    return found


def _row_sums(rows: Host) -> Host:
    """Return the sum of each row (rows, 1), float64, in an order of its own: see `gram.row_gram`."""
    flat = rows.reshape(-1).view(Plain)
    found: Host = row_gram(np.stack([flat, np.ones_like(flat)]), rows.shape[1])[:, 1:2]
    return found


def _chances(rows: Host, precision: str) -> Host:
    """Return softmax(rows) + 1e-8 over the last axis."""
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    chances = powers / _row_sums(powers).astype(rows.dtype)
    found: Host = rounded(rounded(chances, precision) + rows.dtype.type(LEAST_CHANCE), precision)
    return found
