"""Singular vectors and polar factors of matrices, through Gram matrices in float64.

The Gram matrix of the smaller side squares the singular values, so float64 keeps of them what float32 inputs hold:
directions below NULL of the largest singular value are rounding noise and count as zero. One symmetric eigenproblem and
products replace a singular value decomposition. All results are float64. BLAS decides the order of sums: the same bytes
come out on one machine with one setting of its threads; elsewhere they differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from weightsmith.tensor.arrays import Array, cast, like, namespace
from weightsmith.tensor.vector import add_scaled, weighted_sum

ALGORITHMS = ("exact", "randomized")
NULL = 1e-6  # of the largest singular value: what lies below counts as zero
OVERSAMPLING, POWER = 10, 2  # of the randomized form: extra columns, power iterations
CHUNK = 1 << 16  # elements that an elementwise loop over a matrix takes at a time, to stay in cache


class Factors(NamedTuple):
    """left @ diag(values) @ right: singular vectors and values, largest first; zeros where a value counts as zero.

    Attributes:
        left: (rows, k), float64.
        values: (k,), float64.
        right: (k, columns), float64.
    """

    left: Array
    values: Array
    right: Array


def wide(matrix: Array) -> Array:
    """Return the matrix in float64."""
    return cast(matrix, "float64")


def eigen(gram: Array) -> tuple[Array, Array]:
    """Return the square roots of a Gram matrix's eigenvalues (n,), largest first, and its eigenvectors (n, n)."""
    xp = namespace(gram)
    squares, vectors = xp.linalg.eigh(gram)
    return xp.flip(xp.sqrt(xp.clip(squares, 0, None)), (0,)), xp.flip(vectors, (1,))


def inverted(values: Array, null: float = NULL) -> Array:
    """Return 1 / value, 0 for a value up to `null` times the largest. values: (k,), the largest first."""
    xp = namespace(values)
    kept = values > null * values[:1]
    return xp.where(kept, 1 / xp.where(kept, values, xp.ones_like(values)), xp.zeros_like(values))


def leading(matrix: Array, rank: int) -> Factors:
    """Return the `rank` leading singular triplets, exactly; zeros in place of those that count as zero.

    Args:
        matrix: (rows, columns), float64.
        rank: At most min(rows, columns).
    """
    if matrix.shape[0] > matrix.shape[1]:
        turned = leading(matrix.T, rank)
        return Factors(turned.right.T, turned.values, turned.left.T)
    return _leading(matrix, rank)[0]


def _leading(matrix: Array, rank: int) -> tuple[Factors, Array]:
    """Return the leading triplets of a matrix with rows <= columns, and all its left singular vectors (rows, rows)."""
    values, vectors = eigen(matrix @ matrix.T)
    inverse = inverted(values)[:rank]
    kept = inverse > 0
    left = vectors[:, :rank]
    return Factors(left * kept, values[:rank] * kept, (left * inverse).T @ matrix), vectors


def split(matrix: Array, rank: int) -> tuple[Factors, Array]:
    """Return the leading triplets, those that count as zero left out, and the rest of the left space.

    Args:
        matrix: (rows, columns), float64.
        rank: At most min(rows, columns).

    Returns:
        k <= rank triplets; an orthonormal basis of what is orthogonal to their left vectors, (rows, rows - k) where
        rows <= columns, otherwise (rows, 0).
    """
    if matrix.shape[0] > matrix.shape[1]:
        found, vectors = leading(matrix, rank), matrix[:, :0]
    else:
        found, vectors = _leading(matrix, rank)
    kept = int((found.values > 0).sum())
    return Factors(found.left[:, :kept], found.values[:kept], found.right[:kept]), vectors[:, kept:]


def sketched(matrix: Array, rank: int, key: int) -> Factors:
    """Return about the `rank` leading singular triplets, from a random sketch of rank + OVERSAMPLING columns.

    With k = rank, p = OVERSAMPLING, q = POWER, r = min(rows, columns), s_i the singular values, the expected error in the
    spectral norm is at most (Halko, Martinsson and Tropp, 2011, arXiv:0909.4061, Cor. 10.10; before truncation to k)

        s_(k+1) * (1 + sqrt(k / (p - 1)) + e sqrt(k + p) / p * sqrt(r - k)) ** (1 / (2 q + 1))

    Exact where the sketch would be as large as the matrix.

    Args:
        matrix: (rows, columns), float64.
        rank: At most min(rows, columns).
        key: Seed of the sketch.
    """
    width = rank + OVERSAMPLING
    if width >= min(matrix.shape):
        return leading(matrix, rank)
    drawn = like(np.random.default_rng(key).standard_normal((matrix.shape[1], width)), matrix)
    basis, _ = polar(matrix @ drawn)
    for _ in range(POWER):
        basis, _ = polar(matrix.T @ basis)
        basis, _ = polar(matrix @ basis)
    left, values, right = leading(basis.T @ matrix, rank)
    return Factors(basis @ left, values, right)


