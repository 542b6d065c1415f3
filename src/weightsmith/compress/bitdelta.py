"""BitDelta (Liu et al., 2024, arXiv:2402.10193)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightsmith.checkpoint.names import kind_of
from weightsmith.encoding import Part, encoding
from weightsmith.method import Statistics, Sums, Tile
from weightsmith.tensor.arrays import Array, blocked_sum, cast
from weightsmith.tensor.vector import absolute_sum, columns

_LEFT_OUT = ("embedding", "head", "norm")


def _prepare() -> Statistics:
    """Ask for the mean magnitude."""

    def sums(base: Array, vectors: Array, tile: Tile) -> Array:
        return columns(absolute_sum(vectors[0]), blocked_sum(cast(vectors[0], "float64") * 0 + 1))

    total, count = yield Sums(sums)
    return float(total / count)


def _takes(name: str, shape: Sequence[int]) -> bool:
    return len(shape) == 2 and kind_of(name) not in _LEFT_OUT


def _formula(merged: int, frozen: int, tasks: int, bits: int, parameters: Mapping[str, Any]) -> float:
    return bits * (merged + frozen) + tasks * merged


@encoding(form="sign", prepare=_prepare, scope="tensor", takes=_takes, formula=_formula)
def bitdelta(task_vector: Array, *, tile: Tile) -> Part:
    """Store one bit per weight, and one number per matrix.

        s_t    = sign(tau_t), +1 where tau_t = 0
        result = base + a * s_t                a = mean |tau_t|, over the matrix

    Args:
        task_vector: tau_t = finetuned - base, (n,).
        tile: Carries a.

    Returns:
        The signs, (n,), and a as "scale".

    Differs from the paper: the scales are not trained further by default; `weightsmith.pack(scales=...)` takes fitted ones.
    As there, matrices of attention and MLP alone are encoded; the rest is stored without loss.
    Cost: two passes over base and task.

    Command:
        weightsmith pack bitdelta --base B --model math=A1 --model code=A2 --out BUNDLE

    Example:
        >>> import numpy as np
        >>> part = bitdelta(np.array([3.0, -1.0, 0.0, 0.0]))
        >>> part.arrays["signs"].tolist(), part.settings
        ([1, -1, 1, 1], {'scale': 1.0})
    """
    return Part({"signs": cast(1 - 2 * cast(task_vector < 0, "int8"), "int8")}, {"scale": tile.statistics})
