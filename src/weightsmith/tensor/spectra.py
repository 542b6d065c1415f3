"""What singular values and vectors tell: effective rank, how one matrix lies in another's space, interference of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from weightsmith.tensor.arrays import Array
from weightsmith.tensor.spectral import Factors

RESIDUAL = 0.05  # of a matrix's length: what its leading directions may leave out


def effective_rank(values: Array) -> float:
    """Return exp(entropy) of singular values as shares of their sum (Roy and Vetterli, 2007); 0 where all are 0.

    >>> effective_rank(np.array([2.0, 2.0, 0.0])).__round__(12)
    2.0
    """
    total = float(values.sum())
    if total <= 0:
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def stable_rank(values: Array) -> float:
    """Return the sum of squared singular values over the largest square; 0 where all are 0. Largest first.

    >>> stable_rank(np.array([2.0, 1.0, 1.0]))
    1.5
    """
    return float((values**2).sum() / values[0] ** 2) if len(values) and values[0] > 0 else 0.0


def dominant(values: Array, residual: float = RESIDUAL) -> int:
    """Return the least k for which the singular values after the k-th have at most `residual` of the length of all.

    >>> dominant(np.array([10.0, 1.0, 0.1])), dominant(np.zeros(2))
    (2, 0)
    """
    squares = values**2
    left = np.concatenate([squares[::-1].cumsum()[::-1], [0.0]])
    return int(np.argmax(left <= residual**2 * left[0]))


def alignment(space: Array, matrix: Array) -> float | None:
    """Return |P M| / |M| with P the projection on orthonormal columns; None for a matrix of zeros.

    Args:
        space: (rows, k), orthonormal columns.
        matrix: (rows, columns).
    """
    length = float(np.linalg.norm(matrix))
    return min(1.0, float(np.linalg.norm(space.T @ matrix)) / length) if length > 0 else None


def singular_interference(parts: Sequence[Factors]) -> float:
    """Return the sum of magnitudes of (U^T U - 1) S (V V^T - 1), U, S, V those of all tasks side by side (Gargiulo et al., 2024).

    0 where all left vectors are orthogonal, or all right ones.

    Args:
        parts: For each task its leading triplets, left (rows, k), values (k,), right (k, columns).
    """
    left = np.concatenate([p.left for p in parts], 1)
    right = np.concatenate([p.right for p in parts])
    values = np.concatenate([p.values for p in parts])
    one: Any = np.eye(len(values))
    return float(np.abs(((left.T @ left - one) * values) @ (right @ right.T - one)).sum())
