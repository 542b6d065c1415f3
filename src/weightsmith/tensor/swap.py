"""Interpolation whose share falls with the distance of two entries."""

from __future__ import annotations

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, is_compiled, like, namespace
from weightsmith.tensor.rounding import code, rounded

LEAST_DISTANCE = 1e-6


def swap_near(base: Array, other: Array, t: float, precision: str) -> Array:
    """Return w * other + (1 - w) * base with w = min(1, t / max(|base - other|, 1e-6)), each step rounded.

    Args:
        base: (n,).
        other: (n,).
        t: The distance up to which `other` is taken.
        precision: See `rounding.rounded`.

    Returns:
        (n,), dtype of base; base itself, bit for bit, where both are equal.
    """
    near, least = like(t, base), rounded(like([LEAST_DISTANCE], base), precision)[0]
    if precision != "float16" and is_compiled(base, other):
        return compiled.swap_near(base, other, near[()], least, code(precision))
    xp = namespace(base)
    distance = rounded(xp.abs(base - other), precision)
    share = rounded(rounded(1 / xp.where(distance > least, distance, least), precision) * near, precision)
    share = xp.clip(share, 0, 1)
    mixed = rounded(share * other, precision) + rounded(rounded(1 - share, precision) * base, precision)
    return xp.where(base == other, base, rounded(mixed, precision))
