"""Sign election and the merge of those who agree with it."""

from __future__ import annotations

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, is_compiled, namespace

MERGES = ("mean", "sum", "max")


def elected_sum(vectors: Array) -> Array:
    """Return the vote: sum_t v_t entry by entry, (T, n) -> (n,). Its sign is the elected sign."""
    if is_compiled(vectors):
        return compiled.plain_sum(vectors)
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total


def majority(vectors: Array) -> int:
    """Return the number of entries elected positive minus the number elected negative, (T, n) -> int."""
    if is_compiled(vectors):
        return int(compiled.majority(vectors))
    total = elected_sum(vectors)
    return int((total > 0).sum()) - int((total < 0).sum())


def merge_agreeing(vectors: Array, merge: str, undecided: int) -> Array:
    """Merge, entry by entry, the vectors whose sign is the elected one.

    With s = sign(sum_t v_t), or `undecided` where that sum is zero, and A = {t : sign(v_t) = s}:
    mean: (1 / |A|) * sum over A of v_t; sum: sum over A of v_t; max: the v_t of A that is largest in magnitude;
    0 where A is empty.

    Args:
        vectors: (T, n); an entry of 0 agrees with nobody.
        merge: "mean", "sum" or "max".
        undecided: -1, 0 or 1; 0 leaves undecided entries at 0.

    Returns:
        (n,), dtype of vectors.
    """
    if is_compiled(vectors):
        return compiled.merge_agreeing(vectors, MERGES.index(merge), undecided)
    xp = namespace(vectors)
    total = elected_sum(vectors)
    elected = xp.where(total == 0, total * 0 + undecided, xp.sign(total))
    result, count = xp.zeros_like(total), xp.zeros_like(total)
    for vector in vectors:
        agrees = vector * elected > 0
        if merge == "max":
            result = xp.where(agrees & (xp.abs(vector) > xp.abs(result)), vector, result)
        else:
            result = xp.where(agrees, result + vector, result)
            count = count + agrees
    return result / xp.where(count > 1, count, count * 0 + 1) if merge == "mean" else result
