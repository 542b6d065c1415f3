"""Lossless differences: stored words minus the base's, entropy-coded; no paper."""

from __future__ import annotations

from weightsmith.encoding import Part, encoding
from weightsmith.method import Tile
from weightsmith.tensor.arrays import Array


@encoding(form="difference")
def lossless(finetuned: Array, base: Array, *, tile: Tile) -> Part:
    """Store the difference of stored numbers from the base's; a task comes back bit for bit.

    With the stored numbers read as unsigned words w, so that close numbers have close words:

        d_t = zigzag(w_t - w_base)                     wrapping; its bytes in planes, each coded by itself
        w_t = w_base + unzigzag(d_t)

    Tensors of every dtype, of other shapes than the base's and those that the base lacks are stored so by every encoding,
    where the encoding does not take them.

    Args:
        finetuned: Stored words of the task, (n,), unsigned.
        base: Those of the base, (n,), of the same dtype; zeros where there is none.
        tile: Not used.

    Returns:
        The two, which the form "difference" stores.

    Differs from the paper: there is none.
    Cost: one pass over base and task.

    Command:
        weightsmith pack lossless --base B --model math=A1 --model code=A2 --out BUNDLE

    Example:
        >>> import numpy as np
        >>> part = lossless.encode(np.array([3, 5], np.uint16), None, {}, Tile(), base=np.array([3, 4], np.uint16))
        >>> part.arrays["finetuned"].tolist()
        [3, 5]
    """
    return Part({"base": base, "finetuned": finetuned})
