"""Multi-SLERP (Goddard, 2024, with mergekit; no arXiv entry)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from weightsmith.arguments import Coefficients, Flag, NonNegative
from weightsmith.errors import ArgumentError
from weightsmith.method import Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array, blocked_sum, cast
from weightsmith.tensor.gram import Host, norms, symmetric
from weightsmith.tensor.rounding import rounded
from weightsmith.tensor.sphere import from_first
from weightsmith.tensor.tangent import Tangent
from weightsmith.tensor.vector import columns, gram


def prepare(*, coefficients: tuple[float, ...] | None, normalize: bool, eps: float) -> Statistics:
    """Ask for the inner products; return the factors f of the merged vector sum_t f_t x_t, or a `Tangent`."""
    precisions = set()

    def products(base: Array, vectors: Array, tile: Tile) -> Array:
        precisions.add(tile.precision)
        return gram(rounded(vectors, tile.precision))

    found = symmetric((yield Sums(products)))
    (precision,) = precisions
    weights = np.array(coefficients or [1.0] * len(found))
    if normalize:
        if weights.sum() == 0:
            raise ArgumentError("merge multislerp: coefficients", expected="a sum other than 0", got=str(coefficients))
        weights = rounded(weights, precision)
        weights = rounded(weights / rounded(weights.sum(keepdims=True), precision), precision)
    lengths = norms(found)
    if len(weights) == 1 or not lengths.any():
        return np.ones(len(weights))
    units = weights / np.where(lengths + eps > 0, lengths + eps, 1.0)
    length = math.sqrt(max(float(units @ found @ units), 0.0))
    if length > eps and precision != "float32":
        return (yield from _stepwise(weights, lengths, eps, precision))
    if length > eps:
        return units / length * (weights @ lengths)
    if len(weights) > 2:
        raise ArgumentError(
            "merge multislerp: coefficients",
            expected="directions that do not cancel",
            got=f"a weighted sum of unit vectors of length {length:g}",
            do="Give other coefficients",
        )
    return weights


def _stepwise(weights: Host, lengths: Host, eps: float, precision: str) -> Statistics:
    """Ask for what mergekit's form takes from the whole tensor, one after the other."""
    known = Tangent(rounded(weights, precision).tolist(), rounded(lengths, precision).tolist(), eps, precision)
    (size,) = yield Sums(lambda base, vectors, tile: gram(known.mean(vectors)[None]))
    known = replace(known, size=known.near(math.sqrt(size)))
    dots = yield Sums(lambda base, vectors, tile: columns(*map(plain_sum, known.products(vectors))))
    known = replace(known, dots=[known.near(d) for d in dots])
    (far,) = yield Sums(lambda base, vectors, tile: gram(known.tangent(vectors)[None]))
    return replace(known, far=known.near(math.sqrt(far)))


def merged(vectors: Array, known: Tangent | Sequence[float]) -> Array:
    """Return the merged vector, (T, n) -> (n,); the one vector itself, bit for bit, where there is but one."""
    if len(vectors) == 1:
        return vectors[0]
    return known.merged(vectors) if isinstance(known, Tangent) else from_first(vectors, known)


def plain_sum(vector: Array) -> Array:
    """Return the sum in blocks, (n,) -> (ceil(n / BLOCK),), float64."""
    return blocked_sum(cast(vector, "float64"))


@method(prepare=prepare, scope="tensor")
def multislerp(
    finetuned: Array,
    *,
    coefficients: Coefficients = None,
    normalize: Flag = True,
    eps: NonNegative = 1e-8,
    tile: Tile,
) -> Array:
    """Average models as directions on a sphere, and their lengths apart, in one step.

    With w = c / sum_t c_t, and the tensors seen as vectors x_t:

        m      = sum_t w_t x_t / (|x_t| + eps)
        result = m / |m| * sum_t w_t |x_t|            (sum_t w_t x_t where |m| <= eps and there are two)

    Args:
        finetuned: T models' tensors x_t, (T, n).
        coefficients: c_t, one per model; 1 each by default.
        normalize: Divide the coefficients by their sum; otherwise w = c.
        eps: What counts as no length.
        tile: Carries one factor per model, which follow from the inner products; gives the precision of each step.

    Returns:
        (n,), dtype of the inputs.

    Raises:
        ArgumentError: Three or more directions cancel, or the coefficients to be normalized do.

    Differs from the paper: there is none; mergekit's further step, the exponential of the weighted sum of tangents at m, is
    left out: that sum is 0 but for rounding, since the tangents are taken at the weighted mean itself. In a narrow precision,
    where the rounding shows, it is taken as there.
    Cost: two passes over T models, five in a narrow precision; memory for a tile.

    Command:
        weightsmith merge multislerp --model A1 --model A2 --model A3 --out OUT

    Example:
        >>> import numpy as np
        >>> multislerp([np.array([1.0, 0.0]), np.array([0.0, 3.0])]).round(4).tolist()
        [1.4142, 1.4142]
    """
    return merged(finetuned, tile.statistics)
