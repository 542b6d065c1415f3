"""Task singular vectors, TSV-Compress (Gargiulo et al., 2024, arXiv:2412.00081)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice
from weightsmith.compress.low_rank import VALUES, OptionalOrdinal, scaled, truncated
from weightsmith.encoding import Part, encoding
from weightsmith.method import Tile
from weightsmith.tensor.arrays import Array


@encoding(form="low_rank", reach="matrix")
def tsv_c(
    task_vector: Array,
    *,
    tasks: OptionalOrdinal = None,
    values: Annotated[str, Choice(tuple(VALUES))] = "float16",
    tile: Tile,
) -> Part:
    """Store an equal share of each matrix's singular vectors for every task.

    With tau_t = U S V^T and k = max(1, floor(min(m, n) / T)):

        result = base + sum_{i <= k} s_i u_i v_i^T

    All T tasks together take about as many numbers as one square matrix and its transpose.

    Args:
        task_vector: tau_t = finetuned - base, (m, n); tensors of more axes as (first, all others).
        tasks: T; by default the number of tasks that are packed together. A task that is added later gets the same k.
        values: Dtype of the stored factors, which are scaled to at most 1; float16 is finer than bfloat16 there.
        tile: Names the tensor.

    Returns:
        left (m, k), right (k, n), and "scale", s_1.

    Differs from the paper: k is at least 1; S is shared equally between the factors; vectors (one axis) are stored without
    loss. Every matrix is encoded, embeddings and projections too.
    Cost: one symmetric eigenproblem of size min(m, n) in float64 per matrix; memory for about 6 matrices.

    Command:
        weightsmith pack tsv_c --base B --model math=A1 --model code=A2 --out BUNDLE

    Example:
        >>> import numpy as np
        >>> part = tsv_c(np.diag([4.0, 2.0, 1.0, 0.5]), tasks=2)
        >>> (part.settings["scale"] * part.arrays["left"] @ part.arrays["right"]).diagonal().round(3).tolist()
        [4.0, 2.0, 0.0, 0.0]
    """
    rank = max(1, min(task_vector.shape) // (tasks or 1))
    left, right, scale = scaled(truncated(task_vector, rank, 1.0))
    return Part({"left": left, "right": right}, {"scale": scale, "dtype": VALUES[values]})
