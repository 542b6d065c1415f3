"""Model Breadcrumbs (Davari and Belilovsky, 2023, arXiv:2312.06795)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Coefficients, Number, Proportion, Share
from weightsmith.method import Kth, KthMagnitude, Statistics, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import trim
from weightsmith.tensor.vector import add_scaled, weighted_sum

SCOPES = ("tensor", "row")


def prepare(*, density: float, drop_top: float) -> Statistics:
    """Ask for the magnitudes that bound the band of kept entries."""

    def ranks(size: int) -> list[int]:
        top = min(round(drop_top * size), size)
        return [top, min(top + max(1, round(density * size)), size)]

    top, inside = yield KthMagnitude(ranks)
    return top, inside


def band(task_vectors: Array, statistics: tuple[Kth, Kth], tile: Tile) -> Array:
    """Return the task vectors with the largest and the smallest entries zeroed, (T, n)."""
    top, inside = statistics
    return trim(task_vectors, inside, top, tile.position)


@method(prepare=prepare, scope="parameter")
def breadcrumbs(
    base: Array,
    task_vectors: Array,
    *,
    density: Proportion = 0.15,
    drop_top: Share = 0.006,
    coefficients: Coefficients = None,
    lambda_: Number = 0.2,
    scope: Annotated[str, Choice(SCOPES)] = "tensor",
    tile: Tile,
) -> Array:
    """Add task vectors without their largest entries (outliers) and without their smallest.

    With m_t true for the round(density * size) entries that follow the round(drop_top * size) largest by magnitude, at
    least one, the earlier entry first when equal:

        result = base + lambda * sum_t c_t (m_t * tau_t)

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        density: Share kept, beta in the authors' code.
        drop_top: Share of largest entries dropped, gamma in the authors' code; what lies below 1 / size drops none.
        coefficients: c_t, one per model; 1 each by default.
        lambda_: Scale of the sum, alpha in the paper.
        scope: What `size` refers to: each tensor, or each row (the last axis) as the authors' code does.
        tile: Carries the bounds.

    Returns:
        (n,), dtype of base.

    Differs from the paper: ranks the tensor by default, as mergekit does; scope row is the authors' code.
    Cost: two passes over T + 1 models, more where a tensor is not like its sample; memory for 65,536 counters per task and
    bound, or for a third of a tensor, and a tile.

    Command:
        weightsmith merge breadcrumbs --base B --model A1 --model A2 --density 0.15 --drop-top 0.006 --out OUT

    Example:
        >>> import numpy as np
        >>> tau = np.array([9.0, -3.0, 2.0, 0.1])
        >>> breadcrumbs(np.zeros(4), [tau], density=0.5, drop_top=0.25, lambda_=1.0).tolist()
        [0.0, -3.0, 2.0, 0.0]
    """
    kept = band(task_vectors, tile.statistics, tile)
    return add_scaled(base, weighted_sum(kept, coefficients), lambda_)
