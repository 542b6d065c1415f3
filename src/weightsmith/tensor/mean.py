"""Sums of weighted models whose products are not rounded before they are added."""

from __future__ import annotations

from collections.abc import Sequence

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, cast, is_compiled, like, namespace


def fused_sum(vectors: Array, coefficients: Sequence[float]) -> Array:
    """Return sum_t c_t * v_t, left to right, each product added unrounded (exact for float32 up to rare double rounding).

    Args:
        vectors: (T, n).
        coefficients: T numbers, rounded to the vectors' dtype.

    Returns:
        (n,), dtype of vectors.
    """
    factors = like(list(coefficients), vectors)
    if is_compiled(vectors):
        return compiled.fused_sum(vectors, factors)
    dtype = str(vectors.dtype).rpartition(".")[2]
    total = namespace(vectors).zeros_like(vectors[0])
    for vector, factor in zip(vectors, cast(factors, "float64"), strict=True):
        total = cast(cast(total, "float64") + cast(vector, "float64") * factor, dtype)
    return total


def weighted_mean(vectors: Array, coefficients: Sequence[float]) -> Array:
    """Return sum_t c_t * v_t / sum_t c_t, (T, n) -> (n,); where all vectors are equal, that value bit for bit."""
    factors = like(list(coefficients), vectors)
    whole = factors[:1] * 0
    for t in range(len(vectors)):
        whole = whole + factors[t : t + 1]
    if is_compiled(vectors):
        return compiled.weighted_mean(vectors, factors, whole[0])
    first = vectors[0]
    return namespace(vectors).where((vectors == first).all(0), first, fused_sum(vectors, coefficients) / whole)
