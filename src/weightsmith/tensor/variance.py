"""Variance over models, entry by entry, and the merge by shares of energy that SCE builds on it."""

from __future__ import annotations

from collections.abc import Sequence

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, cast, is_compiled, like, namespace
from weightsmith.tensor.consensus import sum_left
from weightsmith.tensor.rounding import code, rounded


def variances(vectors: Array, precision: str) -> Array:
    """Return the variance over the T vectors of each entry, formed in float64: (T, n) -> (n,), dtype of vectors.

    The vectors are rounded to the precision before, and the result is after.
    """
    if precision != "float16" and is_compiled(vectors):
        return compiled.variances(vectors, code(precision))
    wide = [cast(rounded(v, precision), "float64") for v in vectors]
    mean = sum_left(wide) / len(wide)
    spread = sum_left([(v - mean) * (v - mean) for v in wide]) / len(wide)
    return rounded(cast(spread, str(vectors.dtype).rpartition(".")[2]), precision)


def merge_shares(base: Array, vectors: Array, shares: Sequence[float], least: float, precision: str) -> Array:
    """Return base plus the mean, by their shares, of the vectors that agree with the sign of the plain sum.

    With s = 1 where sum_t v_t >= 0, else -1, and A = {t : sign(v_t) = s}, entry by entry and each step rounded:

        base + (sum over A of w_t v_t) / max(sum over A of w_t, least)        (base where A is empty)

    Args:
        base: (n,).
        vectors: (T, n).
        shares: w_t, T numbers, not negative.
        least: Smallest divisor; 0 divides by the sum whatever it is.

    Returns:
        (n,), dtype of base.
    """
    weights, bound = rounded(like(list(shares), base), precision), rounded(like([least], base), precision)[0]
    if precision != "float16" and is_compiled(base, vectors):
        return compiled.merge_shares(base, vectors, weights, bound, code(precision))
    xp = namespace(base)
    parts = [rounded(v, precision) for v in vectors]
    elected = xp.where(rounded(sum_left(parts), precision) >= 0, 1.0, -1.0)
    agreeing = [v * elected > 0 for v in parts]
    merged = sum_left([rounded(v * weights[t], precision) * agreeing[t] for t, v in enumerate(parts)])
    divisor = rounded(sum_left([a * weights[t] for t, a in enumerate(agreeing)]), precision)
    divisor = xp.where(divisor > bound, divisor, bound)
    divisor = xp.where(divisor == 0, divisor * 0 + 1, divisor)
    step = rounded(rounded(merged, precision) / divisor, precision)
    return xp.where(step == 0, base, rounded(base + step, precision))
