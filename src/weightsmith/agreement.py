"""How many tasks need each weight: catastrophic, selfish and shared weights, counted by TALL-masks (arXiv:2405.07813)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from weightsmith.engine.stream import Stream
from weightsmith.merge.task_arithmetic import task_arithmetic
from weightsmith.method import Tile
from weightsmith.plan import Options, make_plan
from weightsmith.recipe import Recipe
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import count_tasks
from weightsmith.tensor.vector import weighted_sum


def agreement(
    base: str | Path,
    models: Sequence[str | Path],
    *,
    mask_lambda: float = 0.4,
    options: Options | None = None,
) -> dict[str, list[int]]:
    """Count, tensor by tensor, the weights that exactly n tasks need.

    With tau = sum_t tau_t and m_t = [ |tau_t| > mask_lambda * |tau - tau_t| ], n = sum_t m_t. A weight with n = 0 is
    catastrophic (it serves no task), with n = 1 selfish, with n >= 2 shared.

    Args:
        base: The model that all others were trained from.
        models: T models.
        mask_lambda: As in `tall_masks`.
        options: Memory and threads.

    Returns:
        Tensor name to [count for n = 0, ..., count for n = T].

    Raises:
        CheckpointError, MismatchError: As for a merge of the same models.
    """
    recipe = Recipe(method=task_arithmetic.name, base=str(base), models=tuple(map(str, models)))
    plan = make_plan(recipe, options)

    def count(_: Array, task_vectors: Array, tile: Tile) -> Array:
        needed = count_tasks(task_vectors, weighted_sum(task_vectors), mask_lambda)
        return np.bincount(needed, minlength=len(models) + 1)

    found = {w.name: np.zeros(len(models) + 1, np.int64) for w in plan.merged}
    with Stream(plan.job, len(plan.inputs)) as stream:
        for piece, counts in stream.each(plan.merged, count):
            found[piece.work.name] += sum(counts)
    return {name: counts.tolist() for name, counts in found.items()}
