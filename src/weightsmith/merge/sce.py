"""SCE: select, calculate, erase (Wan et al., 2024, arXiv:2408.07990)."""

from __future__ import annotations

import math

from weightsmith.arguments import Flag, Proportion
from weightsmith.method import KthLargest, Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.rounding import rounded_number
from weightsmith.tensor.variance import energies, merge_shares, variances

FLOOR = 1e-6


def _prepare(*, select_topk: float) -> Statistics:
    kth = None
    if select_topk < 1:

        def spread(base: Array, task_vectors: Array, tile: Tile) -> Array:
            return variances(task_vectors, tile.precision)[None]

        (kth,) = yield KthLargest(lambda varying: [int(varying * select_topk)], spread, nonzero=True)

    def energy(base: Array, task_vectors: Array, tile: Tile) -> Array:
        return energies(task_vectors, kth, tile.position, tile.precision)

    sums = yield Sums(energy)
    return kth, sums


@method(prepare=_prepare, scope="tensor")
def sce(
    base: Array,
    task_vectors: Array,
    *,
    select_topk: Proportion = 1.0,
    peer_floor: Flag = False,
    tile: Tile,
) -> Array:
    """Keep entries in which the models differ most, weigh models by their energy, erase the sign of the minority.

    With v_t = tau_t at the trunc(select_topk * #varying) entries of largest variance over the models, 0 elsewhere,
    e_t = mean(v_t^2) over the tensor, w = e / sum_t e_t, s = 1 where sum_t v_t >= 0, else -1, A = {t : sign(v_t) = s}:

        result = base + sum over A of w_t v_t / sum over A of w_t        (base where A is empty)

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        select_topk: Share kept of the entries in which the models differ at all; 1 keeps every entry.
        peer_floor: Weigh models equally where sum_t e_t < 1e-6, and divide by at least 1e-6, as mergekit does; so it
            weighs small changes, which are the rule, equally.
        tile: Carries bound and energies, and the precision to which each step is rounded.

    Returns:
        (n,), dtype of base.

    Differs from the paper: the division by the weights that agree is mergekit's. Among equals the earlier entry is kept.
    Cost: two passes over T + 1 models, mostly three with a selection; memory for 65,536 counters and a tile.

    Command:
        weightsmith merge sce --base B --model A1 --model A2 --select-topk 0.5 --out OUT

    Example:
        >>> import numpy as np
        >>> sce(np.zeros(3), [np.array([3.0, 1.0, 0.0]), np.array([1.0, -1.0, 0.0])]).round(4).tolist()
        [2.6667, 1.0, 0.0]
    """
    kth, sums = tile.statistics
    size = math.prod(tile.shape)
    means = [rounded_number(x / size, tile.precision) if tile.precision != "float32" else x / size for x in sums]
    total = rounded_number(sum(means), tile.precision) if tile.precision != "float32" else sum(means)
    equal = total == 0 or (peer_floor and total < FLOOR)
    shares = [1 / len(means) if equal else x / total for x in means]
    least = FLOOR if peer_floor else 0.0
    return merge_shares(base, task_vectors, kth, tile.position, shares, least, tile.precision)
