"""Consensus merging (Wang et al., 2024, arXiv:2405.07813)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Count, NonNegative, Number, Proportion
from weightsmith.merge.tall_masks import MERGED, prepare, shared_vector
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import count_tasks
from weightsmith.tensor.vector import add_scaled


@method(prepare=prepare, scope="model")
def consensus(
    base: Array,
    task_vectors: Array,
    *,
    lambda_: Number = 0.3,
    min_tasks: Count = 2,
    mask_lambda: NonNegative = 0.4,
    merged: Annotated[str, Choice(MERGED)] = "sum",
    density: Proportion = 0.2,
    tile: Tile,
) -> Array:
    """Merge only the weights that several tasks need; drop the catastrophic and the selfish ones.

    With tau the shared vector, m_t the masks of `tall_masks` and n = sum_t m_t, entry by entry:

        result = base + lambda * [ n >= min_tasks ] * tau

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        lambda_: Scale of what is kept; the paper searches 0.1 .. 1.
        min_tasks: 0 keeps all, 1 drops catastrophic weights (n = 0), 2 drops selfish ones (n = 1) too.
        mask_lambda: As in `tall_masks`; one value for all tasks.
        merged: What tau is: the sum of the task vectors, or their TIES merge with merge sum.
        density: Share kept by TIES; unused for the sum.
        tile: Carries the statistics of TIES.

    Returns:
        (n,), dtype of base.

    Differs from the paper: one mask_lambda for all tasks, given, not searched.
    Cost: one pass over T + 1 models; with TIES mostly three.

    Command:
        weightsmith merge consensus --base B --model A1 --model A2 --lambda 0.3 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.array([1.0, 0.0, 0.5]), np.array([0.0, 2.0, 0.4])]
        >>> consensus(np.zeros(3), taus, lambda_=1.0).round(4).tolist()
        [0.0, 0.0, 0.9]
    """
    vector = shared_vector(task_vectors, merged, tile)
    needed = count_tasks(task_vectors, vector, mask_lambda) >= min_tasks
    return add_scaled(base, vector * needed, lambda_)
