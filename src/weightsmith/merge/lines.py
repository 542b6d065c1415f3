"""LiNeS: layer-increasing network scaling (Wang et al., 2024, arXiv:2410.17146)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Number, OptionalNumber, Proportion
from weightsmith.merge.ties import prepare as prepare_ties
from weightsmith.merge.ties import ties_vector
from weightsmith.method import Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.vector import absolute_sum, add_scaled, columns, weighted_sum


def _prepare(*, merged: str, alpha: float | None, density: float) -> Statistics | None:
    if merged == "sum":
        return None
    return _prepare_ties(alpha, density)


def _prepare_ties(alpha: float | None, density: float) -> Statistics:
    found = yield from prepare_ties(density=density)
    if alpha is not None:
        return found, None

    def norms(base: Array, task_vectors: Array, tile: Tile) -> Array:
        vector = ties_vector(task_vectors, found, "mean", tile.position)
        return columns(absolute_sum(weighted_sum(task_vectors)), absolute_sum(vector))

    total, merged = yield Sums(norms)
    return found, float(total / merged) if merged > 0 else 1.0


@method(prepare=_prepare, scope="model")
def lines(
    base: Array,
    task_vectors: Array,
    *,
    alpha: OptionalNumber = None,
    beta: Number = 0.5,
    merged: Annotated[str, Choice(("sum", "ties"))] = "sum",
    density: Proportion = 0.2,
    tile: Tile,
) -> Array:
    """Scale the merged task vector by depth: early layers less, late layers more.

    With tau the merged task vector and layers 0 .. L - 1:

        result = base + (alpha + beta * layer / (L - 1)) * tau          (alpha outside the layers, or where L = 1)
        alpha  = (1 / T) * |sum_t tau_t|_1 / |tau|_1                     unless given; 1 / T for the sum

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n); with one, the edit protects what it forgot.
        alpha: Scale of the first layer; by default from the norms, over the whole model.
        beta: Added scale of the last layer; with one task vector the paper takes 1 - alpha.
        merged: What tau is: the sum of the task vectors, or their TIES merge (mean, whole model).
        density: Share kept by TIES; unused for the sum.
        tile: Gives the layer, and the statistics of TIES.

    Returns:
        (n,), dtype of base.

    Differs from the paper: tensors after the last layer get alpha, as in the authors' code; give alpha by name pattern in
    a recipe to scale them otherwise.
    Cost: one pass over T + 1 models; with TIES mostly four.

    Command:
        weightsmith merge lines --base B --model A1 --model A2 --beta 0.5 --out OUT

    Example:
        >>> import numpy as np
        >>> last = Tile(layer=2, layers=3)
        >>> lines(np.zeros(2), [np.array([1.0, 0.0]), np.array([0.0, 2.0])], beta=0.5, tile=last).tolist()
        [1.0, 2.0]
    """
    ratio = 1.0
    if merged == "sum":
        vector = weighted_sum(task_vectors)
    else:
        found, ratio = tile.statistics
        vector = ties_vector(task_vectors, found, "mean", tile.position)
    first = alpha if alpha is not None else ratio / len(task_vectors)
    depth = tile.layer / (tile.layers - 1) if tile.layer is not None and tile.layers > 1 else 0.0
    return add_scaled(base, vector, first + beta * depth)
