"""Carrying fine-tuning over to another base (task analogies of Ilharco et al., 2022, arXiv:2212.04089)."""

from __future__ import annotations

from weightsmith.arguments import Number
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.vector import add_scaled, weighted_sum


@method(least=2)
def rebase(base: Array, finetuned: Array, *, lambda_: Number = 1.0, tile: Tile) -> Array:
    """Add to one base what fine-tuning changed in another.

    With theta_1 the old base, the first model given, and theta_2 .. theta_T its fine-tunes:

        result = base + lambda * sum_{t >= 2} (theta_t - theta_1)

    The differences are formed first, then added and scaled, and the base comes last; each step is rounded to float32 (float64
    if an input is). So where base and theta_1 are equal, T = 2 and lambda = 1, the result is theta_2 up to one such rounding.

    Args:
        base: The new base model's tensor, (n,).
        finetuned: The old base, then its fine-tunes, (T, n), T >= 2.
        lambda_: Scale of the sum; -1 takes the change out of a model that has it.
        tile: Where the tensors lie; see `method.Tile`.

    Returns:
        (n,), dtype of base.

    Differs from the paper: nothing; it is the analogy "new base + (fine-tune - old base)". There is one scale for all
    fine-tunes: merge them on the old base first to weigh them.
    Cost: one pass over T + 1 models; memory for a tile.

    Command:
        weightsmith merge rebase --base NEW --model OLD --model A1 --lambda 1.0 --out OUT

    Example:
        >>> import numpy as np
        >>> new, old, tuned = np.array([10.0, 20.0]), np.array([1.0, 2.0]), np.array([1.5, 1.0])
        >>> rebase(new, [old, tuned]).tolist()
        [10.5, 19.0]
    """
    return add_scaled(base, weighted_sum(finetuned[1:] - finetuned[0]), lambda_)
