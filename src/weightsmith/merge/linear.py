"""Weight averaging (Wortsman et al., 2022, arXiv:2203.05482)."""

from __future__ import annotations

from weightsmith.arguments import Coefficients, Flag
from weightsmith.errors import ArgumentError
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.mean import fused_sum, weighted_mean


@method(least=1)
def linear(
    finetuned: Array,
    *,
    coefficients: Coefficients = None,
    normalize: Flag = True,
    tile: Tile,
) -> Array:
    """Average models, each with its coefficient.

    result = sum_t c_t theta_t / sum_t c_t        (normalize)
    result = sum_t c_t theta_t                    (not normalize)

    An entry that is equal in all models comes back bit for bit when normalized.

    Args:
        finetuned: T models' tensors, (T, n).
        coefficients: c_t, one per model, in the order given; 1 each by default.
        normalize: Divide the coefficients by their sum; without it the model's scale changes where they do not add up to 1.
        tile: Where the tensors lie; see `method.Tile`.

    Returns:
        (n,), dtype of the inputs.

    Raises:
        ArgumentError: The coefficients add up to 0 and normalize is on.

    Differs from the paper: nothing; with equal coefficients the uniform soup. The greedy one is `weightsmith.greedy_soup`.
    Cost: one pass over T models; memory for a tile.

    Command:
        weightsmith merge linear --model A1 --model A2 --coefficients 0.7,0.3 --out OUT

    Example:
        >>> import numpy as np
        >>> linear([np.array([1.0, 2.0]), np.array([3.0, 6.0])], coefficients=(3, 1)).tolist()
        [1.5, 3.0]
    """
    factors = list(coefficients or [1.0] * len(finetuned))
    if not normalize:
        return fused_sum(finetuned, factors)
    if sum(factors) == 0:
        raise ArgumentError(
            "merge linear: coefficients", expected="a sum other than 0", got="0", do="Set normalize to false"
        )
    return weighted_mean(finetuned, factors)
