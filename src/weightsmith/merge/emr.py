"""EMR-Merging: elect, mask and rescale (Huang et al., 2024, arXiv:2405.17461)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Count
from weightsmith.method import Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.unified import masked, masked_sums, unified
from weightsmith.tensor.vector import add_scaled


def _prepare(*, task: int) -> Statistics | None:
    return _factor(task) if task else None


def _factor(task: int) -> Statistics:
    """Ask for the two sums of one task, and return its factor."""

    def sums(base: Array, task_vectors: Array, tile: Tile) -> Array:
        return masked_sums(task_vectors, task - 1)

    wanted, left = yield Sums(sums)
    return float(wanted / left) if left > 0 else 0.0


@method(prepare=_prepare, scope="parameter")
def emr(
    base: Array,
    task_vectors: Array,
    *,
    task: Count = 0,
    scope: Annotated[str, Choice(("model", "tensor"))] = "model",
    tile: Tile,
) -> Array:
    """Merge into one vector that holds the largest agreeing entries; rebuild a task from it by a mask and a factor.

    With s = sign(sum_t tau_t), -1 where that sum is 0, entry by entry:

        tau    = s * max { |tau_t| : sign(tau_t) = s }                       (0 where none agrees)
        m_t    = [ sign(tau_t) = s ]
        l_t    = sum |tau_t| / sum |m_t * tau|                               over the scope; 0 where the mask is empty
        result = base + tau                                                  task = 0
        result = base + l_t * m_t * tau                                      t = task

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        task: Which model to rebuild, 1 .. T, in the order given; 0 for the one vector that all share.
        scope: What the sums of l_t run over: the whole model, as in the paper, or each tensor.
        tile: Carries the factor.

    Returns:
        (n,), dtype of base.

    Differs from the paper: nothing. The authors' vision script divides sums of per-tensor means, not these sums; neither
    promises to come closer to the task vector than without the factor.
    Cost: two passes over T + 1 models, one for task 0; memory for a tile.

    Command:
        weightsmith merge emr --base B --model A1 --model A2 --task 2 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.array([3.0, -1.0, 2.0]), np.array([1.0, 2.0, 4.0])]
        >>> emr(np.zeros(3), taus).tolist()
        [3.0, 2.0, 4.0]
        >>> emr(np.zeros(3), taus, task=2).round(4).tolist()
        [2.3333, 1.5556, 3.1111]
    """
    if task == 0:
        return add_scaled(base, unified(task_vectors), 1.0)
    return add_scaled(base, masked(task_vectors, task - 1), tile.statistics)
