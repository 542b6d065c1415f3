"""LT-SFT: composing sparse fine-tunings (Ansell et al., 2021, arXiv:2110.07560)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Coefficients, Proportion
from weightsmith.method import KthMagnitude, Statistics, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import trim
from weightsmith.tensor.vector import add_scaled, weighted_sum


def _prepare(*, density: float) -> Statistics:
    (kth,) = yield KthMagnitude(lambda size: [max(1, round(density * size))])
    return kth


@method(prepare=_prepare, scope="parameter")
def lt_sft(
    base: Array,
    task_vectors: Array,
    *,
    density: Proportion = 0.05,
    coefficients: Coefficients = None,
    scope: Annotated[str, Choice(("model", "tensor"))] = "model",
    tile: Tile,
) -> Array:
    """Add task vectors, each reduced to its largest entries.

    With m_t true for the K = round(density * size) largest entries of tau_t by magnitude, at least one, the earlier entry
    first when equal:

        result = base + sum_t c_t (m_t * tau_t)

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n); those that are sparse already stay as they are where K covers them.
        density: Share kept of each task vector; the authors' code takes 0.01 by default.
        coefficients: c_t, one per model; 1 each by default, as in the paper.
        scope: What `size` refers to: the whole model, as in the paper, or each tensor.
        tile: Carries the bounds.

    Returns:
        (n,), dtype of base.

    Differs from the paper: composes only. There, the K entries are found by one fine-tuning and trained again from the base
    by a second; give the models of the second. Exactly K entries are kept, its code keeps all that equal the last. A head
    comes from one task alone: leave it out with --copy, and take it from that task's model.
    Cost: two passes over T + 1 models, three where a guess fails; memory for 65,536 counters per task, and a tile.

    Command:
        weightsmith merge lt_sft --base B --model TASK --model LANGUAGE --density 0.05 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.array([3.0, -1.0, 0.5, 0.1]), np.array([1.0, 0.2, -2.0, 0.3])]
        >>> lt_sft(np.zeros(4), taus, density=0.5).tolist()
        [4.0, -1.0, -2.0, 0.0]
    """
    return add_scaled(base, weighted_sum(trim(task_vectors, tile.statistics, start=tile.position), coefficients), 1.0)
