"""The end of the task-vector methods in mergekit's form: weigh, elect a sign, add up, normalize; each step rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, is_compiled, like, namespace
from weightsmith.tensor.rounding import code, rounded, rounded_number

SMALL_NORM = 1e-7
SMALL_SUM = 1e-8


def l1_factors(before: Sequence[float], after: Sequence[float], precision: str) -> list[float]:
    """Return what gives each kept part the L1 norm of its whole vector again; 1 where either norm is below 1e-7."""
    found = []
    for whole, kept in zip(before, after, strict=True):
        u, v = (_rounded_norm(x, precision) for x in (whole, kept))
        found.append(1.0 if u < SMALL_NORM or v < SMALL_NORM else rounded_number(u / v, precision))
    return found


def _rounded_norm(norm: float, precision: str) -> float:
    """Return a norm in a precision, or as it is where that overflows."""
    narrow = rounded_number(norm, precision)
    return narrow if math.isfinite(narrow) else norm


def merge_stepwise(
    base: Array,
    vectors: Array,
    factors: Sequence[float],
    weights: Sequence[float],
    *,
    lambda_: float,
    consensus: bool,
    normalize: bool,
    precision: str,
) -> Array:
    """Return base + lambda * m, with tau_t = w_t * f_t * v_t, entry by entry and rounded to `precision` after each step.

    Without consensus m = sum_t tau_t, and to normalize divides it by sum_t w_t (by 1 where that is below 1e-8 in
    magnitude). With consensus s = 1 where sum_t tau_t >= 0, else -1; A = {t : sign(tau_t) = s}; m is the sum over A, and
    to normalize divides it by the sum of w_t over A (by 1 where that is 0).

    Args:
        base: (n,).
        vectors: (T, n), sparse task vectors.
        factors: f_t, T numbers.
        weights: w_t, T numbers.

    Returns:
        (n,), dtype of base; base itself, bit for bit, where m is 0.
    """
    f, w, scale = like(list(factors), base), rounded(like(list(weights), base), precision), like(lambda_, base)
    w_all = rounded(sum_left([w[t : t + 1] for t in range(len(w))]), precision)
    total = w_all if abs(float(w_all[0])) >= SMALL_SUM else w_all * 0 + 1
    if precision != "float16" and is_compiled(base, vectors):
        return compiled.merge_stepwise(base, vectors, f, w, total[0], scale[()], consensus, normalize, code(precision))
    xp = namespace(base)
    tau = [rounded(rounded(rounded(v, precision) * f[t], precision) * w[t], precision) for t, v in enumerate(vectors)]
    merged, divisor = sum_left(tau), total
    if consensus:
        elected = xp.where(rounded(merged, precision) >= 0, 1.0, -1.0)
        agreeing = [x * elected > 0 for x in tau]
        merged = sum_left([x * a for x, a in zip(tau, agreeing, strict=True)])
        divisor = rounded(sum_left([a * w[t] for t, a in enumerate(agreeing)]), precision)
        divisor = xp.where(divisor == 0, divisor * 0 + 1, divisor)
    step = rounded(merged, precision)
    if normalize:
        step = rounded(step / divisor, precision)
    step = rounded(step * scale, precision)
    return xp.where(step == 0, base, rounded(base + step, precision))


def sum_left(parts: Sequence[Any]) -> Any:
    """Return 0 + parts[0] + parts[1] + ..., left to right."""
    total = parts[0] * 0
    for part in parts:
        total = total + part
    return total
