"""Spherical interpolation by weights, column by column (Shoemake, 1985; NuSLERP of mergekit, 2024)."""

from __future__ import annotations

from dataclasses import replace

from weightsmith.arguments import Coefficients
from weightsmith.merge.nuslerp import interpolated
from weightsmith.method import Matrices, Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array, namespace
from weightsmith.tensor.rounding import rounded
from weightsmith.tensor.vector import gram


def prepare() -> Statistics:
    """Ask for the inner products of the two tensors, (1, 3), which those without columns need."""
    found = yield Sums(lambda base, vectors, tile: gram(rounded(vectors, tile.precision)))
    return found[None]


def by_columns(pair: Matrices, coefficients: tuple[float, ...] | None, tile: Tile) -> Array:
    """Return the interpolation of two matrices (rows, columns), each column seen as one vector."""
    first, second = pair[0], pair[1]
    rows, columns = first.shape
    turned = namespace(first).stack([first.T, second.T]).reshape(2, -1)
    return interpolated(turned, coefficients, "row", replace(tile, shape=(columns, rows))).reshape(columns, rows).T


def _vectors(finetuned: Array, *, coefficients: Coefficients = None, tile: Tile) -> Array:
    return interpolated(finetuned, coefficients, "tensor", tile)


@method(prepare=prepare, scope="tensor", reach="matrix", vectors=_vectors, matrices=6, least=2, most=2)
def nuslerp_columns(finetuned: Matrices, *, coefficients: Coefficients = None, tile: Tile) -> Array:
    """Interpolate two models along the arcs between their columns, by a weight for each.

    With t = c_2 / (c_1 + c_2), 0.5 where the sum is 0, and omega the angle between the columns x and y:

        result = (sin((1 - t) omega) * x + sin(t omega) * y) / sin(omega)

    and (1 - t) x + t y where they are parallel or opposite. A tensor of one axis is one vector.

    Args:
        finetuned: Two models' tensors, (rows, columns); a column runs along the first axis.
        coefficients: c_1 and c_2; 1 each by default.
        tile: Carries the inner products of tensors without columns, and the precision to which each step is rounded.

    Returns:
        (rows, columns), dtype of the inputs.

    Differs from the paper: weights in place of t. This is what mergekit's nuslerp_row_wise does, which goes along the first axis.
    Cost: two passes; memory for the largest tensor, six times.

    Command:
        weightsmith merge nuslerp_columns --model A --model B --coefficients 0.7,0.3 --out OUT

    Example:
        >>> import numpy as np
        >>> nuslerp_columns([np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [1.0, 0.0]])]).round(4).tolist()
        [[0.7071, 2.0], [0.7071, 0.0]]
    """
    return by_columns(finetuned, coefficients, tile)
