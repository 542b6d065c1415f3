"""Spherical interpolation by weights (Shoemake, 1985; NuSLERP of mergekit, 2024)."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from weightsmith.arguments import Choice, Coefficients
from weightsmith.method import Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array, like, namespace
from weightsmith.tensor.gram import Host, row_gram
from weightsmith.tensor.rounding import rounded
from weightsmith.tensor.sphere import interpolate
from weightsmith.tensor.vector import gram

SCOPES = ("tensor", "row")
LEAST_LENGTH = 1e-7
COLINEAR = 1e-16
LEAST_SUM = 1e-6
SAME = 1e-14  # a sum of factors nearer to 1 than this is 1


def prepare(*, coefficients: tuple[float, ...] | None, scope: str) -> Statistics:
    """Ask for the inner products of the two tensors; return the factors that follow, see `factors`."""
    if scope == "row":  # given whole, so that their inner products need no pass of their own
        return None
    seen: set[str] = set()  # the precision, which only tiles tell

    def inner(base: Array, vectors: Array, tile: Tile) -> Array:
        seen.add(tile.precision)
        return gram(rounded(vectors, tile.precision))

    products = yield Sums(inner)
    return factors(cosines(products[None], *seen), coefficients, *seen)


def interpolated(vectors: Array, coefficients: tuple[float, ...] | None, scope: str, tile: Tile) -> Array:
    """Return the two vectors' interpolation, (2, n) -> (n,), each step rounded to the tile's precision."""
    vectors, found = rounded(vectors, tile.precision), tile.statistics
    if scope == "row":
        found = factors(_row_cosines(vectors, tile), coefficients, tile.precision)
    if tile.precision == "float32":  # from the first on, so that equal tensors come back bit for bit
        return interpolate(vectors, *from_first(found))
    parts = vectors.reshape(2, len(found[0]), -1)
    left, right, divisor = (like(f, vectors)[:, None] for f in found)
    mixed = rounded(parts[0] * left, tile.precision) + rounded(parts[1] * right, tile.precision)
    return rounded(rounded(mixed, tile.precision) / divisor, tile.precision).reshape(-1)


def cosines(products: Host, precision: str = "float32") -> Host:
    """Return the cosines of the angles, (units, 3) -> (units,)."""
    lengths = _lengths(products, precision)
    found: Host = products[:, 1] / lengths[:, 0] / lengths[:, 1]
    return found


def _row_cosines(vectors: Array, tile: Tile) -> Host:
    """Return the cosine of each row's angle, (2, rows * length) -> (rows,)."""
    products = row_gram(vectors, tile.row_length)
    if tile.precision == "float32":
        return cosines(products, tile.precision)
    lengths = like(_lengths(products, tile.precision).T, vectors)
    x, y = rounded(vectors.reshape(2, len(products), -1) / lengths[:, :, None], tile.precision)
    product = rounded(x * y, tile.precision).reshape(-1)
    ones = namespace(vectors).ones_like(product)
    return row_gram(namespace(vectors).stack([product, ones]), tile.row_length)[:, 1]


def _lengths(products: Host, precision: str) -> Host:
    """Return both lengths, (units, 3) -> (units, 2)."""
    return np.maximum(_near(np.sqrt(products[:, [0, 2]]), precision), LEAST_LENGTH)


def from_first(found: tuple[Host, Host, Host]) -> tuple[Host, Host]:
    """Return what left and right are together, less 1, and right; from what `factors` gives."""
    excess = (found[0] + found[1]) / found[2] - 1
    excess[np.abs(excess) < SAME] = 0.0
    return excess, found[1] / found[2]


def _near(value: Host, precision: str) -> Host:
    """Return float64 numbers rounded to a narrow precision, or as they are."""
    found: Host = value if precision == "float32" else rounded(value, precision).astype(np.float64)
    return found


def factors(
    cosine: Host, coefficients: tuple[float, ...] | None, precision: str = "float32"
) -> tuple[Host, Host, Host]:
    """Return left, right and divisor, of which left * x + right * y is divided by the last; each (units,)."""
    first, second = coefficients or (1.0, 1.0)
    t = 0.5 if abs(first + second) < LEAST_SUM else second / (first + second)
    cosine = np.clip(_near(cosine, precision), -1.0, 1.0)
    straight = 1 - _near(cosine * cosine, precision) <= COLINEAR
    omega = _near(np.arccos(np.where(straight, 0.0, cosine)), precision)
    left, right = (_near(np.sin(_near(share * omega, precision)), precision) for share in (1 - t, t))
    sine = np.where(straight, 1.0, _near(np.sin(omega), precision))
    return np.where(straight, 1 - t, left), np.where(straight, t, right), sine


@method(prepare=prepare, scope="parameter", least=2, most=2)
def nuslerp(
    finetuned: Array,
    *,
    coefficients: Coefficients = None,
    scope: Annotated[str, Choice(SCOPES)] = "tensor",
    tile: Tile,
) -> Array:
    """Interpolate two models along the arc between them, by a weight for each.

    With t = c_2 / (c_1 + c_2), 0.5 where the sum is 0, and omega the angle between the two tensors, or rows, x and y:

        result = (sin((1 - t) omega) * x + sin(t omega) * y) / sin(omega)

    and (1 - t) x + t y where they are parallel or opposite.

    Args:
        finetuned: Two models' tensors, (2, n).
        coefficients: c_1 and c_2; 1 each by default.
        scope: What is seen as one vector: each tensor, or each row (the last axis).
        tile: Carries the factors that follow from the inner products, and the precision to which each step is rounded.

    Returns:
        (n,), dtype of the inputs.

    Differs from the paper: weights in place of t. `slerp` interpolates linearly from a cosine of 0.9995 on, this one
    only where there is no angle at all.
    Cost: two passes, one for rows; memory for a tile.

    Command:
        weightsmith merge nuslerp --model A --model B --coefficients 0.7,0.3 --out OUT

    Example:
        >>> import numpy as np
        >>> nuslerp([np.array([1.0, 0.0]), np.array([0.0, 1.0])]).round(4).tolist()
        [0.7071, 0.7071]
    """
    return interpolated(finetuned, coefficients, scope, tile)
