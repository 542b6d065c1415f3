"""Task arithmetic (Ilharco et al., 2022, arXiv:2212.04089)."""

from __future__ import annotations

from weightsmith.arguments import Coefficients, Number
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.vector import add_scaled, weighted_sum


@method()
def task_arithmetic(
    base: Array,
    task_vectors: Array,
    *,
    coefficients: Coefficients = None,
    lambda_: Number = 1.0,
    tile: Tile,
) -> Array:
    """Add task vectors to the base: addition, negation and analogy.

    result = base + lambda * sum_t c_t tau_t

    Negation (forgetting a task) is c = -1; the analogy "a + (b - c)" is c = 1, 1, -1.

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        coefficients: c_t, one per model, any sign, in the order given; 1 each by default.
        lambda_: Scale of the sum; 1 / T averages, the paper finds about 0.3 for 8 tasks; 0 gives the base.
        tile: Where the tensors lie; see `method.Tile`.

    Returns:
        (n,), dtype of base.

    Differs from the paper: nothing.
    Cost: one pass over T + 1 models; memory for a tile.

    Command:
        weightsmith merge task_arithmetic --base B --model A1 --model A2 --lambda 0.3 --out OUT

    Example:
        >>> import numpy as np
        >>> base, a, b = np.array([1.0, 1.0]), np.array([2.0, 1.0]), np.array([1.0, 3.0])
        >>> task_arithmetic(base, [a, b], coefficients=(1, -1), lambda_=0.5).tolist()
        [1.5, 0.0]
    """
    return add_scaled(base, weighted_sum(task_vectors, coefficients), lambda_)
