"""Sets of low-rank factors in a common affine basis, one per row of the left and per column of the right factor.

Row i of the left factors of T pairs, or column i of the right ones, are T points of r numbers. With their mean and the p
leading directions around it (Eckart and Young), a pair is stored by p numbers per row and column. The error is the sum of
the squared singular values left out; with p >= T - 1, or p >= r, there is none.

The product left @ right stays the same when left is multiplied by a rotation Q and right by Q^T, but rows of left do not.
So all pairs are first turned towards the first one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightsmith.tensor.arrays import Array
from weightsmith.tensor.spectral import Factors

POINTS = 1 << 18  # numbers of all points of the positions that are decomposed at a time


def balanced(factors: Factors, rank: int) -> tuple[Array, Array]:
    """Return left (rows, rank) and right (rank, columns) with the product of the `rank` leading triplets.

    Each takes the square root of the singular values; zeros follow where there are fewer triplets than `rank`.
    """
    left, values, right = (x[..., :rank] if i < 2 else x[:rank] for i, x in enumerate(factors))
    root, missing = np.sqrt(values), rank - len(values)
    return np.pad(left * root, ((0, 0), (0, missing))), np.pad(right * root[:, None], ((0, missing), (0, 0)))


def turned(left: Array, right: Array, to_left: Array, to_right: Array) -> tuple[Array, Array]:
    """Return left @ Q and Q^T @ right with the orthogonal Q that brings both closest to another pair.

    Q minimizes |left Q - to_left|^2 + |Q^T right - to_right|^2: orthogonal Procrustes, by one decomposition (r, r).

    Args:
        left: (rows, r).
        right: (r, columns).
        to_left: (rows, r).
        to_right: (r, columns).
    """
    u, _, v = np.linalg.svd(left.T @ to_left + right @ to_right.T)
    rotation = u @ v
    return left @ rotation, rotation.T @ right


def affine_basis(points: Sequence[Array], size: int) -> tuple[Array, Array]:
    """Return the mean of T points at each position, and the leading directions around it.

    Args:
        points: T arrays (positions, r), float64.
        size: p, how many directions; at most min(r, T) are there.

    Returns:
        (positions, r) and (positions, min(p, r, T), r): the mean and orthonormal rows; zeros for directions without extent.
    """
    positions, r = points[0].shape
    mean: Array = sum(points[1:], points[0]) / len(points)
    count = min(size, r, len(points))
    basis = np.zeros((positions, count, r))
    step = max(1, POINTS // (r * len(points)))
    for start in range(0, positions if count else 0, step):
        around = np.stack([p[start : start + step] for p in points], 1) - mean[start : start + step, None]
        _, values, directions = np.linalg.svd(around, full_matrices=False)
        there = values > 1e-12 * np.abs(mean[start : start + step]).max(1, initial=0.0)[:, None]
        basis[start : start + step] = (directions * (there & (values > 0))[..., None])[:, :count]
    return mean, basis


def coefficients(points: Array, mean: Array, basis: Array) -> Array:
    """Return where points (positions, r) lie along the directions: (positions, p)."""
    return np.matmul(basis, (points - mean)[..., None])[..., 0]


def rebuilt(mean: Array, basis: Array, along: Array) -> Array:
    """Return mean (positions, r) + the combination `along` (positions, p) of the directions (positions, p, r).

    >>> rebuilt(np.ones((1, 2)), np.array([[[0.6, 0.8]]]), np.array([[5.0]])).tolist()
    [[4.0, 5.0]]
    """
    return mean + np.matmul(along[:, None, :], basis)[:, 0]
