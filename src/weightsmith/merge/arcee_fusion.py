"""Arcee Fusion (Arcee AI, 2024, with mergekit; no arXiv entry)."""

from __future__ import annotations

from weightsmith.method import KthLargest, Statistics, Tile, method
from weightsmith.tensor.arrays import Array, like, namespace
from weightsmith.tensor.importance import row_divergence, row_importance
from weightsmith.tensor.rounding import rounded

QUARTERS = (0.25, 0.5, 0.75)
REACH = 1.5  # of the distance between the quarters
LONG_ROW = 512  # from here on a row's divergence takes less than a hundredth of its memory


def _prepare() -> Statistics:
    known: dict[int, Array] = {}

    def ranks(size: int) -> list[int]:
        return [size - int(share * (size - 1)) for share in QUARTERS]

    def importance(base: Array, finetuned: Array, tile: Tile) -> Array:
        return _importance(base, finetuned[0], tile, known)[None]

    found = yield KthLargest(ranks, importance, located=False)
    return [float(kth.value[0, 0]) for kth in found], known


def _importance(base: Array, other: Array, tile: Tile, known: dict[int, Array]) -> Array:
    """Return the importances of a tile of whole rows; `known` keeps the divergences of long rows, by the tile's start."""
    length = tile.row_length
    divergence = known.get(tile.start)
    if divergence is None or len(divergence) * length != base.shape[0]:
        divergence = row_divergence(base, other, length, tile.precision)
        if length >= LONG_ROW:
            known[tile.start] = divergence
    return row_importance(base, other, divergence, length, tile.precision)


@method(prepare=_prepare, scope="tensor", reach="row", least=1, most=1)
def arcee_fusion(base: Array, finetuned: Array, *, tile: Tile) -> Array:
    """Take over the entries of another model that matter far more than most, by their rows' distributions.

    With P and Q the softmax, plus 1e-8, of the model's and the base's row, q_1, q_2, q_3 the quarters of the tensor's
    sorted importances s (at places trunc(k / 4 * (n - 1))), entry by entry:

        s      = |theta - base| * sum over the row of P log(P / Q)
        result = theta where s >= q_2 + 1.5 (q_3 - q_1), else base

    Args:
        base: The base model's tensor, (n,).
        finetuned: The other model, (1, n).
        tile: Carries the quarters, what is known of rows, and the precision to which each step is rounded.

    Returns:
        (n,), dtype of base.

    Differs from the paper: there is none. mergekit takes the quarters of a random sample where a tensor has more than a
    million entries; here they are exact. A tensor of rows of one entry is taken over whole, as there, and so is one whose
    rows are so uneven (one entry greater than the others by 50) that all divergences are 0 in the working precision.
    Cost: mostly two passes, an exponential and a quotient per entry in one; memory for a tile of whole rows and, of rows
    longer than 511, a number each.

    Command:
        weightsmith merge arcee_fusion --base B --model A --out OUT

    Example:
        >>> import numpy as np
        >>> base = np.zeros((4, 3))
        >>> other = base + np.array([[0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1], [2.0, -1.0, 0]])
        >>> arcee_fusion(base, [other])[3].tolist()
        [2.0, -1.0, 0.0]
    """
    quarters, known = tile.statistics
    low, middle, high = (like([v], base) for v in quarters)
    spread = rounded(rounded(high - low, tile.precision) * REACH, tile.precision)
    bound = rounded(middle + spread, tile.precision)
    scores = like(_importance(base, finetuned[0], tile, known), base)
    taken = finetuned[0]
    if tile.precision != "float32":
        taken = base + rounded(taken - base, tile.precision)
    return namespace(base).where(scores >= bound, taken, base)
