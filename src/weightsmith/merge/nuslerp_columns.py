"""Spherical interpolation by weights, column by column (Shoemake, 1985; NuSLERP of mergekit, 2024)."""

from __future__ import annotations

from dataclasses import replace

from weightsmith.arguments import Coefficients
from weightsmith.merge.nuslerp import cosines, factors, from_first, interpolated
from weightsmith.merge.nuslerp import prepare as prepare_whole
from weightsmith.method import Given, Matrices, Need, Statistics, Tile, method
from weightsmith.tensor.arrays import Array, namespace
from weightsmith.tensor.gram import column_gram
from weightsmith.tensor.sphere import interpolate_columns

STRIPE = 64  # columns turned at a time


def prepare(*, coefficients: tuple[float, ...] | None) -> Statistics:
    """Ask for the factors of the two tensors, which those without columns need."""
    return prepare_whole(coefficients=coefficients, scope="tensor")


def need(given: Given) -> Need:
    """Return what it holds and reads; only tensors without columns need their factors beforehand."""
    return Need(1, (1,) * len(given.ranks), reduced=False)


def by_columns(pair: Matrices, coefficients: tuple[float, ...] | None, tile: Tile) -> Array:
    """Return the interpolation of two matrices (rows, columns), each column seen as one vector."""
    first, second = pair[0], pair[1]
    if tile.precision == "float32":
        return interpolate_columns(
            first, second, *from_first(factors(cosines(column_gram(first, second)), coefficients))
        )
    merged, (rows, columns) = namespace(first).empty_like(first), first.shape
    for start in range(0, columns, STRIPE):
        stop = min(start + STRIPE, columns)
        turned = namespace(first).stack([m[:, start:stop].T for m in (first, second)]).reshape(2, -1)
        found = interpolated(turned, coefficients, "row", replace(tile, shape=(stop - start, rows)))
        merged[:, start:stop] = found.reshape(stop - start, rows).T
    return merged


def _vectors(finetuned: Array, *, coefficients: Coefficients = None, tile: Tile) -> Array:
    return interpolated(finetuned, coefficients, "tensor", tile)


@method(prepare=prepare, scope="tensor", reach="matrix", vectors=_vectors, matrices=need, least=2, most=2)
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
    Cost: one pass, two for long vectors; memory for the largest tensor, three times.

    Command:
        weightsmith merge nuslerp_columns --model A --model B --coefficients 0.7,0.3 --out OUT

    Example:
        >>> import numpy as np
        >>> nuslerp_columns([np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [1.0, 0.0]])]).round(4).tolist()
        [[0.7071, 2.0], [0.7071, 0.0]]
    """
    return by_columns(finetuned, coefficients, tile)
