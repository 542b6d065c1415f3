"""WiSE-FT: interpolation of base and fine-tune (Wortsman et al., 2021, arXiv:2109.01903)."""

from __future__ import annotations

from weightsmith.arguments import Number
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.vector import add_scaled


@method(least=1, most=1)
def wise_ft(base: Array, finetuned: Array, *, lambda_: Number = 0.5, tile: Tile) -> Array:
    """Interpolate between a base and one model trained from it.

    result = (1 - lambda) * base + lambda * finetuned = base + lambda * (finetuned - base)

    lambda = 0 and lambda = 1 give base and finetuned bit for bit.

    Args:
        base: The base model's tensor, (n,).
        finetuned: The model trained from it, (1, n).
        lambda_: alpha in the paper; 0.5 where nothing can be validated.
        tile: Where the tensors lie; see `method.Tile`.

    Returns:
        (n,), dtype of base.

    Differs from the paper: nothing; a zero-shot head must be among the tensors of both models.
    Cost: one pass over two models; memory for a tile.

    Command:
        weightsmith merge wise_ft --base B --model A --lambda 0.5 --out OUT

    Example:
        >>> import numpy as np
        >>> wise_ft(np.array([0.0, 2.0]), [np.array([1.0, 4.0])], lambda_=0.25).tolist()
        [0.25, 2.5]
    """
    if lambda_ in (0.0, 1.0):
        return finetuned[0] if lambda_ == 1.0 else base
    return add_scaled(base, finetuned[0] - base, lambda_)
