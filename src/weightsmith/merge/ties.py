"""TIES merging (Yadav et al., 2023, arXiv:2306.01708)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Number, Proportion
from weightsmith.method import Kth, KthMajority, Statistics, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import trim
from weightsmith.tensor.sign import MERGES, merge_agreeing
from weightsmith.tensor.vector import add_scaled


def prepare(*, density: float) -> Statistics:
    """Ask for each task vector's threshold and the majority sign of the trimmed sum."""
    kth, total = yield KthMajority(lambda size: max(1, round(density * size)))
    return kth, int(total > 0) - int(total < 0)


def ties_vector(task_vectors: Array, statistics: tuple[Kth, int], merge: str, position: int) -> Array:
    """Trim, elect, merge: (T, n) -> (n,), given what `prepare` found."""
    kth, undecided = statistics
    return merge_agreeing(trim(task_vectors, kth, start=position), merge, undecided)


@method(prepare=prepare, scope="parameter")
def ties(
    base: Array,
    task_vectors: Array,
    *,
    density: Proportion = 0.2,
    lambda_: Number = 1.0,
    merge: Annotated[str, Choice(MERGES)] = "mean",
    scope: Annotated[str, Choice(("model", "tensor"))] = "model",
    tile: Tile,
) -> Array:
    """Add task vectors after trimming them and dropping entries that disagree in sign.

    With t_i the i-th task vector trimmed to its largest entries, s = sign(sum_i t_i), where that sum is zero the sign that
    most entries of the scope elected, and A = {i : sign(t_i) = s}, entry by entry:

        result = base + lambda * (1 / |A|) * sum over A of t_i        (0 where A is empty)

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        density: Share of entries kept per task vector: the round(density * size) largest by magnitude, at least one, the
            earlier entry first when equal.
        lambda_: Scale of the merged task vector; 0 gives the base. The paper uses 1 with mean.
        merge: mean as in the paper; sum leaves out the division; max takes the largest agreeing entry.
        scope: What `size` and "most entries" refer to: the whole model, as in the paper, or each tensor.
        tile: Carries thresholds and majority sign.

    Returns:
        (n,), dtype of base.

    Differs from the paper: exactly round(density * size) entries are kept (its code keeps one more, and all ties); where
    the vote of the whole scope is level too, undecided entries are 0.
    Cost: mostly three passes over T + 1 models, two where each tensor is ranked, one more where a guess fails; memory for
    262,144 bins per task, or for a third of a tensor, and a tile.

    Command:
        weightsmith merge ties --base B --model A1 --model A2 --density 0.2 --out OUT

    Example:
        >>> import numpy as np
        >>> base = np.zeros(4)
        >>> ties(base, [np.array([3.0, -1.0, 0.2, 0.1]), np.array([1.0, 2.0, -0.1, 0.3])], density=0.5).tolist()
        [2.0, 2.0, 0.0, 0.0]
    """
    return add_scaled(base, ties_vector(task_vectors, tile.statistics, merge, tile.position), lambda_)
