"""Top magnitude of the task vector, as the mask of lottery-ticket sparse fine-tuning (Ansell et al., 2022, arXiv:2110.07560)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Proportion
from weightsmith.localize.localizer import localizer
from weightsmith.method import KthMagnitude, Statistics, Tile
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import is_among_largest


def prepare(*, density: float) -> Statistics:
    """Ask for each vector's k-th magnitude."""
    (kth,) = yield KthMagnitude(lambda size: [max(1, round(density * size))])
    return kth


@localizer(prepare=prepare, scope="parameter")
def magnitude(
    base: Array,
    task_vectors: Array,
    *,
    density: Proportion = 0.1,
    scope: Annotated[str, Choice(("model", "tensor"))] = "model",
    tile: Tile,
) -> Array:
    """Select what a task moved furthest.

        m_t = the round(density * size) largest |tau_t|, at least one; the earlier entry first when equal

    Args:
        base: The base model's tensor, (n,); its values do not matter.
        task_vectors: finetuned - base, (T, n).
        density: Share selected.
        scope: What `size` refers to: the whole model, or each tensor.
        tile: Carries the thresholds.

    Returns:
        (T, n), bool.

    Differs from the paper: it keeps these entries and trains again from the base; here they are only located.
    Cost: two passes over the models (one more where a tensor is large), memory for 65,536 counters per task.
    Reference: Composable Sparse Fine-Tuning for Cross-Lingual Transfer, section 3.

    Example:
        >>> import numpy as np
        >>> magnitude(np.zeros(4), [np.array([0.1, -3.0, 2.0, 0.0])], density=0.5)[0].tolist()
        [False, True, True, False]
    """
    return is_among_largest(task_vectors, tile.statistics, tile.position)
