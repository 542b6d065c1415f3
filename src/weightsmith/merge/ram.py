"""RAM: reinforced agent merging (2026, arXiv:2601.13572)."""

from __future__ import annotations

from weightsmith.arguments import NonNegative
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.overlap import merge_changes


@method()
def ram(base: Array, task_vectors: Array, *, epsilon: NonNegative = 1e-5, tile: Tile) -> Array:
    """Add what only one model changed as it is, and the mean of what several changed.

    With C = {t : |tau_t| > epsilon}, entry by entry:

        result = base + (1 / |C|) * sum over C of tau_t        (base where C is empty)

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        epsilon: Up to this magnitude a change counts as none.
        tile: Gives the precision to which each step is rounded.

    Returns:
        (n,), dtype of base.

    Differs from the paper: written after mergekit's method of this name.
    Cost: one pass over T + 1 models; memory for a tile.

    Command:
        weightsmith merge ram --base B --model A1 --model A2 --out OUT

    Example:
        >>> import numpy as np
        >>> ram(np.zeros(3), [np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.0, 0.0])]).tolist()
        [2.0, 2.0, 0.0]
    """
    return merge_changes(base, task_vectors, epsilon, [1.0] * len(task_vectors), tile.precision, tile.precision)
