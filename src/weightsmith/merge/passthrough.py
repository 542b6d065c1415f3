"""One model as it is, for stacks of layers and for scaling (no paper; an invention of mergekit, 2023, no arXiv entry)."""

from __future__ import annotations

from weightsmith.arguments import OptionalNumber
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array, like


@method(least=1, most=1)
def passthrough(finetuned: Array, *, scale: OptionalNumber = None, tile: Tile) -> Array:
    """Take one model, bit for bit or scaled.

    result = theta, or scale * theta where a scale is given

    Args:
        finetuned: The model's tensor, (1, n).
        scale: Factor; none by default, which copies.
        tile: Where the tensors lie; see `method.Tile`.

    Returns:
        (n,), dtype of the input.

    Differs from the paper: there is none; mergekit's method of this name.
    Cost: one pass over the model; memory for a tile.

    Command:
        weightsmith merge passthrough --model A --scale 0.5 --out OUT

    Example:
        >>> import numpy as np
        >>> passthrough([np.array([1.0, -2.0])], scale=0.5).tolist()
        [0.5, -1.0]
    """
    only = finetuned[0]
    return only if scale is None else only * like(scale, only)
