"""Isotropic merging in common and task-specific subspaces, Iso-CTS (Marczak et al., 2025, arXiv:2502.04959)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Number, Real
from weightsmith.method import Given, Matrices, Need, Tile, method
from weightsmith.tensor.arrays import Array, namespace
from weightsmith.tensor.spectral import NULL, Factors, add_matrix, add_mean, joined, leading, polar, split, total, wide


def split_rank(rank: int, tasks: int, common: float) -> int:
    """Return how many directions each task gets: of the rank - floor(common * rank) left, a rounded T-th."""
    return min(round((rank - int(rank * common)) / tasks), rank // tasks)


def specific(task_vector: Array, shared: Array, others: Array, rank: int) -> Factors:
    """Return the leading triplets of a task vector without its part in the span of `shared`.

    Args:
        task_vector: (m, n), float64.
        shared: (m, k), orthonormal.
        others: (m, m - k), their orthonormal complement; without columns the task vector is projected instead.
        rank: At most min(m, n) - k.
    """
    if others.shape[1]:
        inner = leading(others.T @ task_vector, rank)
        found = Factors(others @ inner.left, inner.values, inner.right)
    else:
        found = leading(task_vector - shared @ (shared.T @ task_vector), rank)
    kept = found.values > NULL * namespace(task_vector).linalg.norm(task_vector)  # the rest is what rounding left
    return Factors(found.left * kept, found.values * kept, found.right * kept[:, None])


def need(given: Given) -> Need:
    """Return what it holds, as measured, and reads: for the sum, and then for each task's own directions."""
    count = len(given.ranks)
    each = split_rank(min(given.rows, given.columns), count, given.parameters["common"])
    return Need((5.5 if given.rows > given.columns else 3.5) + 7.5 * given.short, (1 + (each > 0),) * count)


@method(reach="matrix", vectors=add_mean, matrices=need)
def iso_cts(
    base: Array,
    task_vectors: Matrices,
    *,
    common: Annotated[float, Real(0, 1)] = 0.8,
    lambda_: Number = 1.0,
    tile: Tile,
) -> Array:
    """Merge in the directions that tasks share and in some of each task's own, all equally strong.

    With r = min(m, n), d = round((r - floor(common * r)) / T) and U_c S_c V_c^T the r - T d leading singular triplets of
    sum_t tau_t; U_t S_t V_t^T the d leading ones of (I - U_c U_c^T) tau_t; U = [U_1 .. U_T U_c], V alike, s all their
    singular values, and P(X) the polar factor:

        result = base + lambda * mean(s) * P(U) P(V)^T

    Vectors (one axis): base + lambda * mean of the task vectors.

    Args:
        base: The base model's matrix, (m, n); tensors of more axes as (first, all others).
        task_vectors: finetuned - base, T times (m, n).
        common: Share of the directions that are common; 1 gives Iso-C.
        lambda_: Scale, alpha in the paper, which tunes it; 1.5 is common for vision models.
        tile: Unused.

    Returns:
        (m, n), dtype of base.

    Differs from the paper: null directions (singular values below 1e-6 of the largest) stay zero, where a singular value
    decomposition would choose any; the mean counts them. Where rounding leaves tasks no direction, d is 0.
    Cost: two symmetric eigenproblems of size min(m, n) in float64 and small ones (m <= n), or T + 2; memory for
    about 11 matrices. Same bytes on one machine; elsewhere to rounding.

    Command:
        weightsmith merge iso_cts --base B --model A1 --model A2 --lambda 1.5 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.diag([4.0, 0.0, 1.5, 0.0]), np.diag([4.0, 0.0, 0.0, 1.0])]
        >>> iso_cts(np.zeros((4, 4)), taus, common=0.5).round(6).diagonal().tolist()
        [2.625, 0.0, 2.625, 2.625]
    """
    rows, columns = base.shape
    rank = min(rows, columns)
    each = split_rank(rank, len(task_vectors), common)
    shared, rest = split(total(task_vectors), rank - each * len(task_vectors))
    own = [specific(wide(task_vectors[t]), shared.left, rest, each) for t in range(len(task_vectors) if each else 0)]
    left, values, right = joined([*own, shared])
    apart = bool(own) and rest.shape[1] > 0  # the tasks' own are orthogonal to the shared ones already
    parts = [polar(joined(own).left)[0], shared.left] if apart else [polar(left)[0]]
    left = namespace(left).concatenate(parts, 1)
    return add_matrix(base, left @ polar(right)[0], lambda_ * float(values.sum()) / rank)
