"""Twin-Merging: shared and exclusive parts (Lu et al., 2024, arXiv:2406.15479)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from weightsmith.arguments import Choice, Number, Proportion
from weightsmith.compress.sparse import BITS, VALUES, position_bits
from weightsmith.encoding import Part, encoding
from weightsmith.method import KthLargest, Statistics, Tile, method
from weightsmith.tensor.arrays import Array, namespace
from weightsmith.tensor.select import trim
from weightsmith.tensor.vector import weighted_sum


@method()
def twin_vector(base: Array, task_vectors: Array, *, lambda_: Number = 0.3, tile: Tile) -> Array:
    """Return the shared vector.

    Args:
        lambda_: Scale of the sum of task vectors that all tasks share.
    """
    return weighted_sum(task_vectors, [lambda_] * len(task_vectors))


def _prepare(*, density: float) -> Statistics:
    def exclusive(base: Array, vectors: Array, tile: Tile) -> Array:
        return namespace(vectors).abs(vectors[:1] - vectors[1:])

    (kth,) = yield KthLargest(lambda size: [max(1, round(density * size))], exclusive)
    return kth


def _formula(merged: int, frozen: int, tasks: int, bits: int, parameters: Mapping[str, Any]) -> float:
    density = float(parameters["density"])
    each = density * BITS[parameters["values"]] + position_bits(density)
    return bits * (merged + frozen) + (int(parameters["vector_bits"]) + tasks * each) * merged


@encoding(form="sparse", share=twin_vector, adds_shared=True, prepare=_prepare, scope="parameter", formula=_formula)
def twin(
    task_vector: Array,
    shared: Array,
    *,
    density: Proportion = 0.1,
    values: Annotated[str, Choice(tuple(VALUES))] = "bfloat16",
    scope: Annotated[str, Choice(("model", "tensor"))] = "model",
    tile: Tile,
) -> Part:
    """Store what all tasks share, and the largest entries of what each task adds to it.

        tau    = lambda * sum_t tau_t
        v_t    = tau_t - tau, its round(density * size) largest entries by magnitude, 0 elsewhere
        result = base + tau + v_t

    Args:
        task_vector: tau_t = finetuned - base, (n,).
        shared: tau as it is stored, (n,).
        density: Share kept of what is a task's own.
        values: Dtype of the stored values; int8 with one scale per 65,536 entries.
        scope: What `size` refers to: the whole model, or each tensor.
        tile: Carries the bound.

    Returns:
        Mask and values of v_t, (n,).

    Differs from the paper: no router; a task is asked for by name. Its classifiers and biases are not left out.
    Cost: one pass over all models, three over base and each task.

    Command:
        weightsmith pack twin --base B --model math=A1 --model code=A2 --density 0.1 --out BUNDLE

    Example:
        >>> import numpy as np
        >>> part = twin(np.array([3.0, -1.0, 0.2, 0.1]), np.array([1.0, -1.0, 0.0, 0.0]), density=0.25)
        >>> part.arrays["values"].tolist()
        [2.0, 0.0, 0.0, 0.0]
    """
    kept = trim((task_vector - shared)[None], tile.statistics, start=tile.position)[0]
    return Part({"mask": kept != 0, "values": kept}, {"dtype": VALUES[values]})
