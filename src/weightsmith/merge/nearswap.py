"""NearSwap (alchemonaut, 2024, with the model QuartetAnemoi-70B; no arXiv entry)."""

from __future__ import annotations

from weightsmith.arguments import NonNegative
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.swap import swap_near


@method(least=1, most=1)
def nearswap(base: Array, finetuned: Array, *, t: NonNegative = 0.0001, tile: Tile) -> Array:
    """Take over the entries of another model that are near the base's, and little of those that are far.

    Entry by entry:

        w      = min(1, t / max(|theta - base|, 1e-6))
        result = w * theta + (1 - w) * base

    Args:
        base: The base model's tensor, (n,).
        finetuned: The other model, (1, n).
        t: The distance up to which an entry is taken over whole; beyond it, the base moves by t. 0 gives the base.
        tile: Gives the precision to which each step is rounded.

    Returns:
        (n,), dtype of base.

    Differs from the paper: there is none; mergekit's formula, whose t has no default.
    Cost: one pass over two models; memory for a tile.

    Command:
        weightsmith merge nearswap --base B --model A --t 0.0001 --out OUT

    Example:
        >>> import numpy as np
        >>> nearswap(np.array([1.0, 1.0, 1.0]), [np.array([1.0, 1.125, 2.0])], t=0.25).tolist()
        [1.0, 1.125, 1.25]
    """
    return swap_near(base, finetuned[0], t, tile.precision)
