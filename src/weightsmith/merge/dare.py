"""DARE: drop and rescale (Yu et al., 2023, arXiv:2311.03099)."""

from __future__ import annotations

from weightsmith.arguments import Coefficients, Number, Proportion, Seed
from weightsmith.method import Tile, method
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import drop_random, random_key
from weightsmith.tensor.vector import add_scaled, weighted_sum


def dropped(task_vectors: Array, density: float, seed: int, tile: Tile) -> Array:
    """Return the task vectors with a random share kept and rescaled, (T, n)."""
    keys = [random_key(seed, task, tile.name) for task in range(len(task_vectors))]
    return drop_random(task_vectors, density, keys, tile.start)


@method()
def dare(
    base: Array,
    task_vectors: Array,
    *,
    density: Proportion = 0.5,
    coefficients: Coefficients = None,
    lambda_: Number = 1.0,
    seed: Seed = 0,
    tile: Tile,
) -> Array:
    """Add task vectors of which a random share of the entries is kept and rescaled.

    With b_t entries drawn from {0, 1}, P(b_t = 1) = density:

        result = base + lambda * sum_t c_t (b_t * tau_t) / density

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        density: Share kept, 1 - p in the paper; 1 is task arithmetic.
        coefficients: c_t, one per model; 1 each by default.
        lambda_: Scale of the sum.
        seed: Entry i of task t in a tensor is kept or dropped by (seed, t, the tensor's name, i) alone.
        tile: Gives name and position.

    Returns:
        (n,), dtype of base.

    Differs from the paper: nothing. mergekit restores the L1 norm of each tensor instead of dividing by the density.
    Cost: one pass over T + 1 models; memory for a tile.

    Command:
        weightsmith merge dare --base B --model A1 --model A2 --density 0.1 --seed 0 --out OUT

    Example:
        >>> import numpy as np
        >>> dare(np.zeros(6), [np.ones(6)], density=0.5, seed=1).tolist()
        [0.0, 2.0, 2.0, 2.0, 2.0, 0.0]
    """
    return add_scaled(base, weighted_sum(dropped(task_vectors, density, seed, tile), coefficients), lambda_)
