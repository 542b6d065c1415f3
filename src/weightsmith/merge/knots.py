"""KnOTS, merging of low-rank adapters in a common basis (Stoica et al., 2024, arXiv:2410.19735)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from weightsmith.arguments import Choice, NonNegative, Number, Proportion
from weightsmith.method import Given, Matrices, Need, Tile, method
from weightsmith.tensor.arrays import Array, namespace
from weightsmith.tensor.select import Kth, kth_magnitude, trim
from weightsmith.tensor.spectral import add_matrix, add_mean, common_basis, common_basis_of_products, wide

MERGES = ("ties", "sum")


def merge_blocks(block: Callable[[int], Array], count: int, density: float) -> Array:
    """Return the TIES merge (mean) of aligned blocks, one at a time in memory.

    Args:
        block: Gives block t, (k, n), float64; asked twice for each.
        count: How many blocks there are.
        density: Share kept of each block, by magnitude.

    Returns:
        (k, n), float64.
    """
    bounds: dict[int, Kth] = {}

    def trimmed(index: int) -> Array:
        flat = block(index).reshape(1, -1)
        if index not in bounds:
            (bounds[index],) = kth_magnitude(flat, [max(1, round(density * flat.shape[1]))])
        return trim(flat, bounds[index])[0]

    first = block(0)
    if not first.shape[0]:
        return first
    xp, shape = namespace(first), first.shape
    vote = sum((trimmed(t) for t in range(1, count)), trimmed(0))
    sign = xp.sign(vote)
    sign = xp.where(vote == 0, xp.sign(sign.sum()), sign)
    merged, agreeing = xp.zeros_like(vote), xp.zeros_like(vote)
    for index in range(count):
        part = trimmed(index)
        agrees = part * sign > 0
        merged += part * agrees
        agreeing += agrees
    return (merged / xp.clip(agreeing, 1, None)).reshape(shape)


def need(given: Given) -> Need:
    """Return what it holds, as measured, and reads: for the joint Gram matrix, and for the blocks."""
    rows, columns, count = given.rows, given.columns, len(given.ranks)
    plain = given.parameters["merge"] == "sum"
    if given.factored is not None:  # factors, their QR and the blocks; then the product
        kept = min(rows, given.factored) * (count + 10) * columns
        return Need(
            1.5 + (given.factored * (6 * rows + 3 * columns) + kept) / (rows * columns), (0,) * count, factors=1
        )
    side = min(rows, count * columns)
    if side == rows:  # the first block is asked for once more, for its shape
        loads = [2] * count if plain else [3 + (t == 0) for t in range(count)]
    else:
        loads = [t + 2 + (t == 0) for t in range(count)]
    square = side * side / (rows * columns)
    return Need(max(6.5 * square, (3.5 if plain else 8.5) * side / rows + 2.8 * square), tuple(loads), factors=1)


@method(reach="matrix", vectors=add_mean, matrices=need)
def knots(
    base: Array,
    task_vectors: Matrices,
    *,
    density: Proportion = 0.2,
    lambda_: Number = 0.6,
    merge: Annotated[str, Choice(MERGES)] = "ties",
    cutoff: NonNegative = 1e-5,
    tile: Tile,
) -> Array:
    """Rotate task vectors into the basis they span together, merge them there by TIES, rotate back.

    With [tau_1 .. tau_T] = U S V^T side by side along the inputs and D_t = S V_t^T the T blocks, all in the basis U:

        result = base + lambda * U TIES(D_1 .. D_T)

    TIES as in `ties` with merge mean, over the entries of this matrix's blocks. Vectors (one axis): base + lambda * mean of
    the task vectors.

    Args:
        base: The base model's matrix, (m, n); tensors of more axes as (first, all others).
        task_vectors: finetuned - base, T times (m, n), best of adapters.
        density: Share kept of each block: the round(density * size) largest by magnitude, at least one.
        lambda_: Scale; the paper tunes it, 0.6 is its value for vision models.
        merge: What merges the blocks: ties, or sum, with which the result is that of `task_arithmetic`.
        cutoff: Singular values up to this are dropped; in units of the weights, as in the authors' code.
        tile: Unused.

    Returns:
        (m, n), dtype of base.

    Differs from the paper: singular values up to 1e-6 of the largest are dropped too.
    Cost: where all models are adapters, QR of their factors and a decomposition of the size of their ranks together;
    otherwise one symmetric eigenproblem of size min(m, T n) in float64, every model being read three or four times. Memory for
    2 matrices, or about 12, 16 where m = 2.5 n, more beyond. Same bytes on one machine; elsewhere to rounding.

    Command:
        weightsmith merge knots --base B --model B+LORA1 --model B+LORA2 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.array([[3.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [4.0, -2.0]])]
        >>> knots(np.zeros((2, 2)), taus, density=0.25, lambda_=1.0).round(6).tolist()
        [[3.0, 0.0], [4.0, 0.0]]
    """
    count = len(task_vectors)
    given: Any = [task_vectors.factors(t) for t in range(count)]
    if all(g is not None for g in given):
        back, block = common_basis_of_products([(wide(left), wide(right)) for left, right in given], cutoff)
    else:
        back, block = common_basis(task_vectors, cutoff)
    plain = merge == "sum"
    merged = sum((block(t) for t in range(1, count)), block(0)) if plain else merge_blocks(block, count, density)
    return add_matrix(base, back(merged), lambda_)
