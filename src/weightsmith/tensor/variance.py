"""Variance over models, entry by entry, and the merge by shares of energy that SCE builds on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, cast, is_compiled, like, namespace
from weightsmith.tensor.consensus import sum_left
from weightsmith.tensor.rounding import code, rounded
from weightsmith.tensor.select import Kth, is_above
from weightsmith.tensor.vector import absolute_sum, columns


def variances(vectors: Array, precision: str) -> Array:
    """Return the variance over the T vectors of each entry, formed in float64: (T, n) -> (n,), dtype of vectors.

    The vectors are rounded to the precision before, and the result is after.
    """
    if precision != "float16" and is_compiled(vectors):
        return compiled.variances(vectors, code(precision))
    wide = [cast(rounded(v, precision), "float64") for v in vectors]
    share = 1 / len(wide)
    mean = sum_left(wide) * share
    spread = sum_left([(v - mean) * (v - mean) for v in wide]) * share
    return rounded(cast(spread, str(vectors.dtype).rpartition(".")[2]), precision)


def keep_varying(vectors: Array, kth: Kth | None, start: int, precision: str) -> Array:
    """Keep the entries whose variance is among the k largest; zero the rest.

    Args:
        vectors: (T, n), from index `start` on.
        kth: The k-th largest variance; None keeps all.

    Returns:
        (T, n).
    """
    if kth is None:
        return vectors
    chosen = is_above(variances(vectors, precision)[None], kth, start)
    return namespace(vectors).where(chosen, vectors, vectors * 0)


def energies(vectors: Array, kth: Kth | None, start: int, precision: str) -> Array:
    """Return the sums of squares of what `keep_varying` keeps, in blocks, each square rounded.

    (T, n) -> (ceil(n / BLOCK), T), float64.
    """
    if precision != "float16" and is_compiled(vectors):
        return compiled.energies(vectors, *_bound(vectors, kth, start), code(precision))
    parts = (rounded(v, precision) for v in keep_varying(vectors, kth, start, precision))
    return columns(*(absolute_sum(rounded(v * v, precision)) for v in parts))


def _bound(vectors: Array, kth: Kth | None, start: int) -> tuple[Any, int]:
    """Return how the loops know which entries are kept: a variance, None to keep all, and before where it is enough."""
    return (None, 0) if kth is None else (like(kth.value[0, 0], vectors)[()], int(kth.cut[0, 0]) - start)


def merge_shares(
    base: Array, vectors: Array, kth: Kth | None, start: int, shares: Sequence[float], least: float, precision: str
) -> Array:
    """Return base plus the mean, by their shares, of the vectors that agree with the sign of the plain sum.

    With v what `keep_varying` keeps, s = 1 where sum_t v_t >= 0, else -1, and A = {t : sign(v_t) = s}, entry by entry
    and each step rounded:

        base + (sum over A of w_t v_t) / max(sum over A of w_t, least)        (base where A is empty)

    Args:
        base: (n,).
        vectors: (T, n), from index `start` on.
        kth: The k-th largest variance; None keeps all.
        shares: w_t, T numbers, not negative.
        least: Smallest divisor; 0 divides by the sum whatever it is.

    Returns:
        (n,), dtype of base.
    """
    weights, bound = rounded(like(list(shares), base), precision), rounded(like([least], base), precision)[0]
    if precision != "float16" and is_compiled(base, vectors):
        return compiled.merge_shares(base, vectors, *_bound(vectors, kth, start), weights, bound, code(precision))
    xp = namespace(base)
    parts = [rounded(v, precision) for v in keep_varying(vectors, kth, start, precision)]
    elected = xp.where(rounded(sum_left(parts), precision) >= 0, 1.0, -1.0)
    agreeing = [v * elected > 0 for v in parts]
    merged = sum_left([rounded(v * weights[t], precision) * agreeing[t] for t, v in enumerate(parts)])
    divisor = rounded(sum_left([a * weights[t] for t, a in enumerate(agreeing)]), precision)
    divisor = xp.where(divisor > bound, divisor, bound)
    divisor = xp.where(divisor == 0, divisor * 0 + 1, divisor)
    step = rounded(rounded(merged, precision) / divisor, precision)
    return xp.where(step == 0, base, rounded(base + step, precision))
