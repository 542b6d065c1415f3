"""Reversible model merging, RMM: an affine basis of low-rank factors (2025, arXiv:2510.14163)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np

from weightsmith.arguments import Choice, Count, Ordinal
from weightsmith.compress.low_rank import VALUES
from weightsmith.encoding import Part, encoding
from weightsmith.matrices import Matrices
from weightsmith.method import Tile
from weightsmith.tensor.affine import affine_basis, balanced, coefficients, turned
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.spectral import leading, task_factors, wide

ROUNDS = 200  # of turning all pairs towards their mean
STILL = 1e-7  # share of its norm that the mean moves by where it stands still


def _gather(matrices: Matrices, *, rank: Ordinal = 16, basis: Count = 3) -> Mapping[str, Array]:
    """Return means and directions of all tasks' factors, (rows or columns, r) and (rows or columns, p, r).

    Args:
        rank: r, of each task's factors; at most min(m, n).
        basis: p, how many numbers a task stores per row and per column.
    """
    r = min(rank, *matrices.shape)
    pairs = _aligned([balanced(task_factors(matrices, t, r), r) for t in range(len(matrices))])
    left, right = affine_basis([a for a, _ in pairs], basis), affine_basis([b.T for _, b in pairs], basis)
    return {"mean_left": left[0], "basis_left": left[1], "mean_right": right[0], "basis_right": right[1]}


def _aligned(pairs: Sequence[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
    """Return the pairs turned towards the first, then all towards their mean until it stands still."""
    target, found = pairs[0], list(pairs)
    for _ in range(ROUNDS):
        found = [turned(*pair, *target) for pair in found]
        before, target = target, (sum(a for a, _ in found) / len(found), sum(b for _, b in found) / len(found))
        moved = max(float(np.abs(new - old).max(initial=0.0)) for new, old in zip(target, before, strict=True))
        if moved <= STILL * max(float(np.abs(x).max(initial=0.0)) for x in target):
            break
    return found


@encoding(form="basis", gather=_gather, reach="matrix")
def rmm(
    task_vector: Array,
    shared: Mapping[str, Array],
    *,
    values: Annotated[str, Choice(tuple(VALUES))] = "float32",
    tile: Tile,
) -> Part:
    """Store each task's low-rank factors as points in a basis that all tasks share.

    With A_t (m, r) and B_t (r, n) the factors of tau_t cut to rank r, each with the square root of the singular values, and
    turned (A_t Q_t, Q_t^T B_t) to fit those of the other tasks: for row i of A, x_t = A_t[i], their mean mu and the p leading
    directions V (r, p) of x_t - mu; for columns of B alike:

        c_t = V^T (x_t - mu)              the task's part, p numbers per row and per column
        x_t ~ mu + V c_t                  result = base + A B

    Per row and column all tasks take r + p (r + T) numbers in place of r T. With p >= T - 1 all factors are kept; p = 0 gives the
    mean factors to every task. p above r (T - 1) / (r + T) takes more room than the factors themselves.

    Args:
        task_vector: tau_t = finetuned - base, (m, n); tensors of more axes as (first, all others).
        shared: Means and directions, see above; mean_left (m, r), basis_left (m, p, r), mean_right (n, r), basis_right (n, p, r).
        values: Dtype of the stored coefficients.
        tile: Names the tensor.

    Returns:
        left (m, p) and right (n, p), the coefficients c_t.

    Differs from the paper: how factors are turned is not in it. Here each pair is turned towards the first by orthogonal
    Procrustes, then all towards their mean until it stands still: so one that is added later, and has no part in mean and
    directions, is turned the same way. Vectors (one axis) are stored without loss.
    Cost: T symmetric eigenproblems of size min(m, n), m + n decompositions (T, r), in float64; memory for about 6 matrices.

    Command:
        weightsmith pack rmm --base B --model math=A1 --model code=A2 --rank 16 --basis 3 --out BUNDLE

    Example:
        >>> import numpy as np
        >>> from weightsmith.matrices import Matrices
        >>> taus = [np.diag([3.0, 0.0]), np.diag([1.0, 0.0])]
        >>> means = rmm.shared_arrays(Matrices(2, (2, 2), taus.__getitem__), {"rank": 1, "basis": 1})
        >>> rmm(taus[0], means).arrays["left"].shape
        (2, 1)
    """
    mean = wide(shared["mean_left"]), wide(shared["mean_right"])
    r = mean[0].shape[1]
    left, right = turned(*balanced(leading(wide(task_vector), r), r), mean[0], mean[1].T)
    along = {
        "left": coefficients(left, mean[0], wide(shared["basis_left"])),
        "right": coefficients(right.T, mean[1], wide(shared["basis_right"])),
    }
    return Part({k: v.astype(np.float32) for k, v in along.items()}, {"dtype": VALUES[values]})
