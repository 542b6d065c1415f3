"""TALL-masks (Wang et al., 2024, arXiv:2405.07813)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from weightsmith.arguments import Choice, Coefficients, Proportion
from weightsmith.encoding import Part, encoding
from weightsmith.merge.tall_masks import MERGED, prepare, shared_vector
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import task_mask

MASK_LAMBDA = 0.4


@method(prepare=prepare, scope="model")
def _vector(
    base: Array,
    task_vectors: Array,
    *,
    merged: Annotated[str, Choice(MERGED)] = "sum",
    density: Proportion = 0.2,
    tile: Tile,
) -> Array:
    """Return the shared vector.

    Args:
        merged: What the shared vector is: the sum of the task vectors, or their TIES merge with merge sum.
        density: Share kept by TIES; unused for the sum.
    """
    return shared_vector(task_vectors, merged, tile)


def _formula(merged: int, frozen: int, tasks: int, bits: int, parameters: Mapping[str, Any]) -> float:
    return (bits + int(parameters["vector_bits"]) + tasks) * merged + bits * frozen


@encoding(form="mask", share=_vector, formula=_formula)
def tall_masks(task_vector: Array, shared: Array, *, mask_lambda: Coefficients = None, tile: Tile) -> Part:
    """Store one vector for all tasks, and for each task which of its entries it needs.

    With tau the shared vector as it is stored, entry by entry:

        m_t    = [ |tau_t| > mask_lambda_t * |tau - tau_t| ]
        result = base + m_t * tau

    Args:
        task_vector: finetuned - base, (n,).
        shared: tau, (n,).
        mask_lambda: One per task, or a list of one for all; 0.4 by default. Larger keeps fewer entries; the paper searches
            0.2 .. 0.6 per task on validation data.
        tile: Not used.

    Returns:
        The mask, (n,).

    Differs from the paper: the mask is chosen for the shared vector as it is stored, rounded.
    Cost: one pass over all models for the shared vector (with TIES mostly three), one over base and each task.

    Command:
        weightsmith pack tall_masks --base B --model math=A1 --model code=A2 --out BUNDLE

    Example:
        >>> import numpy as np
        >>> part = tall_masks(np.array([1.0, 0.0, 0.5]), np.array([1.0, 2.0, 0.1]))
        >>> part.arrays["mask"].tolist()
        [True, False, True]
    """
    bound = MASK_LAMBDA if mask_lambda is None else mask_lambda[0]
    return Part({"mask": task_mask(task_vector[None], shared, bound)[0]})
