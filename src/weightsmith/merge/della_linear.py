"""DELLA without sign election (Deep et al., 2024, arXiv:2406.11617, as mergekit's della_linear)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Coefficients, Flag, Number, Seed
from weightsmith.merge.della import RESCALE, norm_factors, prepare, thinned
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.consensus import merge_stepwise


@method(prepare=prepare, scope="tensor", reach="row")
def della_linear(
    base: Array,
    task_vectors: Array,
    *,
    densities: Coefficients = None,
    epsilons: Coefficients = None,
    coefficients: Coefficients = None,
    lambda_: Number = 1.0,
    normalize: Flag = False,
    rescale: Annotated[str, Choice(RESCALE)] = "inverse",
    seed: Seed = 0,
    tile: Tile,
) -> Array:
    """Add task vectors of which entries are kept at random, the larger of a row the more likely.

    With chances p_t and draws b_t as in `della`:

        result = base + lambda * sum_t c_t b_t tau_t / p_t [ / sum_t c_t ]           (the divisor if normalize)

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        densities: Share kept, one per model; 0.6 each by default. 1 or more keeps all, 0 or less nothing.
        epsilons: Half the spread of the chances, one per model; 0.15 each by default.
        coefficients: c_t, one per model; 1 each by default.
        lambda_: Scale of the sum.
        normalize: Whether the sum is divided by the coefficients.
        rescale: inverse divides by p_t as in the paper; l1 gives each tensor its L1 norm back, as mergekit does.
        seed: As in `dare`.
        tile: Gives name, position, norms, and the precision to which each step is rounded.

    Returns:
        (n,), dtype of base.

    Raises:
        ArgumentError: A density between 0 and 1 with epsilon leaves the open interval.

    Differs from the paper: leaves out its election; rows are the last axis. mergekit has rescale l1.
    Cost: a sort of each row, one pass over T + 1 models, two with l1; memory for a tile of whole rows.

    Command:
        weightsmith merge della_linear --base B --model A1 --model A2 --densities 0.6,0.6 --out OUT

    Example:
        >>> import numpy as np
        >>> della_linear(np.zeros(4), [np.array([1.0, 2.0, 3.0, 4.0])], seed=3).round(2).tolist()
        [0.0, 3.64, 0.0, 5.33]
    """
    return merge_stepwise(
        base,
        thinned(task_vectors, densities, epsilons, rescale, seed, tile),
        norm_factors(densities, tile, len(task_vectors)),
        coefficients or (1.0,) * len(task_vectors),
        lambda_=lambda_,
        consensus=False,
        normalize=normalize,
        precision=tile.precision,
    )
