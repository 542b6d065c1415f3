"""Numbers in one byte each, with a scale per row: x is stored as round(x / s), s = max|row| / 127."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array

LARGEST = 127


def row_scales(matrix: Array) -> Array:
    """Return each row's scale, its largest magnitude over 127: (rows, columns) -> (rows,), float32; 0 for rows of zeros.

    >>> row_scales(np.array([[1.0, -254.0], [0.0, 0.0]], np.float32)).tolist()
    [2.0, 0.0]
    """
    return (np.abs(matrix).max(axis=1, initial=0) / np.float32(LARGEST)).astype(np.float32)


def to_int8(values: Array, scales: Array, columns: int, start: int = 0) -> Array:
    """Round a range of a tensor's flat elements to whole multiples of their row's scale, ties to even.

    Args:
        values: (n,), float32, finite: the elements from `start` on.
        scales: (rows,), float32, from `row_scales`.
        columns: Elements of a row.
        start: Flat index of the first element.

    Returns:
        (n,), int8, -127 to 127; 0 where the scale is 0.

    Example:
        >>> to_int8(np.array([1.0, -254.0, 0.0], np.float32), np.array([2.0, 0.0], np.float32), 2).tolist()
        [0, -127, 0]
    """
    codes = np.empty(values.size, np.int8)
    compiled.round_to_int8(values, scales, columns, start, codes)
    return codes


def from_int8(codes: Array, scales: Array, columns: int, out: Array, start: int = 0) -> None:
    """Write scale * code of a range of a tensor's flat elements to `out`, float32.

    Args:
        codes: (n,), int8: the elements from `start` on.
        scales: (rows,), float32.
        columns: Elements of a row.
        out: (n,), float32.
        start: Flat index of the first element.

    Example:
        >>> out = np.empty(3, np.float32)
        >>> from_int8(np.array([1, -127, 5], np.int8), np.array([2.0, 0.5], np.float32), 2, out)
        >>> out.tolist()
        [2.0, -254.0, 2.5]
    """
    compiled.scale_int8(codes, scales, columns, start, out)
