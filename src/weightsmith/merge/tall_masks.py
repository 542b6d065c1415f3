"""TALL-masks (Wang et al., 2024, arXiv:2405.07813)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, NonNegative, Ordinal, Proportion
from weightsmith.merge.ties import prepare as prepare_ties
from weightsmith.merge.ties import ties_vector
from weightsmith.method import Statistics, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import task_mask
from weightsmith.tensor.vector import add_scaled, weighted_sum

MERGED = ("sum", "ties")


def prepare(*, merged: str, density: float) -> Statistics | None:
    """Ask for what TIES needs, where the shared vector is a TIES merge."""
    return prepare_ties(density=density) if merged == "ties" else None


def shared_vector(task_vectors: Array, merged: str, tile: Tile) -> Array:
    """Return the one vector that all tasks share, (T, n) -> (n,): the sum, or TIES with merge sum."""
    if merged == "sum":
        return weighted_sum(task_vectors)
    return ties_vector(task_vectors, tile.statistics, "sum", tile.position)


@method(prepare=prepare, scope="model")
def tall_masks(
    base: Array,
    task_vectors: Array,
    *,
    task: Ordinal = 1,
    mask_lambda: NonNegative = 0.4,
    merged: Annotated[str, Choice(MERGED)] = "sum",
    density: Proportion = 0.2,
    tile: Tile,
) -> Array:
    """Rebuild one task's model from the vector that all tasks share, through that task's mask.

    With tau the shared vector, entry by entry:

        m_t    = [ |tau_t| > mask_lambda * |tau - tau_t| ]
        result = base + m_t * tau                                        t = task

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        task: Which model to rebuild, 1 .. T, in the order given.
        mask_lambda: Larger keeps fewer entries; the paper searches 0.2 .. 0.6 per task on validation data.
        merged: What tau is: the sum of the task vectors, or their TIES merge with merge sum.
        density: Share kept by TIES; unused for the sum.
        tile: Carries the statistics of TIES.

    Returns:
        (n,), dtype of base.

    Differs from the paper: mask_lambda is given, not searched.
    Cost: one pass over T + 1 models; with TIES mostly three.

    Command:
        weightsmith merge tall_masks --base B --model A1 --model A2 --task 2 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.array([1.0, 0.0, 0.5]), np.array([0.0, 2.0, -0.4])]
        >>> tall_masks(np.zeros(3), taus, task=1).round(4).tolist()
        [1.0, 0.0, 0.1]
    """
    vector = shared_vector(task_vectors, merged, tile)
    mask = task_mask(task_vectors[task - 1 : task], vector, mask_lambda)[0]
    return add_scaled(base, vector * mask, 1.0)
