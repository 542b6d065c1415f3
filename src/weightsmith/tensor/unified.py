"""One vector for all tasks, of the largest entries that agree, and what a task's mask leaves of it, after EMR-Merging."""

from __future__ import annotations

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, is_compiled
from weightsmith.tensor.pick import where_signs_agree
from weightsmith.tensor.sign import merge_agreeing
from weightsmith.tensor.vector import absolute_sum, columns

LEVEL_VOTE = -1  # the sign of a sum of zero, as in the authors' code


def unified(vectors: Array) -> Array:
    """Return, entry by entry, the largest of the vectors that have the sign of their sum; 0 where none has. (T, n) -> (n,)."""
    return merge_agreeing(vectors, "max", LEVEL_VOTE)


def masked(vectors: Array, task: int) -> Array:
    """Return the unified vector where its sign is that of vector `task` (from 0), 0 elsewhere: (T, n) -> (n,)."""
    if is_compiled(vectors):
        return compiled.masked(vectors, task)
    return where_signs_agree(vectors[task], unified(vectors))


def masked_sums(vectors: Array, task: int) -> Array:
    """Return the L1 norms, in blocks, of vector `task` (from 0) and of `masked`: (T, n) -> (ceil(n / BLOCK), 2), float64."""
    if is_compiled(vectors):
        return compiled.masked_sums(vectors, task)
    return columns(absolute_sum(vectors[task]), absolute_sum(masked(vectors, task)))
