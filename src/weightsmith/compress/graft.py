"""GraftLLM's module-aware packs (Du et al., 2025, arXiv:2505.18502)."""

from __future__ import annotations

import numpy as np

from weightsmith.arguments import Count, Proportion
from weightsmith.checkpoint.names import kind_of
from weightsmith.compress.low_rank import scaled, truncated
from weightsmith.encoding import Part, encoding
from weightsmith.method import Tile
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.mixed import BITS, effective_bits, to_codes, widths_of
from weightsmith.tensor.select import kth_magnitude, trim

GROUP = 128  # entries of a singular vector that share a scale


@encoding(form="low_rank", reach="matrix")
def graft(
    task_vector: Array,
    *,
    energy: Proportion = 0.9,
    density: Proportion = 0.1,
    int8_columns: Count = 20,
    int4_columns: Count = 180,
    tile: Tile,
) -> Part:
    """Store each kind of matrix its own way: embeddings sparse, attention by rank, feed-forward by rank in few bits.

    The kind follows from the tensor's name. With tau_t = U S V^T and k the smallest rank that keeps the share `energy` of the sum
    of squared singular values:

        embeddings and heads    the round(density * size) largest entries by magnitude, rounded to bfloat16
        feed-forward            U S^(1/2) and S^(1/2) V^T, the first of their k vectors in 8, the next in 4, all others in 2 bits
        attention and others    U S^(1/2) and S^(1/2) V^T, rounded to float16

    A matrix in few bits takes sum(columns * bits) * (m + n) / (m n) bits per weight and its scales; it is stored with the part.

    Args:
        task_vector: tau_t = finetuned - base, (m, n); tensors of more axes as (first, all others).
        energy: Share of the sum of squared singular values to keep.
        density: Share of entries kept of embeddings and heads.
        int8_columns: How many of the first singular vectors have 8 bits.
        int4_columns: How many of the next have 4 bits.
        tile: Names the tensor.

    Returns:
        Mask and values (m n,); or left (m, k), right (k, n) and "scale"; or the codes and scales of both.

    Differs from the paper: no calibration texts: entries take the nearest level, with one scale per 128 entries, in place of
    GPTQ; ranks follow from the energy, where its repository sets 1000 and 1400. Vectors (one axis) are stored without loss.
    Cost: one symmetric eigenproblem of size min(m, n) in float64 per matrix; memory for about 6 matrices.

    Command:
        weightsmith pack graft --base B --model math=A1 --model code=A2 --energy 0.8 --out BUNDLE

    Example:
        >>> import numpy as np
        >>> from weightsmith.method import Tile
        >>> part = graft.encode(np.eye(4), None, graft.check({}, 1), Tile(name="layers.0.mlp.up_proj.weight", shape=(4, 4)))
        >>> part.settings["widths"], part.arrays["left"].dtype.name
        ([4, 0, 0], 'uint8')
    """
    kind = kind_of(tile.name)
    if kind in ("embedding", "head"):
        flat = task_vector.reshape(1, -1)
        (bound,) = kth_magnitude(flat, [max(1, round(density * flat.shape[1]))])
        kept = trim(flat, bound)[0]
        return Part({"mask": kept != 0, "values": kept}, {"dtype": "BF16"}, form="sparse")
    left, right, scale = scaled(truncated(task_vector, None, energy))
    if kind != "mlp":
        return Part({"left": left, "right": right}, {"scale": scale, "dtype": "F16"})
    rank = len(right)
    widths = widths_of(rank, [int8_columns, int4_columns])
    (codes, steps), (right_codes, right_steps) = (
        to_codes(np.ascontiguousarray(x), BITS, widths, GROUP) for x in (left.T, right)
    )
    stored = effective_bits(task_vector.shape, BITS, widths, GROUP)
    return Part(
        {"left": codes, "left_scales": steps, "right": right_codes, "right_scales": right_steps},
        {"scale": scale, "rank": rank, "bits": list(BITS), "widths": widths, "group": GROUP, "bits_per_weight": stored},
    )
