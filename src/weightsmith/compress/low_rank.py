"""Low-rank task vectors (delta SVD), the baseline of Delta-CoMe (Ping et al., 2024, arXiv:2406.08903)."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import numpy as np

from weightsmith.arguments import Choice, Proportion, Whole
from weightsmith.encoding import Part, encoding
from weightsmith.method import Tile
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.spectral import Factors, leading, wide
from weightsmith.tensor.truncation import energy_rank

OptionalOrdinal: TypeAlias = Annotated[int | None, Whole(1)]
VALUES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def truncated(task_vector: Array, rank: int | None, energy: float) -> Factors:
    """Return the leading singular triplets, `rank` of them or as many as hold the share `energy`; at least one.

    Those that count as zero are left out.
    """
    largest = min(task_vector.shape)
    found = leading(wide(task_vector), min(rank or largest, largest))
    wanted = len(found.values) if rank else energy_rank(found.values, energy)
    k = max(1, min(wanted, int((found.values > 0).sum())))
    return Factors(found.left[:, :k], found.values[:k], found.right[:k])


def scaled(factors: Factors) -> tuple[Array, Array, float]:
    """Return left (rows, k), right (k, columns) and the number by which their product is multiplied, float32.

    The number is the largest singular value, and each factor takes the square root of the others' share of it, so that
    entries fit any dtype.
    """
    largest = float(factors.values[0]) or 1.0
    root = np.sqrt(factors.values / largest)
    return (factors.left * root).astype(np.float32), (factors.right * root[:, None]).astype(np.float32), largest


@encoding(form="low_rank", reach="matrix")
def low_rank(
    task_vector: Array,
    *,
    rank: OptionalOrdinal = None,
    energy: Proportion = 0.9,
    values: Annotated[str, Choice(tuple(VALUES))] = "float16",
    tile: Tile,
) -> Part:
    """Store the leading singular vectors of each matrix.

    With tau_t = U S V^T and k the rank, its singular values in falling order:

        result = base + sum_{i <= k} s_i u_i v_i^T

    The squared error is the sum of the squared singular values left out, and what rounding the factors adds.

    Args:
        task_vector: tau_t = finetuned - base, (m, n); tensors of more axes as (first, all others).
        rank: k, at most min(m, n); by default `energy` decides.
        energy: Share of the sum of squared singular values to keep, with the smallest k that does.
        values: Dtype of the stored factors, which are scaled to at most 1; float16 is finer than bfloat16 there.
        tile: Names the tensor.

    Returns:
        left (m, k), right (k, n), and "scale", s_1.

    Differs from the paper: S is shared equally between the factors. Vectors (one axis) are stored without loss. k (m + n)
    numbers are stored, so a rank of m n / (m + n) or more saves nothing.
    Cost: one symmetric eigenproblem of size min(m, n) in float64 per matrix; memory for about 6 matrices.

    Command:
        weightsmith pack low_rank --base B --model math=A1 --model code=A2 --rank 64 --out BUNDLE

    Example:
        >>> import numpy as np
        >>> part = low_rank(np.diag([3.0, 1.0]), rank=1)
        >>> (part.settings["scale"] * part.arrays["left"] @ part.arrays["right"]).round(3).tolist()
        [[3.0, 0.0], [0.0, 0.0]]
    """
    left, right, scale = scaled(truncated(task_vector, rank, energy))
    return Part({"left": left, "right": right}, {"scale": scale, "dtype": VALUES[values]})
