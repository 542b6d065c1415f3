"""MagMax (Marczak et al., 2024, arXiv:2407.06322)."""

from __future__ import annotations

from weightsmith.arguments import Number
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.pick import largest_magnitude
from weightsmith.tensor.vector import add_scaled


@method()
def magmax(base: Array, task_vectors: Array, *, lambda_: Number = 1.0, tile: Tile) -> Array:
    """Take, entry by entry, the task vector that changed the most.

    result = base + lambda * tau_k,   k = the last t for which |tau_t| is largest, chosen entry by entry

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n), in the order of training where there is one.
        lambda_: Scale of the picked entries.
        tile: Where the tensors lie; see `method.Tile`.

    Returns:
        (n,), dtype of base.

    Differs from the paper: nothing; of equal magnitudes the later task's is taken, as in the authors' code.
    Cost: one pass over T + 1 models; memory for a tile.

    Command:
        weightsmith merge magmax --base B --model A1 --model A2 --lambda 0.5 --out OUT

    Example:
        >>> import numpy as np
        >>> magmax(np.zeros(3), [np.array([3.0, -1.0, 2.0]), np.array([1.0, -4.0, -2.0])]).tolist()
        [3.0, -4.0, -2.0]
    """
    return add_scaled(base, largest_magnitude(task_vectors), lambda_)
