"""Karcher mean of directions (Karcher, 2014, arXiv:1407.2087; for weights as in mergekit)."""

from __future__ import annotations

import numpy as np

from weightsmith.arguments import Coefficients, Count, NonNegative
from weightsmith.errors import ArgumentError
from weightsmith.method import Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.gram import Host, cosines, norms, symmetric
from weightsmith.tensor.sphere import mean_direction, plan_path, walk
from weightsmith.tensor.vector import add_scaled, gram, weighted_sum

SAME = 1e-14  # a sum of factors nearer to 1 than this is 1


def _prepare(*, coefficients: tuple[float, ...] | None, max_iter: int, tol: float) -> Statistics:
    seen: set[str] = set()  # the precision, which only tiles tell

    def inner(base: Array, finetuned: Array, tile: Tile) -> Array:
        seen.add(tile.precision)
        return gram(finetuned)

    products = symmetric((yield Sums(inner)))
    weights = np.array(coefficients or [1.0] * len(products))
    if (weights < 0).any() or weights.sum() == 0:
        raise ArgumentError(
            "merge karcher: coefficients", expected="no negative number and a positive sum", got=str(coefficients)
        )
    factors = _factors(products, weights, max_iter, tol)
    return factors, {p: plan_path(products, weights, max_iter, tol, p) for p in seen - {"float32"}}


def _factors(products: Host, weights: Host, max_iter: int, tol: float) -> Host:
    """Return the factors f of result = sum_t f_t x_t, (T,)."""
    lengths = norms(products)
    used = (lengths > 0) & (weights > 0)
    factors = np.zeros(len(weights))
    if used.any():
        mean = mean_direction(cosines(products)[np.ix_(used, used)], weights[used], max_iter, tol)
        factors[used] = mean / lengths[used] * (weights @ lengths) / weights.sum()
    return factors


@method(prepare=_prepare, scope="tensor")
def karcher(
    finetuned: Array,
    *,
    coefficients: Coefficients = None,
    max_iter: Count = 10,
    tol: NonNegative = 1e-5,
    tile: Tile,
) -> Array:
    """Average models as directions on a sphere, and their lengths apart.

    With u_t the tensors seen as vectors of length 1 and w = c / sum(c):

        m      <- sum_t w_t u_t / |.|                                                      to begin with
        g      =  sum_t w_t angle(m, u_t) / sin(angle(m, u_t)) * (u_t - cos(angle(m, u_t)) m)
        m      <- cos |g| m + sin |g| g / |g|                                   until |g| < tol, at most max_iter times
        result =  m * sum_t w_t |x_t|

    A tensor of zeros has no direction, and a share in the mean length only. Where the others cancel, m is the first's.

    Args:
        finetuned: T models' tensors x_t, (T, n).
        coefficients: c_t, one per model, not negative; 1 each by default.
        max_iter: Most steps along the sphere; 0 gives the direction of the sum of directions.
        tol: The step, in radians, that counts as none.
        tile: Carries one factor per model, which follow from the inner products of the tensors.

    Returns:
        (n,), dtype of the inputs; the input itself, bit for bit, where all are equal.

    Raises:
        ArgumentError: A coefficient is negative, or all are 0.

    Differs from the paper: the mean is formed in the span of the inputs, from their inner products alone. mergekit has equal
    weights, and leaves out lengths up to tol, where here only 0 is left out. In its dialect's narrow dtypes each step is
    rounded as there, but angles follow from exact inner products: where directions differ much, last digits do too.
    Cost: two passes over T models; memory for a tile.

    Command:
        weightsmith merge karcher --model A1 --model A2 --model A3 --out OUT

    Example:
        >>> import numpy as np
        >>> karcher([np.array([1.0, 0.0]), np.array([0.0, 3.0])]).round(4).tolist()
        [1.4142, 1.4142]
    """
    factors, paths = tile.statistics
    if tile.precision != "float32":
        return walk(finetuned, paths[tile.precision], tile.precision)
    first, excess = finetuned[0], float(factors.sum()) - 1
    parts = finetuned - first
    parts[0] = first
    return add_scaled(first, weighted_sum(parts, [0.0 if abs(excess) < SAME else excess, *factors[1:]]), 1.0)
