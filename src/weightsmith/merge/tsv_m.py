"""Task singular vectors, TSV-Merge (Gargiulo et al., 2024, arXiv:2412.00081)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Number, Seed
from weightsmith.method import Given, Matrices, Need, Tile, method
from weightsmith.tensor.arrays import Array, cast
from weightsmith.tensor.select import random_key
from weightsmith.tensor.spectral import ALGORITHMS, add_matrix, add_mean, joined, polar, task_factors


def need(given: Given) -> Need:
    """Return what it holds, as measured, and reads."""
    held = 1.5 + 7.3 * given.short if given.factored is None else 0.6 + 4 * given.thin
    return Need(held, given.whole(), factors=1)


@method(reach="matrix", vectors=add_mean, matrices=need)
def tsv_m(
    base: Array,
    task_vectors: Matrices,
    *,
    lambda_: Number = 1.0,
    algorithm: Annotated[str, Choice(ALGORITHMS)] = "exact",
    seed: Seed = 0,
    tile: Tile,
) -> Array:
    """Add the leading singular vectors of every task, made orthogonal between the tasks.

    With U_t S_t V_t^T the k = max(1, floor(min(m, n) / T)) leading singular triplets of tau_t, U = [U_1 .. U_T] and V alike
    side by side, S = diag(S_1 .. S_T), and P(X) the nearest orthonormal matrix (polar factor) of X:

        result = base + lambda * P(U) S P(V)^T

    Vectors (one axis): base + lambda * mean of the task vectors.

    Args:
        base: The base model's matrix, (m, n); tensors of more axes as (first, all others).
        task_vectors: finetuned - base, T times (m, n).
        lambda_: Scale, alpha in the paper, which uses 1.
        algorithm: exact, or randomized: the triplets from a sketch of k + 10 columns with two power iterations, whose expected
            error is at most (1 + sqrt(k / 9) + e sqrt(k + 10) / 10 * sqrt(min(m, n) - k)) ** 0.2 times the largest singular
            value left out (a flat spectrum yields other vectors of nearly equal weight). It pays from about six models on.
        seed: Of the sketch; the tensor's name counts too.
        tile: Names the tensor.

    Returns:
        (m, n), dtype of base.

    Differs from the paper: P(X) is zero in null directions (singular values below 1e-6 of the largest), where a singular
    value decomposition would choose any; k is at least 1. Every matrix is merged, embeddings and projections too.
    Cost: T + 2 symmetric eigenproblems of size min(m, n) in float64, through the factors where a model is an adapter;
    memory for about 9 matrices. Same bytes on one machine; elsewhere to rounding.

    Command:
        weightsmith merge tsv_m --base B --model A1 --model A2 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.diag([3.0, 0.0, 0.1]), np.diag([0.0, 2.0, 0.0])]
        >>> tsv_m(np.zeros((3, 3)), taus).round(6).tolist()
        [[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
    """
    rank = max(1, min(base.shape) // len(task_vectors))
    sketch = algorithm == "randomized"
    keys = [random_key(seed, t, tile.name) if sketch else None for t in range(len(task_vectors))]
    left, values, right = joined([task_factors(task_vectors, t, rank, key) for t, key in enumerate(keys)])
    left, right = polar(left)[0], polar(right)[0]
    dtype = str(base.dtype).removeprefix("torch.")
    return add_matrix(base, cast(left * values, dtype) @ cast(right, dtype), lambda_)
