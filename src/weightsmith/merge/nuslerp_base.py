"""Spherical interpolation of task vectors by weights (Shoemake, 1985; NuSLERP of mergekit, 2024)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Coefficients
from weightsmith.merge.nuslerp import SCOPES, interpolated, prepare
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.sphere import add_step


@method(prepare=prepare, scope="parameter", least=2, most=2)
def nuslerp_base(
    base: Array,
    task_vectors: Array,
    *,
    coefficients: Coefficients = None,
    scope: Annotated[str, Choice(SCOPES)] = "tensor",
    tile: Tile,
) -> Array:
    """Interpolate two task vectors along the arc between them, by a weight for each.

    With t = c_2 / (c_1 + c_2), 0.5 where the sum is 0, and omega the angle between tau_1 and tau_2:

        result = base + (sin((1 - t) omega) * tau_1 + sin(t omega) * tau_2) / sin(omega)

    and base + (1 - t) tau_1 + t tau_2 where they are parallel or opposite.

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (2, n).
        coefficients: c_1 and c_2; 1 each by default.
        scope: What is seen as one vector: each tensor, or each row (the last axis).
        tile: Carries the factors that follow from the inner products, and the precision to which each step is rounded.

    Returns:
        (n,), dtype of base; base itself, bit for bit, where the step is 0.

    Differs from the paper: this is `nuslerp` of mergekit where a base is given.
    Cost: two passes, one for rows; memory for a tile.

    Command:
        weightsmith merge nuslerp_base --base B --model A1 --model A2 --coefficients 0.7,0.3 --out OUT

    Example:
        >>> import numpy as np
        >>> nuslerp_base(np.ones(2), [np.array([1.0, 0.0]), np.array([0.0, 1.0])]).round(4).tolist()
        [1.7071, 1.7071]
    """
    step = interpolated(task_vectors, coefficients, scope, tile)
    return add_step(base, step, tile.precision)
