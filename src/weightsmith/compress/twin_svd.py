"""Twin-Merging with exclusive parts of low rank (Lu et al., 2024, arXiv:2406.15479)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Proportion
from weightsmith.compress.low_rank import VALUES, OptionalOrdinal, scaled, truncated
from weightsmith.compress.twin import twin_vector
from weightsmith.encoding import Part, encoding
from weightsmith.method import Tile
from weightsmith.tensor.arrays import Array


@encoding(form="low_rank", share=twin_vector, adds_shared=True, reach="matrix")
def twin_svd(
    task_vector: Array,
    shared: Array,
    *,
    rank: OptionalOrdinal = None,
    energy: Proportion = 0.9,
    values: Annotated[str, Choice(tuple(VALUES))] = "float16",
    tile: Tile,
) -> Part:
    """Store what all tasks share, and the leading singular vectors of what each task adds to it.

        tau    = lambda * sum_t tau_t
        v_t    = the k leading singular triplets of tau_t - tau
        result = base + tau + v_t

    Args:
        task_vector: tau_t = finetuned - base, (m, n); tensors of more axes as (first, all others).
        shared: tau as it is stored, (m, n).
        rank: k, at most min(m, n); by default `energy` decides.
        energy: Share of the sum of squared singular values of tau_t - tau to keep, with the smallest k that does.
        values: Dtype of the stored factors, which are scaled to at most 1; float16 is finer than bfloat16 there.
        tile: Names the tensor.

    Returns:
        left (m, k), right (k, n) of v_t, and "scale", its largest singular value.

    Differs from the paper: no router; a task is asked for by name. Vectors (one axis) are stored without loss; classifiers
    are not left out.
    Cost: one pass over all models; one symmetric eigenproblem of size min(m, n) in float64 per matrix and task; memory for about
    7 matrices.

    Command:
        weightsmith pack twin_svd --base B --model math=A1 --model code=A2 --rank 16 --out BUNDLE

    Example:
        >>> import numpy as np
        >>> part = twin_svd(np.diag([3.0, 1.0]), np.diag([1.0, 1.0]), rank=1)
        >>> (part.settings["scale"] * part.arrays["left"] @ part.arrays["right"]).round(3).tolist()
        [[2.0, 0.0], [0.0, 0.0]]
    """
    left, right, scale = scaled(truncated(task_vector - shared, rank, energy))
    return Part({"left": left, "right": right}, {"scale": scale, "dtype": VALUES[values]})
