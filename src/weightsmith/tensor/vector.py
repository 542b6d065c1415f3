"""Task vectors: difference, weighted sum, scale, inner products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, blocked_sum, cast, is_compiled, like, namespace


def task_vectors(base: Array, finetuned: Array) -> Array:
    """Return finetuned - base. base: (n,); finetuned: (T, n); result (T, n), same dtype."""
    return finetuned - base


def weighted_sum(vectors: Array, coefficients: Sequence[float] | None = None) -> Array:
    """Return sum_t c_t * v_t, added left to right in the vectors' dtype; all c_t = 1 by default.

    Args:
        vectors: (T, n).
        coefficients: T numbers, rounded to the vectors' dtype.

    Returns:
        (n,), dtype of vectors.
    """
    factors = like([1.0] * len(vectors) if coefficients is None else list(coefficients), vectors)
    if is_compiled(vectors):
        return compiled.weighted_sum(vectors, factors)
    total = vectors[0] * factors[0]
    for vector, factor in zip(vectors[1:], factors[1:], strict=True):
        total = total + vector * factor
    return total


def add_scaled(base: Array, vector: Array, factor: float) -> Array:
    """Return base + factor * vector, (n,). A factor of 0 gives base itself, bit for bit."""
    scale = like(factor, base)
    if is_compiled(base, vector):
        return compiled.add_scaled(base, vector, scale[()])
    return base + vector * scale


def combine(first: Array, second: Array, left: float, right: float) -> Array:
    """Return left * first + right * second, (n,)."""
    a, b = like(left, first), like(right, first)
    if is_compiled(first, second):
        return compiled.combine(first, second, a[()], b[()])
    return first * a + second * b


def dot(first: Array, second: Array) -> Array:
    """Return the inner product in blocks: (n,), (n,) -> (ceil(n / BLOCK),), float64.

    Products and sums are formed in float64, each block by halving; add the blocks with math.fsum.
    """
    if is_compiled(first, second):
        return compiled.blocked_dot(first, second)
    return blocked_sum(cast(first, "float64") * cast(second, "float64"))


def absolute_sum(vector: Array) -> Array:
    """Return the L1 norm in blocks, as `dot` does: (n,) -> (ceil(n / BLOCK),), float64."""
    if is_compiled(vector):
        return compiled.blocked_absolute_sum(vector)
    return blocked_sum(namespace(vector).abs(cast(vector, "float64")))


def columns(*parts: Array) -> Array:
    """Return block sums side by side, as a reduction hands them to the engine: k times (b,) -> (b, k)."""
    return np.stack([np.asarray(p if isinstance(p, np.ndarray) else p.cpu()) for p in parts], axis=1)


def integer_block(value: int) -> Array:
    """Return a whole number as one block sum, (1,), float64; exact below 2**53."""
    return np.array([value], np.float64)
