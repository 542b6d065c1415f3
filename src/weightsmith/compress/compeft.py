"""ComPEFT: sparse ternary task vectors (Yadav et al., 2023, arXiv:2311.13171)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from weightsmith.arguments import Choice, OptionalNumber, Proportion
from weightsmith.encoding import Part, encoding
from weightsmith.method import KthMagnitude, Statistics, Sums, Tile
from weightsmith.tensor.arrays import Array, blocked_sum, cast, namespace
from weightsmith.tensor.rice import expected_bits
from weightsmith.tensor.select import trim
from weightsmith.tensor.vector import absolute_sum, columns


def _prepare(*, density: float, alpha: float | None) -> Statistics:
    """Ask for the bound of the entries that are kept and for what the scale is made of; return bound and scale."""
    (kth,) = yield KthMagnitude(lambda size: [max(1, round(density * size))])

    def spread(base: Array, vectors: Array, tile: Tile) -> Array:
        wide = cast(vectors[0], "float64")
        return columns(blocked_sum(wide * 0 + 1), blocked_sum(wide), blocked_sum(wide * wide))

    def kept(base: Array, vectors: Array, tile: Tile) -> Array:
        values = trim(vectors, kth, start=tile.position)[0]
        return columns(absolute_sum(values), blocked_sum(cast(values != 0, "float64")))

    if alpha is None:
        total, count = yield Sums(kept)
        return kth, float(total / count) if count else 0.0
    count, total, squares = yield Sums(spread)
    return kth, alpha * math.sqrt(max(0.0, squares / count - (total / count) ** 2))


def _formula(merged: int, frozen: int, tasks: int, bits: int, parameters: Mapping[str, Any]) -> float:
    return bits * (merged + frozen) + tasks * (merged * expected_bits(parameters["density"]) + 16)


@encoding(form="ternary", prepare=_prepare, scope="parameter", formula=_formula)
def compeft(
    task_vector: Array,
    *,
    density: Proportion = 0.2,
    alpha: OptionalNumber = None,
    scope: Annotated[str, Choice(("model", "tensor"))] = "model",
    tile: Tile,
) -> Part:
    """Store the signs of a task vector's largest entries, and one number.

    With K the round(density * size) largest entries by magnitude, at least one, the earlier entry first when equal, and
    sigma the standard deviation of all entries:

        s_t    = sign(tau_t) on K, 0 elsewhere
        result = base + a * s_t                a = alpha * sigma; without alpha the mean magnitude on K

    Args:
        task_vector: tau_t = finetuned - base, (n,).
        density: Share kept; the paper takes 0.05 to 0.5.
        alpha: Times the standard deviation gives the size of the stored entries; the paper chooses it on validation data.
            The default stores their mean magnitude, which lies closest to the task vector.
        scope: What `size` and sigma refer to: the whole model, as in the paper, or each tensor.
        tile: Carries bound and size.

    Returns:
        The signs, (n,), and a as "scale".

    Differs from the paper: without alpha no data is needed; exactly K entries are kept, the earlier ones of equals; each
    frame of 65,536 entries is coded by itself, as two bitmaps or by Rice's code of gaps, whichever is shorter.
    Cost: three passes over base and task, four where a guess fails.

    Command:
        weightsmith pack compeft --base B --model math=A1 --model code=A2 --density 0.1 --out BUNDLE

    Example:
        >>> import numpy as np
        >>> part = compeft(np.array([3.0, -1.0, 0.2, 0.1]), density=0.5)
        >>> part.arrays["signs"].tolist(), part.settings
        ([1, -1, 0, 0], {'scale': 2.0})
    """
    kth, scale = tile.statistics
    kept = trim(task_vector[None], kth, start=tile.position)[0]
    return Part({"signs": cast(namespace(kept).sign(kept), "int8")}, {"scale": scale})
