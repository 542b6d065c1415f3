"""Task vectors: difference, weighted sum, scale, inner products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import BLOCK, Array, blocked_sum, cast, is_compiled, like, namespace


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
    """Return base + factor * vector, (n,); base itself, bit for bit (-0 too), where the product is 0."""
    scale = like(factor, base)
    if is_compiled(base, vector):
        return compiled.add_scaled(base, vector, scale[()])
    step = vector * scale
    return namespace(base).where(step == 0, base, base + step)


def combine(first: Array, second: Array, left: float, right: float) -> Array:
    """Return left * first + right * second, (n,)."""
    a, b = like(left, first), like(right, first)
    if is_compiled(first, second):
        return compiled.combine(first, second, a[()], b[()])
    return first * a + second * b


def gram(vectors: Array) -> Array:
    """Return all inner products in blocks: (T, n) -> (ceil(n / BLOCK), T (T + 1) / 2), float64.

    Columns are the pairs (0, 0), (0, 1), ..., (0, T - 1), (1, 1), ... Products and sums are formed in float64, each block
    as `blocked_sum` does; add the blocks with math.fsum.
    """
    if is_compiled(vectors):
        return compiled.gram(vectors, BLOCK)
    wide = [cast(v, "float64") for v in vectors]
    return columns(*(blocked_sum(wide[s] * wide[t]) for s in range(len(wide)) for t in range(s, len(wide))))


def absolute_sum(vector: Array) -> Array:
    """Return the L1 norm in blocks, as `gram` does: (n,) -> (ceil(n / BLOCK),), float64."""
    if is_compiled(vector):
        return compiled.blocked_absolute_sum(vector)
    return blocked_sum(namespace(vector).abs(cast(vector, "float64")))


def columns(*parts: Array) -> Array:
    """Return block sums side by side, as a reduction hands them to the engine: k times (b,) -> (b, k)."""
    return np.stack([np.asarray(p if isinstance(p, np.ndarray) else p.cpu()) for p in parts], axis=1)


def pair_sums(first: Array, second: Array) -> tuple[Array, Array, float]:
    """Return what tells two vectors apart, NaN and infinity left out of the sums.

    With a, b the entries finite in both, in float64, and d = a - b:

    Args:
        first: (n,), float32 or float64.
        second: (n,), of the same dtype.

    Returns:
        Block sums of |d|, d^2, a^2, b^2 and a b, (ceil(n / BLOCK), 5); counts (5,) of entries that differ in
        their bits, are finite and equal, are finite in both, are not finite in first, in second; the largest |d|.
    """
    xp = namespace(first)
    bits = xp.int32 if first.dtype == xp.float32 else xp.int64
    if is_compiled(first, second):
        sums, counts, largest = compiled.pair_sums(first, second, first.view(bits), second.view(bits))
        return sums, counts, float(largest)
    fine_first, fine_second = xp.isfinite(first), xp.isfinite(second)
    fine = fine_first & fine_second
    zero = xp.zeros_like(first)
    a, b = (cast(xp.where(fine, v, zero), "float64") for v in (first, second))
    d = xp.abs(a - b)
    counted = (first.view(bits) != second.view(bits), fine & (first == second), fine, ~fine_first, ~fine_second)
    sums = columns(*(blocked_sum(v) for v in (d, d * d, a * a, b * b, a * b)))
    return sums, np.array([int(c.sum()) for c in counted]), float(d.max()) if len(d) else 0.0


def extent(vector: Array) -> tuple[Array, Array, float]:
    """Return how large the entries of a vector (n,) are, NaN and infinity left out.

    Returns:
        Block sums of squares (ceil(n / BLOCK), 1); counts of zero and of non-finite entries (2,); the largest magnitude.
    """
    if is_compiled(vector):
        sums, counts, largest = compiled.extent(vector)
        return sums, counts, float(largest)
    xp = namespace(vector)
    fine = xp.isfinite(vector)
    x = xp.abs(cast(xp.where(fine, vector, xp.zeros_like(vector)), "float64"))
    counts = np.array([int((vector == 0).sum()), int((~fine).sum())])
    return columns(blocked_sum(x * x)), counts, float(x.max()) if len(x) else 0.0
