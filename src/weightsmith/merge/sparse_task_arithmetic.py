"""Task arithmetic over sparse task vectors (arXiv:2212.04089, arXiv:2306.01708, arXiv:2311.03099), as mergekit has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from weightsmith.arguments import Choice, Coefficients, Flag, Number, Seed
from weightsmith.method import KthMagnitude, Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array, like
from weightsmith.tensor.chance import keep_random
from weightsmith.tensor.consensus import l1_factors, merge_stepwise
from weightsmith.tensor.rounding import rounded
from weightsmith.tensor.select import random_key, trim
from weightsmith.tensor.sparsity import band, own_kth
from weightsmith.tensor.vector import absolute_sum, columns

WAYS = ("none", "magnitude", "random", "outliers")
DROP_TOP = 0.01


def _prepare(
    *, sparsify: str, densities: Sequence[float] | None, gammas: Sequence[float] | None, rescale: bool, seed: int
) -> Statistics | None:
    if sparsify == "none" or all(d >= 1 for d in densities or ()) or (sparsify == "random" and not rescale):
        return None
    return _search(sparsify, densities or (), gammas, rescale, seed)


def _search(sparsify: str, densities: Any, gammas: Any, rescale: bool, seed: int) -> Statistics:
    found = None
    if sparsify != "random":
        given = list(zip(densities, gammas or [DROP_TOP] * len(densities), strict=True))
        different = list(dict.fromkeys(given))
        kths = yield KthMagnitude(lambda size: [k for d, g in different for k in band(d, g, sparsify, size)])
        places = [different.index(pair) for pair in given]
        found = tuple(own_kth([kths[2 * p + side] for p in places]) for side in (1, 0))
    if not rescale:
        return found, None

    def norms(base: Array, task_vectors: Array, tile: Tile) -> Array:
        kept = _sparse(task_vectors, densities, seed, found, tile)
        return columns(*(absolute_sum(rounded(v, tile.precision)) for v in (*task_vectors, *kept)))

    sums = yield Sums(norms)
    return found, sums


def _sparse(task_vectors: Array, densities: Sequence[float], seed: int, found: Any, tile: Tile) -> Array:
    if found is not None:
        inside, outside = found
        return trim(task_vectors, inside, outside, tile.position)
    keys = [random_key(seed, t, tile.name) for t in range(len(task_vectors))]
    shares = rounded(like([[d] for d in densities], task_vectors), tile.precision)
    return keep_random(task_vectors, shares, keys, tile.start)


@method(prepare=_prepare, scope="tensor")
def sparse_task_arithmetic(
    base: Array,
    task_vectors: Array,
    *,
    sparsify: Annotated[str, Choice(WAYS)] = "none",
    densities: Coefficients = None,
    gammas: Coefficients = None,
    coefficients: Coefficients = None,
    consensus: Flag = False,
    normalize: Flag = False,
    rescale: Flag = False,
    lambda_: Number = 1.0,
    seed: Seed = 0,
    tile: Tile,
) -> Array:
    """Drop entries of each task vector, weigh, drop those that disagree in sign, add up.

    With m_t the entries kept, f_t = |tau_t|_1 / |m_t tau_t|_1 if rescale else 1, v_t = c_t f_t m_t tau_t and, entry by entry,
    s = 1 where sum_t v_t >= 0, else -1, and A = {t : sign(v_t) = s} (all t without consensus):

        result = base + lambda * sum over A of v_t [ / sum over A of c_t ]        (the divisor if normalize)

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        sparsify: none; magnitude keeps the max(1, trunc(density * n)) largest of a tensor; random keeps each entry with
            probability density; outliers drops the trunc(gamma * n) largest, then keeps trunc(density * n).
        densities: Share kept, one per model; 1, the default, or more keeps all and rescales nothing.
        gammas: Share of largest entries that outliers drops, one per model; 0.01 by default.
        coefficients: c_t, one per model; 1 each by default. They weigh the vote too.
        consensus: Whether a sign is elected.
        normalize: Whether the sum is divided by the coefficients that went into it (by 1 where they cancel).
        rescale: Whether each sparse vector gets its L1 norm back.
        lambda_: Scale of the sum.
        seed: As in `dare`.
        tile: Carries bounds and norms, and the precision to which each step is rounded.

    Returns:
        (n,), dtype of base.

    Differs from the paper: this is mergekit's family (task_arithmetic, ties, dare_linear, dare_ties, breadcrumbs,
    breadcrumbs_ties): per tensor, a level vote elects plus, L1 norms instead of 1 / density. The papers' forms are the
    methods of those names. Among equals the earlier entry is kept; with a narrow precision the unrounded entries rank.
    Cost: up to four passes over T + 1 models; memory for 65,536 counters per task and bound, and a tile.

    Command:
        weightsmith merge sparse_task_arithmetic --base B --model A1 --model A2 --sparsify magnitude --densities 0.5,0.5 --out OUT

    Example:
        >>> import numpy as np
        >>> a, b = np.array([3.0, -1.0, 0.2, 0.1]), np.array([1.0, 2.0, -0.1, 0.3])
        >>> sparse_task_arithmetic(np.zeros(4), [a, b], sparsify="magnitude", densities=(0.5, 0.5), consensus=True).tolist()
        [4.0, 2.0, 0.0, 0.0]
    """
    shares = densities or (1.0,) * len(task_vectors)
    factors = [1.0] * len(task_vectors)
    if sparsify != "none" and min(shares) < 1:
        found, sums = tile.statistics or (None, None)
        if sums is not None:
            sums = zip(*sums.reshape(2, -1).tolist(), shares, strict=True)
            work = "float32" if sparsify == "random" and tile.precision == "float16" else tile.precision
            factors = [1.0 if d >= 1 else l1_factors([u], [v], work)[0] for u, v, d in sums]
        task_vectors = _sparse(task_vectors, shares, seed, found, tile)
    return merge_stepwise(
        base,
        task_vectors,
        factors,
        coefficients or (1.0,) * len(task_vectors),
        lambda_=lambda_,
        consensus=consensus,
        normalize=normalize,
        precision=tile.precision,
    )
