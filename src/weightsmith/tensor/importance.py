"""How much an entry matters to what its row says, seen as a distribution."""

from __future__ import annotations

from typing import Any

import numpy as np

from weightsmith.tensor.arrays import Array, is_torch
from weightsmith.tensor.rounding import rounded

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
    b, x = (np.asarray(v.cpu() if is_torch(v) else v).reshape(-1, length) for v in (base, other))
    p, q = (_chances(v, precision) for v in (x, b))
    terms = rounded(p * rounded(np.log(rounded(p / q, precision)), precision), precision)
    divergence = terms.sum(axis=1, keepdims=True, dtype=np.float64).astype(b.dtype)
    found: Host = rounded(rounded(np.abs(x - b), precision) * rounded(divergence, precision), precision).reshape(-1)
    return found


def _chances(rows: Host, precision: str) -> Host:
    """Return softmax(rows) + 1e-8 over the last axis."""
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    chances = powers / powers.sum(axis=1, keepdims=True, dtype=np.float64).astype(rows.dtype)
    found: Host = rounded(rounded(chances, precision) + rows.dtype.type(LEAST_CHANCE), precision)
    return found
