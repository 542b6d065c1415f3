"""Low-rank updates: a slice of scale * left @ right."""

from __future__ import annotations

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array


def add_low_rank(values: Array, left: Array, right: Array, scale: float, start: int) -> None:
    """Add entries start .. start + n of scale * left @ right, row-major, to values, in place.

    The sum over ranks runs left to right in float32, so any slice of the product has the same bits.

    Args:
        values: (n,), float32 or float64.
        left: (rows, rank), float32, row-major.
        right: (rank, columns), float32, row-major.
        scale: alpha / rank, or alpha / sqrt(rank).
        start: Flat index of values[0] in the (rows, columns) matrix.
    """
    compiled.add_low_rank(values, left, right, values.dtype.type(scale), start)