def of_product(left: Array, right: Array, rank: int) -> Factors:
    """Return the leading singular triplets of left @ right, at most `rank`, without forming the product.

    Args:
        left: (rows, k), float64.
        right: (k, columns), float64.
        rank: Most triplets; there are at most min(rows, k, columns).
    """
    xp = namespace(left)
    if left.shape[1] == 0:
        return Factors(left, like([], left), right)
    (outer, first), (inner, second) = xp.linalg.qr(left), xp.linalg.qr(right.T)
    u, values, v = xp.linalg.svd(first @ second.T, full_matrices=False)
    kept = values[:rank] > NULL * values[:1]
    return Factors(outer @ u[:, :rank] * kept, values[:rank] * kept, (v[:rank] * kept[:, None]) @ inner.T)


def task_factors(task_vectors: Any, index: int, rank: int, key: int | None = None) -> Factors:
    """Return the leading singular triplets of one task vector; through its low-rank factors where it has them.

    Args:
        task_vectors: Matrices, see `weightsmith.method.Matrices`.
        index: Which.
        rank: Most triplets; at most min(rows, columns).
        key: Seed of the randomized form; None for the exact one.
    """
    given = task_vectors.factors(index)
    if given is not None:
        return of_product(wide(given[0]), wide(given[1]), rank)
    matrix = wide(task_vectors[index])
    return leading(matrix, rank) if key is None else sketched(matrix, rank, key)


def joined(parts: Sequence[Factors]) -> Factors:
    """Return the triplets of all parts side by side."""
    xp = namespace(parts[0].left)
    return Factors(*(xp.concatenate([p[i] for p in parts], axis) for i, axis in enumerate((1, 0, 0))))


def polar(matrix: Array) -> tuple[Array, Array]:
    """Return the orthonormal polar factor and the singular values.

    With matrix = U S V^T the factor is U V^T over the directions that do not count as zero: the nearest matrix with
    orthonormal columns (or rows) where there are none such, otherwise a partial isometry, zero in the null directions,
    where a singular value decomposition would choose anything. Off by at most 1e-17 times the squared ratio of the largest
    to the smallest kept singular value, 1e-5 where that is at NULL.

    Args:
        matrix: (rows, columns), float64.

    Returns:
        (rows, columns) and (min(rows, columns),), largest first, 0 for those that count as zero.
    """
    if matrix.shape[0] > matrix.shape[1]:
        turned, values = polar(matrix.T)
        return turned.T, values
    values, vectors = eigen(matrix @ matrix.T)
    inverse = inverted(values)
    half = vectors * namespace(matrix).sqrt(inverse)
    return (half @ half.T) @ matrix, values * (inverse > 0)


def sum_factors(task_vectors: Any) -> Factors | None:
    """Return all singular triplets of the sum of task vectors through their low-rank factors; None where one has none."""
    given = [task_vectors.factors(t) for t in range(len(task_vectors))]
    if any(g is None for g in given):
        return None
    xp = namespace(given[0][0])
    left, right = (wide(xp.concatenate([g[i] for g in given], axis)) for i, axis in enumerate((1, 0)))
    return of_product(left, right, left.shape[1])


def total(task_vectors: Any) -> Array:
    """Return the sum of the task vectors, (rows, columns), float64, loading one at a time."""
    first = task_vectors[0]
    added = wide(first)
    if added is first:
        added = first + 0.0
    for index in range(1, len(task_vectors)):
        added += task_vectors[index]
    return added


def side_by_side(base: Array, task_vectors: Any) -> tuple[Array, list[float]]:
    """Return the task vectors row by row, (m, T, n), in base's dtype, and their norms."""
    xp = namespace(base)
    stack = xp.concatenate([xp.zeros_like(base)[:, None, :]] * len(task_vectors), 1)
    norms = []
    for index in range(len(task_vectors)):
        tau = task_vectors[index]
        stack[:, index] = tau
        norms.append(float(xp.linalg.norm(cast(tau, "float64"))))
    return stack, norms


