"""Picking entries by magnitude or by sign."""

from __future__ import annotations

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, is_compiled, namespace


def largest_magnitude(vectors: Array) -> Array:
    """Return, entry by entry, the value that is largest in magnitude; the later one when equal. (T, n) -> (n,)."""
    if is_compiled(vectors):
        return compiled.largest_magnitude(vectors)
    xp = namespace(vectors)
    picked = vectors[0]
    for vector in vectors[1:]:
        picked = xp.where(xp.abs(vector) >= xp.abs(picked), vector, picked)
    return picked


def where_signs_agree(vector: Array, merged: Array) -> Array:
    """Return merged where its sign is the vector's; 0 elsewhere, and where either is 0. (n,), (n,) -> (n,)."""
    if is_compiled(vector, merged):
        return compiled.where_signs_agree(vector, merged)
    xp = namespace(vector)
    agrees = ((vector > 0) & (merged > 0)) | ((vector < 0) & (merged < 0))
    return xp.where(agrees, merged, xp.zeros_like(merged))
