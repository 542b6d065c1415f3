"""EMR-Merging: elect, mask and rescale (Huang et al., 2024, arXiv:2405.17461)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from weightsmith.arguments import Choice
from weightsmith.encoding import Part, encoding
from weightsmith.method import Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.pick import where_signs_agree
from weightsmith.tensor.sign import merge_agreeing
from weightsmith.tensor.vector import absolute_sum, columns

LEVEL_VOTE = -1  # the sign of a sum of zero, as in the authors' code


@method()
def _vector(base: Array, task_vectors: Array, *, tile: Tile) -> Array:
    """Return the largest agreeing entries."""
    return merge_agreeing(task_vectors, "max", LEVEL_VOTE)


def _factor() -> Statistics:
    """Ask for the two sums of the task, and return its factor."""

    def sums(base: Array, vectors: Array, tile: Tile) -> Array:
        own, shared = vectors
        return columns(absolute_sum(own), absolute_sum(where_signs_agree(own, shared)))

    wanted, masked = yield Sums(sums)
    return float(wanted / masked) if masked > 0 else 0.0


def _formula(merged: int, frozen: int, tasks: int, bits: int, parameters: Mapping[str, Any]) -> float:
    return (bits + int(parameters["vector_bits"]) + tasks) * merged + bits * frozen + bits * tasks


@encoding(form="mask", share=_vector, prepare=_factor, scope="parameter", formula=_formula)
def emr(
    task_vector: Array, shared: Array, *, scope: Annotated[str, Choice(("model", "tensor"))] = "model", tile: Tile
) -> Part:
    """Store the largest agreeing entries of all tasks, and for each task where its sign agrees, and one factor.

    With s = sign(sum_t tau_t), -1 where that sum is 0, entry by entry:

        tau    = s * max { |tau_t| : sign(tau_t) = s }                       (0 where none agrees)
        m_t    = [ sign(tau_t) = sign(tau) ]
        l_t    = sum |tau_t| / sum |m_t * tau|                               over the scope; 0 where the mask is empty
        result = base + l_t * m_t * tau

    Args:
        task_vector: tau_t = finetuned - base, (n,).
        shared: tau as it is stored, (n,).
        scope: What the sums of l_t run over: the whole model, as in the paper, or each tensor.
        tile: Carries the factor.

    Returns:
        The mask, (n,), and the factor as "scale".

    Differs from the paper: nothing but that tau is taken as it is stored.
    Cost: one pass over all models, two over base and each task.

    Command:
        weightsmith pack emr --base B --model math=A1 --model code=A2 --out BUNDLE

    Example:
        >>> import numpy as np
        >>> part = emr(np.array([1.0, 2.0, 4.0]), np.array([3.0, 2.0, 4.0]))
        >>> part.arrays["mask"].tolist(), round(part.settings["scale"], 4)
        ([True, True, True], 0.7778)
    """
    return Part({"mask": where_signs_agree(task_vector, shared) != 0}, {"scale": tile.statistics})
