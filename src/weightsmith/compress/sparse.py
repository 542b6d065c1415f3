"""LT-SFT: sparse differences (Ansell et al., 2021, arXiv:2110.07560)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from weightsmith.arguments import Choice, Proportion
from weightsmith.encoding import Part, encoding
from weightsmith.method import KthMagnitude, Statistics, Tile
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import trim

VALUES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "I8"}
BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8}


def _prepare(*, density: float) -> Statistics:
    (kth,) = yield KthMagnitude(lambda size: [max(1, round(density * size))])
    return kth


def position_bits(density: float) -> float:
    """Return the least bits per entry that say which share of the entries is kept, in any order.

    >>> position_bits(0.5)
    1.0
    """
    rest = 1 - density
    return -density * math.log2(density) - (rest * math.log2(rest) if rest else 0.0)


def _formula(merged: int, frozen: int, tasks: int, bits: int, parameters: Mapping[str, Any]) -> float:
    density = float(parameters["density"])
    each = density * BITS[parameters["values"]] + position_bits(density)
    return bits * (merged + frozen) + tasks * merged * each


@encoding(form="sparse", prepare=_prepare, scope="parameter", formula=_formula)
def sparse(
    task_vector: Array,
    *,
    density: Proportion = 0.05,
    values: Annotated[str, Choice(tuple(VALUES))] = "bfloat16",
    scope: Annotated[str, Choice(("model", "tensor"))] = "model",
    tile: Tile,
) -> Part:
    """Store the largest entries of a task vector with their values.

    With m_t true for the round(density * size) largest entries by magnitude, at least one, the earlier entry first when equal:

        result = base + m_t * tau_t

    Args:
        task_vector: tau_t = finetuned - base, (n,).
        density: Share kept; a task vector that is sparse already stays as it is where this covers it.
        values: Dtype of the stored values; int8 with one scale per 65,536 entries.
        scope: What `size` refers to: the whole model, as in the paper, or each tensor.
        tile: Carries the bound.

    Returns:
        Mask and values, (n,).

    Differs from the paper: entries are chosen and stored, not trained again. Its code stores steps between indices in
    32 bits; here each frame of 65,536 entries is coded the shortest way.
    Cost: two passes over base and task, three where a guess fails.

    Command:
        weightsmith pack sparse --base B --model math=A1 --model code=A2 --density 0.05 --out BUNDLE

    Example:
        >>> import numpy as np
        >>> part = sparse(np.array([3.0, -1.0, 0.2, 0.1]), density=0.5)
        >>> part.arrays["mask"].tolist(), part.arrays["values"].tolist()
        ([True, True, False, False], [3.0, -1.0, 0.0, 0.0])
    """
    kept = trim(task_vector[None], tile.statistics, start=tile.position)[0]
    return Part({"mask": kept != 0, "values": kept}, {"dtype": VALUES[values]})
