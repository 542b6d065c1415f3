"""How much of a matrix is kept: its singular values, the ranks that rules choose, and the error of what is left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightsmith.tensor.arrays import Array, namespace
from weightsmith.tensor.spectral import NULL

_PART = 1 << 20  # elements of a product formed at a time


def singular_values(matrix: Array) -> Array:
    """Return all singular values, largest first; 0 for those that count as zero. (rows, columns), float64 -> (k,)."""
    xp = namespace(matrix)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values = xp.flip(xp.sqrt(xp.clip(xp.linalg.eigvalsh(gram), 0, None)), (0,))
    return values * (values > NULL * values[:1])


def singular_values_of_product(left: Array, right: Array) -> Array:
    """Return the singular values of left (rows, k) @ right (k, columns), numpy float64, by QR of the factors."""
    return np.linalg.svd(_core(left, right), compute_uv=False)


def norm_of_product(left: Array, right: Array) -> float:
    """Return the Frobenius norm of left (rows, k) @ right (k, columns), numpy float64, by QR of the factors."""
    return float(np.linalg.norm(_core(left, right)))


def _core(left: Array, right: Array) -> Array:
    outer, inner = np.linalg.qr(left)[1], np.linalg.qr(right.T)[1]
    return outer @ inner.T


def distance_to_product(matrix: Array, left: Array, right: Array) -> float:
    """Return the Frobenius norm of matrix (rows, columns) - left @ right; the product is formed in parts."""
    step, squares = max(1, _PART // matrix.shape[1]), 0.0
    for start in range(0, matrix.shape[0], step):
        part = matrix[start : start + step] - left[start : start + step] @ right
        squares += float((part * part).sum())
    return float(np.sqrt(squares))


def energy_rank(values: Array, energy: float) -> int:
    """Return the smallest rank whose squared singular values make up the share `energy` of all. values: (k,).

    >>> energy_rank(np.array([2.0, 1.0, 0.0]), 0.8), energy_rank(np.array([2.0, 1.0, 0.0]), 1.0)
    (1, 2)
    """
    sums = (values * values).cumsum(0)
    return 1 + int((sums < energy * sums[-1]).sum()) if len(values) else 0


def budget_ranks(spectra: Sequence[Array], costs: Sequence[int], budget: int) -> list[int]:
    """Return the rank of each matrix that a greedy choice gives under a common budget.

    Triplets of all matrices are taken by value^2 / cost, the largest first, as long as they fit; equal ones by the order of
    the matrices. What is kept of sum(value^2) falls short of the best choice by less than one triplet.

    Args:
        spectra: Singular values of each matrix, largest first, numpy.
        costs: What one triplet of each matrix costs: rows + columns.
        budget: For all costs together.

    >>> budget_ranks([np.array([3.0, 2.0]), np.array([2.5, 0.1])], [10, 10], 25)
    [1, 1]
    """
    owners = np.concatenate([np.full(len(s), i) for i, s in enumerate(spectra)])
    values = np.concatenate([np.asarray(s, np.float64) for s in spectra])
    density = values**2 / np.asarray(costs)[owners]
    ranks = [0] * len(spectra)
    for place in np.argsort(-density, kind="stable"):
        owner = int(owners[place])
        if values[place] > 0 and costs[owner] <= budget:
            ranks[owner] += 1
            budget -= costs[owner]
    return ranks
