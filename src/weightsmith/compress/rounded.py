"""Rounded, entropy-coded task vectors, Delta-DNN (Hu et al., 2020, doi:10.1145/3404397.3404408)."""

from __future__ import annotations

import math
from typing import Annotated, TypeAlias

from weightsmith.arguments import Choice, Real
from weightsmith.encoding import Part, encoding
from weightsmith.method import Statistics, Sums, Tile
from weightsmith.tensor.arrays import Array, blocked_sum, cast, namespace
from weightsmith.tensor.vector import columns

Positive: TypeAlias = Annotated[float, Real(0, open_low=True)]
LARGEST = 32_767  # of a code


def _prepare(*, step: float) -> Statistics:
    """Ask for the root of the mean square; return D."""

    def squares(base: Array, vectors: Array, tile: Tile) -> Array:
        wide = cast(vectors[0], "float64")
        return columns(blocked_sum(wide * wide), blocked_sum(wide * 0 + 1))

    total, count = yield Sums(squares)
    return step * math.sqrt(total / count)


@encoding(form="rounded", prepare=_prepare, scope="parameter")
def rounded(
    task_vector: Array,
    *,
    step: Positive = 0.5,
    scope: Annotated[str, Choice(("model", "tensor"))] = "model",
    tile: Tile,
) -> Part:
    """Store every entry of a task vector as a whole number of steps, entropy-coded.

        D      = step * sqrt(mean of tau_t^2)
        q      = round(tau_t / D), ties to even
        result = base + D * q                  each entry off by at most D / 2

    The codes of a frame are stored byte plane by byte plane through zstd: about 3 bits per entry at step 0.5 and 4 at 0.25, fewer
    where few entries are large. Without the package zstandard they take 16.

    Args:
        task_vector: tau_t = finetuned - base, (n,).
        step: Of the root mean square of the task vector. From about 1.35 on most entries of a normal vector are 0; ternary
            vectors are shorter there.
        scope: What the mean is over: the whole model, so that all tensors have one bound, or each tensor.
        tile: Carries D.

    Returns:
        q, (n,), and D as "scale". An entry beyond 32,767 steps is cut off there.

    Differs from the paper: the bound follows from the step, not from a search over accuracies; zstd in place of its predictor
    and lossless stage.
    Cost: two passes over base and task.

    Command:
        weightsmith pack rounded --base B --model math=A1 --model code=A2 --step 0.5 --out BUNDLE

    Example:
        >>> import numpy as np
        >>> part = rounded(np.array([3.0, -1.0, 0.4, 0.0]), step=0.5)
        >>> part.arrays["codes"].tolist(), round(part.settings["scale"], 3)
        ([4, -1, 1, 0], 0.797)
    """
    size = tile.statistics
    codes = namespace(task_vector).round(task_vector / (size or 1.0)).clip(-LARGEST, LARGEST)
    return Part({"codes": cast(codes, "int16")}, {"scale": size})
