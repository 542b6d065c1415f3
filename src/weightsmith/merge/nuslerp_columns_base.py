"""Spherical interpolation of task vectors by weights, column by column (Shoemake, 1985; NuSLERP of mergekit, 2024)."""

from __future__ import annotations

from weightsmith.arguments import Coefficients
from weightsmith.merge.nuslerp import interpolated
from weightsmith.merge.nuslerp_columns import by_columns, need, prepare
from weightsmith.method import Matrices, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.sphere import add_step


def _vectors(base: Array, task_vectors: Array, *, coefficients: Coefficients = None, tile: Tile) -> Array:
    return add_step(base, interpolated(task_vectors, coefficients, "tensor", tile), tile.precision)


@method(prepare=prepare, scope="tensor", reach="matrix", vectors=_vectors, matrices=need, least=2, most=2)
def nuslerp_columns_base(
    base: Array, task_vectors: Matrices, *, coefficients: Coefficients = None, tile: Tile
) -> Array:
    """Interpolate two task vectors along the arcs between their columns, by a weight for each.

    With t = c_2 / (c_1 + c_2), 0.5 where the sum is 0, and omega the angle between the columns x of tau_1 and y of tau_2:

        result = base + (sin((1 - t) omega) * x + sin(t omega) * y) / sin(omega)

    and base + (1 - t) x + t y where they are parallel or opposite. A tensor of one axis is one vector.

    Args:
        base: The base model's tensor, (rows, columns).
        task_vectors: finetuned - base, two of (rows, columns); a column runs along the first axis.
        coefficients: c_1 and c_2; 1 each by default.
        tile: Carries the inner products of tensors without columns, and the precision to which each step is rounded.

    Returns:
        (rows, columns), dtype of base; base itself, bit for bit, where the step is 0.

    Differs from the paper: this is `nuslerp_columns` on task vectors, mergekit's nuslerp_row_wise where a base is given.
    Cost: one pass, two for long vectors; memory for the largest tensor, four times.

    Command:
        weightsmith merge nuslerp_columns_base --base B --model A1 --model A2 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [1.0, 0.0]])]
        >>> nuslerp_columns_base(np.ones((2, 2)), taus).round(4).tolist()
        [[1.7071, 3.0], [1.7071, 1.0]]
    """
    step = by_columns(task_vectors, coefficients, tile)
    return add_step(base.reshape(-1), step.reshape(-1), tile.precision)
