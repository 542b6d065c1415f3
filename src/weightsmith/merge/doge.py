"""DOGE task arithmetic, adaptive projective gradient descent (Wei et al., 2025, arXiv:2501.01230)."""

from __future__ import annotations

from typing import Annotated, Any

from weightsmith.arguments import Choice, Count, NonNegative, Number, Ordinal, Proportion
from weightsmith.method import Given, Kth, KthMagnitude, Matrices, Need, Statistics, Tile, method
from weightsmith.tensor.arrays import Array, cast, like, namespace
from weightsmith.tensor.select import is_among_largest
from weightsmith.tensor.spectral import Adam, add_matrix, joined, leading, side_by_side, task_factors

EPSILON = 1e-8  # gradients this much smaller than the first count as none


def prepare(*, density: float) -> Statistics:
    """Ask for the magnitude that each task vector's mask keeps."""
    (kth,) = yield KthMagnitude(lambda size: [max(1, round(density * size))])
    return kth


def keep_base(base: Array, task_vectors: Array, **_: Any) -> Array:
    """Return the base: vectors take no part. (n,), (T, n) -> (n,)."""
    return base


def shared_subspace(task_vectors: Matrices, divisor: int) -> Array:
    """Return the directions that the tasks share, (m, floor(r / divisor)), float64; zeros where there are fewer.

    Of the floor(r / T) leading left singular vectors of every task, side by side, the leading left singular vectors.
    """
    rank = min(task_vectors.shape)
    each = rank // len(task_vectors)
    left = joined([task_factors(task_vectors, t, each) for t in range(len(task_vectors))]).left
    return leading(left, min(rank // divisor, *left.shape)).left


def largest(task_vector: Array, kth: Kth, index: int, position: int) -> Array:
    """Return M_t, (m, n), bool, of the task vector `index` (m, n), whose first entry is at `position` of the scope."""
    own = Kth(kth.value[index : index + 1], kth.cut[index : index + 1])
    return is_among_largest(task_vector.reshape(1, -1), own, position).reshape(task_vector.shape)


def correction(stack: Array, factors: Array, shared: Array, steps: int, rate: float) -> Array:
    """Return Delta (m, n) after Adam's steps from 0, for the loss of `doge`, its gradient projected off `shared`.

    Args:
        stack: tau_t[i] at [i, t], (m, T, n).
        factors: lambda_t, (T,).
        shared: U, (m, k).
        steps: How many.
        rate: Adam's learning rate.
    """
    xp = namespace(stack)
    # Row by row: a_j = tau_j . (tau_j - sum_i lambda_i tau_i), and the loss is sum_j (a_j - L tau_j . Delta)^2.
    products = stack @ xp.swapaxes(stack, 1, 2)
    own = xp.diagonal(products, 0, 1, 2) - products @ factors
    delta, slope = xp.zeros_like(stack[:, 0]), factors.sum()
    adam = None
    for _ in range(steps):
        error = own - slope * (stack @ delta[:, :, None])[:, :, 0]
        gradient = (-error[:, None, :] @ stack)[:, 0, :]
        gradient -= shared @ (shared.T @ gradient)
        if adam is None:
            adam = Adam(
                delta, rate, EPSILON * float(xp.linalg.norm(gradient)) / (delta.shape[0] * delta.shape[1]) ** 0.5
            )
        adam.step(gradient)
    return delta


def need(given: Given) -> Need:
    """Return what it holds, as measured, and reads: to stack, to decompose, and to add."""
    return Need(2 + len(given.ranks) / 2 + 6.6 * given.short, tuple(2 + whole for whole in given.whole()), factors=1)


@method(
    prepare=prepare,
    scope="parameter",
    reach="matrix",
    vectors=keep_base,
    matrices=need,
)
def doge(
    base: Array,
    task_vectors: Matrices,
    *,
    eta: NonNegative = 0.07,
    density: Proportion = 0.3,
    subspace: Ordinal = 6,
    steps: Count = 400,
    rate: NonNegative = 0.2,
    lambda_: Number = 1.0,
    scope: Annotated[str, Choice(("model", "tensor"))] = "model",
    tile: Tile,
) -> Array:
    """Add task vectors of equal length, after a shared correction that moves them apart outside their common subspace.

    With lambda_t = eta / |tau_t|, U the subspace that the tasks share (its dimension floor(min(m, n) / subspace)), M_t the
    mask of the largest |tau_t|, and Delta what Adam makes of 0 in `steps` steps along the gradient (I - U U^T) g of

        loss = sum_j | rowsum( tau_j * (tau_j - sum_t lambda_t (tau_t + Delta)) ) |^2
        result = base + lambda * sum_t lambda_t (tau_t + Delta) * M_t

    U: the leading left singular vectors of the floor(min(m, n) / T) leading ones of every tau_t, side by side.
    Vectors (one axis) keep the base.

    Args:
        base: The base model's matrix, (m, n); tensors of more axes as (first, all others).
        task_vectors: finetuned - base, T times (m, n); one that is zero has lambda_t = 0.
        eta: Length that every task vector gets, in units of the weights.
        density: Share kept by M_t: the round(density * size) largest by magnitude, at least one.
        subspace: Divisor of the subspace's dimension.
        steps: Of Adam, with decay 0.9 and 0.999.
        rate: Adam's learning rate relative to the root mean square entry of all task vectors; 0.2 is about the paper's 1e-4.
        lambda_: Scale; the paper has none.
        scope: What `size` refers to: all merged tensors, as in the paper, or each tensor.
        tile: Carries the bounds.

    Returns:
        (m, n), dtype of base.

    Differs from the paper: after the authors' code, whose loss is not the one described; the learning rate follows the size
    of the task vectors, and Adam's epsilon is 1e-8 of the first gradient; M_t counts the entries of vectors too.
    Cost: T + 1 eigenproblems of size min(m, n); a step reads all task vectors twice. Memory for T / 2 and about 8 matrices
    in float64. Same bytes on one machine; elsewhere to rounding.

    Command:
        weightsmith merge doge --base B --model A1 --model A2 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.array([[3.0, 4.0]]), np.array([[0.0, 2.0]])]
        >>> doge(np.zeros((1, 2)), taus, eta=1.0, density=1.0, steps=0).round(6).tolist()
        [[0.6, 1.8]]
    """
    stack, norms = side_by_side(base, task_vectors)
    size = (sum(n * n for n in norms) / (len(norms) * base.shape[0] * base.shape[1])) ** 0.5
    if not size:
        return base
    stack /= size  # the correction is found in units of the task vectors
    factors = like([eta / n if n else 0.0 for n in norms], base)
    shared = cast(shared_subspace(task_vectors, subspace), str(base.dtype).removeprefix("torch."))
    delta = correction(stack, factors, shared, steps, rate) * size
    merged = namespace(base).zeros_like(base)
    for index, factor in enumerate(factors):
        tau = task_vectors[index]
        merged += factor * (tau + delta) * largest(tau, tile.statistics, index, tile.position)
    return add_matrix(base, merged, lambda_)
