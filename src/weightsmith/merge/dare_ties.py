"""DARE with TIES sign election (Yu et al., 2023, arXiv:2311.03099)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Number, Proportion, Seed
from weightsmith.merge.dare import dropped
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.sign import MERGES, merge_agreeing
from weightsmith.tensor.vector import add_scaled


@method()
def dare_ties(
    base: Array,
    task_vectors: Array,
    *,
    density: Proportion = 0.5,
    lambda_: Number = 1.0,
    merge: Annotated[str, Choice(MERGES)] = "mean",
    seed: Seed = 0,
    tile: Tile,
) -> Array:
    """Drop and rescale at random, then merge the entries that agree with the elected sign.

    With d_t = (b_t * tau_t) / density as in `dare`, s = sign(sum_t d_t) and A = {t : sign(d_t) = s}, entry by entry:

        result = base + lambda * (1 / |A|) * sum over A of d_t        (0 where A is empty or the vote is level)

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        density: Share kept at random.
        lambda_: Scale of the merged task vector.
        merge: mean, sum or max over those who agree.
        seed: As in `dare`.
        tile: Gives name and position.

    Returns:
        (n,), dtype of base.

    Differs from the paper: DARE takes the place of the trimming by magnitude; level votes give 0 (no pass for a majority).
    Cost: one pass over T + 1 models; memory for a tile.

    Command:
        weightsmith merge dare_ties --base B --model A1 --model A2 --density 0.3 --seed 0 --out OUT

    Example:
        >>> import numpy as np
        >>> dare_ties(np.zeros(2), [np.array([4.0, 1.0]), np.array([2.0, -3.0])], density=1.0).tolist()
        [3.0, -3.0]
    """
    return add_scaled(base, merge_agreeing(dropped(task_vectors, density, seed, tile), merge, 0), lambda_)
