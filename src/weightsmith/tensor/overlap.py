"""Which models changed an entry, alone or together, and the merge that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, cast, is_compiled, is_torch, like, namespace
from weightsmith.tensor.consensus import sum_left
from weightsmith.tensor.rounding import code, rounded, rounded_number


def count_changes(vectors: Array, epsilon: float, precision: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return how many entries each vector changes with others, and alone: (T, n) -> (2, T).

    A vector changes an entry where its magnitude, rounded to the precision, is above epsilon.
    """
    bound = rounded_number(epsilon, precision)
    if precision != "float16" and is_compiled(vectors):
        found: np.ndarray[Any, np.dtype[np.int64]] = compiled.count_changes(vectors, bound, code(precision))
        return found
    changed = namespace(vectors).abs(rounded(vectors, precision)) > bound
    count = changed.sum(0)
    parts = [(changed & (count > 1)).sum(1), (changed & (count == 1)).sum(1)]
    return np.stack([np.asarray(p.cpu() if is_torch(p) else p) for p in parts])


def merge_changes(
    base: Array, vectors: Array, epsilon: float, factors: Sequence[float], precision: str, last: str
) -> Array:
    """Return base plus the one change, times its model's factor, or the mean of several changes.

    Args:
        base: (n,).
        vectors: (T, n); an entry counts as changed as in `count_changes`.
        factors: T numbers, for entries that only this model changes.
        precision: To what differences and shares of means are rounded.
        last: To what the sum of changes and the result are rounded.

    Returns:
        (n,), dtype of base; base itself, bit for bit, where nothing changed.
    """
    bound, scales = rounded_number(epsilon, precision), like(list(factors), base)
    if "float16" not in (precision, last) and is_compiled(base, vectors):
        return compiled.merge_changes(base, vectors, bound, scales, code(precision), code(last))
    xp = namespace(base)
    changes = rounded(vectors, precision)
    changed = xp.abs(changes) > bound
    count = changed.sum(0)
    number = cast(xp.where(count > 1, count, count * 0 + 1), str(base.dtype).rpartition(".")[2])
    none = xp.zeros_like(base)
    parts = []
    for t in range(len(vectors)):
        value = xp.where(count == 1, changes[t] * scales[t], rounded(changes[t] / number, precision))
        parts.append(xp.where(changed[t], value, none))
    total = rounded(sum_left(parts), last)
    return xp.where(total == 0, base, rounded(base + total, last))
