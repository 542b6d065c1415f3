"""Isotropic merging in common subspace, Iso-C (Marczak et al., 2025, arXiv:2502.04959)."""

from __future__ import annotations

from weightsmith.arguments import Number
from weightsmith.method import Given, Matrices, Need, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.spectral import add_matrix, add_mean, polar, sum_factors, total


def need(given: Given) -> Need:
    """Return what it holds, as measured, and reads."""
    if given.factored is None:
        return Need(1 + 5.5 * given.short, (1,) * len(given.ranks), factors=1)
    return Need(1.6 + 4 * given.thin, (0,) * len(given.ranks), factors=1)


@method(reach="matrix", vectors=add_mean, matrices=need)
def iso_c(base: Array, task_vectors: Matrices, *, lambda_: Number = 1.0, tile: Tile) -> Array:
    """Add the sum of the task vectors with all its singular values made equal.

    With sum_t tau_t = U S V^T and r = min(m, n):

        result = base + lambda * (trace(S) / r) * U V^T

    Vectors (one axis): base + lambda * mean of the task vectors.

    Args:
        base: The base model's matrix, (m, n); tensors of more axes as (first, all others).
        task_vectors: finetuned - base, T times (m, n).
        lambda_: Scale, alpha in the paper, which tunes it; 1.5 is common for vision models.
        tile: Unused.

    Returns:
        (m, n), dtype of base.

    Differs from the paper: null directions of the sum (singular values below 1e-6 of the largest) stay zero, where a singular
    value decomposition would choose any; the mean still divides by r. Every matrix is merged, embeddings too.
    Cost: one symmetric eigenproblem of size min(m, n) in float64, through the factors where all models are adapters;
    memory for about 7 matrices. Same bytes on one machine; elsewhere to rounding.

    Command:
        weightsmith merge iso_c --base B --model A1 --model A2 --lambda 1.5 --out OUT

    Example:
        >>> import numpy as np
        >>> iso_c(np.zeros((2, 2)), [np.diag([3.0, 0.0]), np.diag([0.0, 1.0])]).round(6).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    factors = sum_factors(task_vectors)
    if factors is None:
        factor, values = polar(total(task_vectors))
    else:
        factor, values = factors.left @ factors.right, factors.values
    return add_matrix(base, factor, lambda_ * float(values.sum()) / min(base.shape))
