"""Spherical interpolation of two models, tensor by tensor (Shoemake, 1985; for weights as in model soups' practice)."""

from __future__ import annotations

import math

from weightsmith.arguments import Number
from weightsmith.method import Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.vector import add_scaled, combine, gram

LINEAR_ABOVE = 0.9995


def _products(base: Array, pair: Array, tile: Tile) -> Array:
    return gram(pair)


def _prepare() -> Statistics:
    return (yield Sums(_products))


@method(prepare=_prepare, scope="tensor", least=2, most=2)
def slerp(finetuned: Array, *, t: Number = 0.5, tile: Tile) -> Array:
    """Interpolate two models along the arc between them.

    With omega the angle between the two tensors, seen as vectors a and b:

        result = sin((1 - t) omega) / sin(omega) * a + sin(t omega) / sin(omega) * b

    and a + t (b - a) where |cos(omega)| > 0.9995 (nearly parallel or opposite) or a tensor is zero. t = 0 and t = 1 give
    a and b bit for bit.

    Args:
        finetuned: Two models' tensors, (2, n).
        t: Position between the first (0) and the second (1) model; beyond them extrapolates.
        tile: Carries the three inner products of the tensor.

    Returns:
        (n,), dtype of the inputs.

    Differs from the paper: a and b keep their lengths, so the length of the result moves between theirs.
    Cost: two passes (inner products, then the sum); memory for a tile.

    Command:
        weightsmith merge slerp --model A --model B --t 0.4 --out OUT

    Example:
        >>> import numpy as np
        >>> slerp([np.array([1.0, 0.0]), np.array([0.0, 1.0])], t=0.5).round(4).tolist()
        [0.7071, 0.7071]
    """
    first, second = finetuned[0], finetuned[1]
    if t in (0.0, 1.0):
        return second if t == 1.0 else first
    aa, ab, bb = (float(x) for x in tile.statistics)
    length = math.sqrt(aa) * math.sqrt(bb)
    cosine = ab / length if length > 0 else 1.0
    if abs(cosine) > LINEAR_ABOVE:
        return add_scaled(first, second - first, t)
    omega = math.acos(cosine)
    return combine(first, second, math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega))
