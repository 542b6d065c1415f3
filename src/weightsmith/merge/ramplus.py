"""RAM+: reinforced agent merging with rescaled unique changes (2026, arXiv:2601.13572)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, NonNegative, Number
from weightsmith.method import Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.overlap import count_changes, merge_changes


def _prepare(*, epsilon: float) -> Statistics:
    def counts(base: Array, task_vectors: Array, tile: Tile) -> Array:
        return count_changes(task_vectors, epsilon, tile.precision).reshape(1, -1).astype("float64")

    found = yield Sums(counts)
    return found.reshape(2, -1)


@method(prepare=_prepare, scope="parameter")
def ramplus(
    base: Array,
    task_vectors: Array,
    *,
    r: Number = 0.1,
    alpha: NonNegative = 0.2,
    epsilon: NonNegative = 1e-5,
    scope: Annotated[str, Choice(("tensor", "model"))] = "tensor",
    tile: Tile,
) -> Array:
    """As `ram`, with what only one model changed made larger, the more the model shares with others.

    With shared_t and unique_t the number of entries that model t changes with others and alone:

        f_t    = 1 + r * min(alpha, shared_t / unique_t)
        result = base + f_t tau_t                        where model t alone changed the entry
        result = base + (1 / |C|) * sum over C of tau_t   where several did, as in `ram`

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        r: Strength of the rescaling.
        alpha: Most that the ratio counts.
        epsilon: Up to this magnitude a change counts as none.
        scope: Over what the entries are counted: each tensor, as mergekit's ramplus_tl, or the whole model.
        tile: Carries the counts, and the precision to which each step is rounded.

    Returns:
        (n,), dtype of base.

    Differs from the paper: written after mergekit's ramplus_tl, which leaves the sum in float32 in any precision, as here.
    Cost: two passes over T + 1 models; memory for a tile.

    Command:
        weightsmith merge ramplus --base B --model A1 --model A2 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.0, 0.0])]
        >>> ramplus(np.zeros(3), taus, r=0.5, alpha=1.0).tolist()
        [2.0, 3.0, 0.0]
    """
    factors = []
    for shared, unique in tile.statistics.T:
        least = max(unique, epsilon)
        factors.append(1 + r * (alpha if shared > alpha * least else shared / (least or 1)))
    return merge_changes(base, task_vectors, epsilon, factors, tile.precision, "float32")
