"""Multi-SLERP around a base (Goddard, 2024, with mergekit; no arXiv entry)."""

from __future__ import annotations

from weightsmith.arguments import Coefficients, Flag, NonNegative
from weightsmith.merge.multislerp import merged, prepare
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.sphere import add_step


@method(prepare=prepare, scope="tensor")
def multislerp_base(
    base: Array,
    task_vectors: Array,
    *,
    coefficients: Coefficients = None,
    normalize: Flag = True,
    eps: NonNegative = 1e-8,
    tile: Tile,
) -> Array:
    """Average task vectors as directions on a sphere, and their lengths apart.

    With w = c / sum_t c_t, and the task vectors seen as vectors tau_t of each tensor:

        m      = sum_t w_t tau_t / (|tau_t| + eps)
        result = base + m / |m| * sum_t w_t |tau_t|    (base + sum_t w_t tau_t where |m| <= eps and there are two)

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        coefficients: c_t, one per model; 1 each by default.
        normalize: Divide the coefficients by their sum; otherwise w = c.
        eps: What counts as no length.
        tile: Carries one factor per model, which follow from the inner products; gives the precision of each step.

    Returns:
        (n,), dtype of base.

    Raises:
        ArgumentError: Three or more directions cancel, or the coefficients to be normalized do.

    Differs from the paper: there is none; this is `multislerp` of mergekit where a base is given.
    Cost: two passes over T + 1 models, five in a narrow precision; memory for a tile.

    Command:
        weightsmith merge multislerp_base --base B --model A1 --model A2 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.array([1.0, 0.0]), np.array([0.0, 3.0])]
        >>> multislerp_base(np.ones(2), taus).round(4).tolist()
        [2.4142, 2.4142]
    """
    step = merged(task_vectors, tile.statistics)
    return add_step(base, step, tile.precision)
