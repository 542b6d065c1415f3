"""Karcher mean of directions (Karcher, 2014, arXiv:1407.2087; for weights as in mergekit)."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from weightsmith.arguments import Coefficients, Count, NonNegative
from weightsmith.errors import ArgumentError
from weightsmith.method import Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.gram import Host, cosines, norms, symmetric
from weightsmith.tensor.sphere import Walk, from_first, mean_direction, start_walk
from weightsmith.tensor.vector import gram


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
    precision = next(iter(seen), "float32")
    if precision != "float32" and len(products) > 1:
        return (yield from _walk(start_walk(norms(products), weights, tol, precision), max_iter, tol))
    return _factors(products, weights, max_iter, tol)


def _walk(walk: Walk, max_iter: int, tol: float) -> Generator[Sums, Any, Walk]:
    """Ask, step by step, for what mergekit's iteration takes from the whole tensor."""
    if not walk.used:
        return walk
    length = yield from _length(walk.sum)
    walk = replace(walk, length=length if length >= tol else 0.0)
    while len(walk.arcs) < max_iter:
        arc = walk.next_arc((yield _sums(walk.products)), tol)
        if not arc.pull.any():
            break
        size = yield from _length(partial(walk.tangent, arc=arc))
        if size < tol:
            break
        arc = replace(arc, size=size)
        length = yield from _length(walk.after(arc).mean)
        walk = walk.after(replace(arc, length=length if length > tol else 1.0))
    return walk


def _length(of: Callable[[Array], Array]) -> Generator[Sums, Any, float]:
    """Ask for the length of a vector that is formed from the models' tensors."""
    (square,) = yield _sums(lambda finetuned: gram(of(finetuned)[None]))
    return math.sqrt(square)


def _sums(of: Callable[[Array], Array]) -> Sums:
    return Sums(lambda base, finetuned, tile: of(finetuned))


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
        tile: Carries one factor per model, or a walk of rounded steps, found from sums over the tensor.

    Returns:
        (n,), dtype of the inputs; the input itself, bit for bit, where all are equal.

    Raises:
        ArgumentError: A coefficient is negative, or all are 0.

    Differs from the paper: the mean is formed in the span of the inputs, from their inner products alone. mergekit has equal
    weights, and leaves out lengths up to tol, where here only 0 is left out. In its dialect's narrow dtypes each step is
    rounded and lengths are left out as there; sums are exact.
    Cost: two passes over T models; in narrow dtypes four, and three more for each step along the sphere, which repeat the
    steps before (none where the models' cosines round to 1, ten steps where models are far apart); memory for a tile.

    Command:
        weightsmith merge karcher --model A1 --model A2 --model A3 --out OUT

    Example:
        >>> import numpy as np
        >>> karcher([np.array([1.0, 0.0]), np.array([0.0, 3.0])]).round(4).tolist()
        [1.4142, 1.4142]
    """
    if isinstance(tile.statistics, Walk):
        return tile.statistics.result(finetuned)
    return from_first(finetuned, tile.statistics)
