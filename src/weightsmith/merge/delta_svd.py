"""Low-rank task vectors (delta SVD), the baseline of Delta-CoMe (Ping et al., 2024, arXiv:2406.08903)."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from weightsmith.arguments import Choice, Coefficients, Number, Proportion, Seed, Whole
from weightsmith.method import Given, Matrices, Need, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import random_key
from weightsmith.tensor.spectral import ALGORITHMS, Factors, add_matrix, task_factors
from weightsmith.tensor.truncation import energy_rank
from weightsmith.tensor.vector import add_scaled, weighted_sum

OptionalOrdinal: TypeAlias = Annotated[int | None, Whole(1)]


def add_vectors(
    base: Array, task_vectors: Array, *, coefficients: tuple[float, ...] | None, lambda_: float, **_: Any
) -> Array:
    """Return base + lambda * sum_t c_t tau_t: vectors are not truncated. (n,), (T, n) -> (n,)."""
    return add_scaled(base, weighted_sum(task_vectors, coefficients), lambda_)


def need(given: Given) -> Need:
    """Return what it holds, as measured, and reads."""
    if given.factored is not None:
        return Need(1.5 + 4 * given.thin, given.whole(), factors=1)
    largest = min(given.rows, given.columns)
    rank = min(given.parameters["rank"] or largest, largest)
    return Need(1.7 + 5.6 * given.short + 2.9 * rank / largest, given.whole(), factors=1)


@method(reach="matrix", vectors=add_vectors, matrices=need)
def delta_svd(
    base: Array,
    task_vectors: Matrices,
    *,
    rank: OptionalOrdinal = None,
    energy: Proportion = 0.9,
    coefficients: Coefficients = None,
    lambda_: Number = 1.0,
    algorithm: Annotated[str, Choice(ALGORITHMS)] = "exact",
    seed: Seed = 0,
    tile: Tile,
) -> Array:
    """Add task vectors cut to low rank.

    With tau_t = U S V^T and k the rank, its singular values in falling order:

        result = base + lambda * sum_t c_t sum_{i <= k} s_i u_i v_i^T

    Each matrix's squared error is the sum of the squared singular values left out. Vectors (one axis) are not cut.

    Args:
        base: The base model's matrix, (m, n); tensors of more axes as (first, all others).
        task_vectors: finetuned - base, T times (m, n).
        rank: k, at most min(m, n); by default `energy` decides.
        energy: Share of the sum of squared singular values to keep, per matrix and task, with the smallest k that does.
        coefficients: c_t, one per model; 1 each by default.
        lambda_: Scale of the sum.
        algorithm: exact, or randomized: a sketch of k + 10 columns with two power iterations, whose expected error is at most
            (1 + sqrt(k / 9) + e sqrt(k + 10) / 10 * sqrt(min(m, n) - k)) ** 0.2 times the largest singular value left out.
            A flat spectrum yields other vectors of nearly equal weight. Where energy decides, the exact form runs.
        seed: Of the sketch; the tensor's name counts too.
        tile: Names the tensor.

    Returns:
        (m, n), dtype of base.

    Differs from the paper: directions whose singular value is below 1e-6 of the largest count as zero.
    Cost: T symmetric eigenproblems of size min(m, n) in float64, through the factors where a model is an adapter; memory
    for about 11 matrices. Same bytes on one machine; elsewhere to rounding.

    Command:
        weightsmith merge delta_svd --base B --model A --rank 64 --out OUT

    Example:
        >>> import numpy as np
        >>> delta_svd(np.zeros((2, 2)), [np.diag([3.0, 1.0])], rank=1).round(6).tolist()
        [[3.0, 0.0], [0.0, 0.0]]
    """
    factors = coefficients or (1.0,) * len(task_vectors)
    largest = min(base.shape)
    merged: Any = 0.0
    for index, factor in enumerate(factors):
        key = None if rank is None or algorithm == "exact" else random_key(seed, index, tile.name)
        found: Factors = task_factors(task_vectors, index, min(rank or largest, largest), key)
        k = energy_rank(found.values, energy) if rank is None else rank
        merged = merged + (found.left[:, :k] * (factor * found.values[:k])) @ found.right[:k]
    return add_matrix(base, merged, lambda_)
