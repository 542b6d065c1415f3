"""DELLA (Deep et al., 2024, arXiv:2406.11617)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from weightsmith.arguments import Choice, Coefficients, Flag, Number, Seed
from weightsmith.errors import ArgumentError
from weightsmith.method import Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.consensus import l1_factors, merge_stepwise
from weightsmith.tensor.ranks import row_absolute_sums, thin_rows
from weightsmith.tensor.rounding import rounded
from weightsmith.tensor.select import random_key

RESCALE = ("inverse", "l1", "none")
DENSITY, EPSILON = 0.6, 0.15
Shares = Sequence[float] | None


def prepare(*, densities: Shares, epsilons: Shares, rescale: str, seed: int) -> Statistics | None:
    """Check the shares; ask for the L1 norms of task vectors and of what is kept, where they are needed."""
    for density, epsilon in zip(*shares(densities, epsilons, 1), strict=False):
        if 0 < density < 1 and not (0 <= epsilon < density and density + epsilon < 1):
            raise ArgumentError(
                "merge della: epsilons",
                expected="0 <= epsilon, density - epsilon > 0 and density + epsilon < 1",
                got=f"density {density:g} and epsilon {epsilon:g}",
            )
    return _norms(densities, epsilons, seed) if rescale == "l1" else None


def shares(densities: Shares, epsilons: Shares, models: int) -> tuple[Sequence[float], Sequence[float]]:
    """Return a density and an epsilon for each model."""
    models = len(densities or epsilons or (0,) * models)
    return densities or (DENSITY,) * models, epsilons or (EPSILON,) * models


def _norms(densities: Shares, epsilons: Shares, seed: int) -> Statistics:
    def of(base: Array, task_vectors: Array, tile: Tile) -> Array:
        kept = thinned(task_vectors, densities, epsilons, "l1", seed, tile)
        parts = (rounded(v, tile.precision) for v in (task_vectors, kept))
        return np.concatenate([row_absolute_sums(v, tile.row_length) for v in parts], axis=1)

    found = yield Sums(of)
    return found.reshape(2, -1)


def thinned(task_vectors: Array, densities: Shares, epsilons: Shares, rescale: str, seed: int, tile: Tile) -> Array:
    """Return the task vectors with a random share kept, each entry divided by its chance where rescale is inverse."""
    return thin_rows(
        task_vectors,
        tile.row_length,
        *shares(densities, epsilons, len(task_vectors)),
        [random_key(seed, t, tile.name) for t in range(len(task_vectors))],
        start=tile.start,
        inverse=rescale == "inverse",
        precision=tile.precision,
    )


def norm_factors(densities: Shares, tile: Tile, models: int) -> Sequence[float]:
    """Return what gives each thinned task vector its L1 norm back; 1 where no norms were asked for, or all is kept."""
    if tile.statistics is None:
        return (1.0,) * models
    before, after = tile.statistics.tolist()
    factors = l1_factors(before, after, "float32" if tile.precision == "float16" else tile.precision)
    return [1.0 if d >= 1 else f for d, f in zip(densities or (DENSITY,) * models, factors, strict=True)]


@method(prepare=prepare, scope="tensor", reach="row")
def della(
    base: Array,
    task_vectors: Array,
    *,
    densities: Coefficients = None,
    epsilons: Coefficients = None,
    coefficients: Coefficients = None,
    lambda_: Number = 1.1,
    normalize: Flag = False,
    rescale: Annotated[str, Choice(RESCALE)] = "inverse",
    seed: Seed = 0,
    tile: Tile,
) -> Array:
    """Keep entries at random, the larger of a row the more likely, then merge those that agree with the elected sign.

    With r the rank of |tau_t| in its row of L entries, from 0 for the smallest, b_t drawn with P(b_t = 1) = p_t,
    v_t = c_t b_t tau_t / p_t, s = 1 where sum_t v_t >= 0, else -1, and A = {t : sign(v_t) = s}, entry by entry:

        p_t    = density - epsilon + 2 epsilon r / (L - 1)                           (density where L = 1)
        result = base + lambda * sum over A of v_t [ / sum over A of c_t ]           (the divisor if normalize)

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        densities: Share kept, one per model; 0.6 each by default. 1 or more keeps all, 0 or less nothing.
        epsilons: Half the spread of the chances, one per model; 0.15 each by default.
        coefficients: c_t, one per model; 1 each by default. They weigh the vote too.
        lambda_: Scale of the merged task vector.
        normalize: Whether the sum is divided by the coefficients that agree.
        rescale: inverse divides by p_t as in the paper; l1 gives each tensor its L1 norm back, as mergekit does.
        seed: As in `dare`.
        tile: Gives name, position, norms, and the precision to which each step is rounded.

    Returns:
        (n,), dtype of base.

    Raises:
        ArgumentError: A density between 0 and 1 with epsilon leaves the open interval.

    Differs from the paper: a level vote elects plus, and rows are the last axis. mergekit has normalize and rescale l1.
    Cost: a sort of each row where chances divide; one pass over T + 1 models, two with l1; memory for a tile of whole rows.

    Command:
        weightsmith merge della --base B --model A1 --model A2 --densities 0.6,0.6 --epsilons 0.1,0.1 --out OUT

    Example:
        >>> import numpy as np
        >>> della(np.zeros(4), [np.array([1.0, 2.0, 3.0, 4.0])], seed=3, lambda_=1.0).round(2).tolist()
        [0.0, 3.64, 0.0, 5.33]
    """
    return merge_stepwise(
        base,
        thinned(task_vectors, densities, epsilons, rescale, seed, tile),
        norm_factors(densities, tile, len(task_vectors)),
        coefficients or (1.0,) * len(task_vectors),
        lambda_=lambda_,
        consensus=True,
        normalize=normalize,
        precision=tile.precision,
    )
