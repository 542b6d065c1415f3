"""Flag aggregator (Almasi et al., 2023, arXiv:2302.05865)."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from weightsmith.arguments import Choice, Number, Ordinal
from weightsmith.method import Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.gram import Host, cosines, norms, symmetric
from weightsmith.tensor.vector import add_scaled, gram, weighted_sum

EPSILON = 1e-7  # added to the squared sine, as in the authors' code
NEGLIGIBLE = 1e-12  # share of the largest eigenvalue below which there is no direction


def _prepare(*, rank: int, iterations: int) -> Statistics:
    products = yield Sums(lambda base, task_vectors, tile: gram(task_vectors))
    return _factors(symmetric(products), rank, iterations)


def _factors(products: Host, rank: int, iterations: int) -> Host:
    """Return the factors f of the aggregate sum_t f_t tau_t, (T,)."""
    lengths = norms(products)
    used = lengths > 0
    factors = np.zeros(len(lengths))
    if used.any():
        cosine = cosines(products)[np.ix_(used, used)]
        basis = _subspace(cosine, rank, iterations)
        mean = basis @ (basis.T @ cosine.mean(1))
        factors[used] = np.median(lengths[used]) * mean / lengths[used]
    return factors


def _subspace(cosine: Host, rank: int, iterations: int) -> Host:
    """Return A (T, r) with Y = G A orthonormal, for G the unit vectors whose inner products are given."""
    weights = np.ones(len(cosine))
    basis = np.zeros((len(cosine), 0))
    for _ in range(iterations):
        values, vectors = np.linalg.eigh(weights[:, None] * cosine * weights)
        kept = np.flatnonzero(values > NEGLIGIBLE * values[-1])[::-1][:rank]
        basis = weights[:, None] * vectors[:, kept] / np.sqrt(values[kept])
        reached = np.square(cosine @ basis).sum(1)
        weights = (np.maximum(1 - reached, 0.0) + EPSILON) ** -0.25
    return basis


@method(prepare=_prepare, scope="parameter")
def flag(
    base: Array,
    task_vectors: Array,
    *,
    rank: Ordinal = 1,
    iterations: Ordinal = 10,
    lambda_: Number = 1.0,
    scope: Annotated[str, Choice(("model", "tensor"))] = "model",
    tile: Tile,
) -> Array:
    """Aggregate task vectors through the subspace that most of them share, so that outliers weigh little.

    With g_t = tau_t / |tau_t| and w = 1 to begin with:

        Y      <- the `rank` first left singular vectors of [w_1 g_1, ..., w_T g_T]
        w_t    <- (1 - |Y' g_t|^2 + 1e-7) ^ (-1/4)                               both, `iterations` times
        result =  base + lambda * median_t |tau_t| * (1 / T) * sum_t Y Y' g_t

    Task vectors of zeros take no part: not in the median, not in T.

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        rank: Dimensions of the subspace, at most the number of independent task vectors.
        iterations: How often the subspace is found; 1 weighs all alike.
        lambda_: Scale of the aggregate.
        scope: What lengths and subspace refer to: the whole model, or each tensor.
        tile: Carries one factor per task vector.

    Returns:
        (n,), dtype of base.

    Differs from the paper: its code starts at random, which in many dimensions weighs all alike, so that its one iteration is
    the first here; adds (1 / r) Y Y' g_t without lengths, where here the median length is restored; no pairwise differences.
    Cost: two passes over T + 1 models; memory for a tile.

    Command:
        weightsmith merge flag --base B --model A1 --model A2 --model A3 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.array([0.0, 9.0])]
        >>> flag(np.zeros(2), taus).round(4).tolist()
        [0.6667, 0.0]
    """
    return add_scaled(base, weighted_sum(task_vectors, tile.statistics), lambda_)
