"""LIFT: principal weights after rank reduction (Liu et al., 2025, arXiv:2506.00772)."""

from __future__ import annotations

import numpy as np

from weightsmith.arguments import Ordinal
from weightsmith.localize.localizer import localizer
from weightsmith.matrices import Matrices
from weightsmith.method import Tile
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import is_among_largest, kth_magnitude
from weightsmith.tensor.spectral import leading, wide


def _none(finetuned: Array, *, filter_rank: int, budget_rank: int, tile: Tile) -> Array:
    """Select nothing of tensors of less than two axes, which stay frozen."""
    return np.zeros(finetuned.shape, bool)


@localizer(reach="matrix", vectors=_none, matrices=5)
def principal(
    finetuned: Matrices,
    *,
    filter_rank: Ordinal = 128,
    budget_rank: Ordinal = 128,
    tile: Tile,
) -> list[Array]:
    """Select the weights that are largest once a matrix is reduced to its leading singular directions.

    With W = U S V^T and W_k its first k = filter_rank terms:

        m = the min(budget_rank * (rows + columns), rows * columns) largest |W_k|; the earlier entry first when equal

    Args:
        finetuned: W of each model, (rows, columns): axes after the first count as columns. A base will do.
        filter_rank: k; at min(rows, columns) or more the mask is that of plain magnitude.
        budget_rank: The mask is as large as a LoRA of this rank.
        tile: Where the tensor lies.

    Returns:
        T masks (rows, columns), bool; nothing is selected of tensors of one axis.

    Differs from the paper: the exact decomposition alone, in float64 through the Gram matrix; no training, so no refreshed masks.
    The paper freezes embeddings and heads too: leave them out.
    Cost: one eigenproblem of the smaller side per matrix; five matrices in float64.
    Reference: LIFT the Veil for the Truth, section 3.

    Example:
        >>> import numpy as np
        >>> weights = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.2, -1.2, 1.2, -1.2]])
        >>> principal([weights], filter_rank=1, budget_rank=1)[0].sum(1).tolist()  # the larger entries of row 3 are not principal
        [4, 4, 0, 0]
    """
    found = []
    for index in range(len(finetuned)):
        matrix = wide(finetuned[index])
        rows, columns = matrix.shape
        reduced = matrix
        if filter_rank < min(rows, columns):
            left, values, right = leading(matrix, filter_rank)
            reduced = (left * values) @ right
        flat = np.ascontiguousarray(reduced).reshape(1, rows * columns)
        (kth,) = kth_magnitude(flat, [min(budget_rank * (rows + columns), rows * columns)])
        found.append(is_among_largest(flat, kth).reshape(rows, columns))
    return found