def common_basis(task_vectors: Any, cutoff: float) -> tuple[Callable[[Array], Array], Callable[[int], Array]]:
    """Return what [tau_1 .. tau_T] = U S V^T gives: Y (k, columns) -> U Y, and t -> S V_t^T (k, columns).

    Args:
        task_vectors: T matrices (rows, columns), loaded anew at every use.
        cutoff: Singular values up to this, and those that count as zero, are left out.
    """
    count, (rows, columns) = len(task_vectors), task_vectors.shape
    if rows <= count * columns:
        gram = sum(m @ m.T for m in map(wide, task_vectors))
        basis = _above(*eigen(gram), cutoff)[1]
        return lambda merged: basis @ merged, lambda t: basis.T @ wide(task_vectors[t])
    gram = like(np.zeros((count * columns, count * columns)), wide(task_vectors[0]))
    parts = [slice(t * columns, (t + 1) * columns) for t in range(count)]
    for s in range(count):
        held = wide(task_vectors[s])
        gram[parts[s], parts[s]] = held.T @ held
        for t in range(s + 1, count):
            block = held.T @ wide(task_vectors[t])
            gram[parts[s], parts[t]], gram[parts[t], parts[s]] = block, block.T
    values, right = _above(*eigen(gram), cutoff)

    def back(merged: Array) -> Array:
        inner = [(right[part] / values) @ merged for part in parts]
        return sum(wide(task_vectors[t]) @ inner[t] for t in range(count))

    return back, lambda t: (right[parts[t]] * values).T


def common_basis_of_products(
    products: Sequence[tuple[Array, Array]], cutoff: float
) -> tuple[Callable[[Array], Array], Callable[[int], Array]]:
    """Return what `common_basis` does, for task vectors left_t @ right_t, by QR of the factors.

    Args:
        products: T pairs (rows, k_t) and (k_t, columns), float64.
        cutoff: As there.
    """
    xp = namespace(products[0][0])
    outer, core = xp.linalg.qr(xp.concatenate([left for left, _ in products], 1))
    inner = [xp.linalg.qr(right.T) for _, right in products]
    ends = np.cumsum([0, *(right.shape[0] for _, right in products)])
    cores = [core[:, a:b] @ r.T for a, b, (_, r) in zip(ends[:-1], ends[1:], inner, strict=True)]
    joint = xp.concatenate(cores, 1)
    if not joint.shape[1]:
        return lambda merged: outer @ merged, lambda t: cores[t] @ inner[t][0].T
    vectors, values, _ = xp.linalg.svd(joint, full_matrices=False)
    basis = _above(values, vectors, cutoff)[1]
    turned = [(basis.T @ c) @ q.T for c, (q, _) in zip(cores, inner, strict=True)]
    return lambda merged: outer @ (basis @ merged), lambda t: turned[t]


def _above(values: Array, vectors: Array, cutoff: float) -> tuple[Array, Array]:
    """Return the values, and the columns that go with them, above cutoff and above what counts as zero."""
    kept = int(((values > cutoff) & (values > NULL * values[:1])).sum())
    return values[:kept], vectors[:, :kept]


def add_matrix(base: Array, merged: Array, lambda_: float) -> Array:
    """Return base + lambda * merged, flat, in base's dtype; base itself where that is 0. merged: any float dtype."""
    step = cast(merged, str(base.dtype).removeprefix("torch.")).reshape(-1)
    return add_scaled(base.reshape(-1), step, lambda_)


def add_mean(base: Array, task_vectors: Array, *, lambda_: float, **_: Any) -> Array:
    """Return base + lambda * mean of the task vectors: what matrix methods do with vectors. (n,), (T, n) -> (n,)."""
    return add_scaled(base, weighted_sum(task_vectors), lambda_ / len(task_vectors))


class Adam:
    """Adam (Kingma and Ba, 2014, arXiv:1412.6980) on one matrix, with decay 0.9 and 0.999."""

    def __init__(self, variable: Array, rate: float, epsilon: float) -> None:
        """Start at `variable` (rows, columns), which is changed in place.

        `rate` is about the size of a step; `epsilon` is the size of gradients that count as none.
        """
        zeros = namespace(variable).zeros_like
        self.variable, self.rate, self.steps = variable, rate, 0
        self.epsilon = max(epsilon, np.finfo(np.float32).tiny)
        self.mean, self.square = zeros(variable), zeros(variable)

    def step(self, gradient: Array) -> None:
        """Take one step against the gradient (rows, columns)."""
        self.steps += 1
        xp, rows = namespace(gradient), max(1, CHUNK // gradient.shape[1])
        scale = self.rate / (1 - 0.9**self.steps)
        unbias = 1 / (1 - 0.999**self.steps)
        for start in range(0, gradient.shape[0], rows):
            g, mean, square = (x[start : start + rows] for x in (gradient, self.mean, self.square))
            mean += (g - mean) * 0.1
            square += (g * g - square) * 0.001
            self.variable[start : start + rows] -= scale * mean / (xp.sqrt(square * unbias) + self.epsilon)
