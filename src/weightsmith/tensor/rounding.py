"""Rounding between the steps of a formula, as a tool does that computes in a narrow dtype."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, cast, is_compiled, is_torch

PRECISIONS = ("float32", "bfloat16", "float16")


def rounded(values: Array, precision: str) -> Array:
    """Return values rounded to the nearest numbers of a precision, ties to even, in the dtype they came in.

    "float32" returns them as they are: it means that no step is rounded beyond the dtype that is computed in. Larger
    dtypes are first rounded to float32.

    Args:
        values: float32 or float64, any shape.
        precision: One of PRECISIONS.

    Returns:
        The same shape and dtype.
    """
    if precision == "float32":
        return values
    narrow = cast(values, "float32")
    if is_torch(values):
        return cast(cast(narrow, precision), "float32").to(values.dtype)
    if precision == "float16":
        with np.errstate(over="ignore"):
            return narrow.astype(np.float16).astype(values.dtype)
    if is_compiled(narrow):
        return cast(compiled.round_bfloat16(narrow.reshape(-1)).reshape(values.shape), values.dtype.name)
    bits = np.ascontiguousarray(narrow).view(np.uint32)
    halfway = ((bits >> 16) & np.uint32(1)) + np.uint32(0x7FFF)
    return cast(((bits + halfway) & np.uint32(0xFFFF0000)).view(np.float32), values.dtype.name)


def rounded_number(value: float, precision: str) -> float:
    """Return one number, rounded to float32 and to the precision."""
    return float(rounded(np.array([value], np.float32), precision)[0])


def code(precision: str) -> int | None:
    """Return how the loops know a precision: None adds no rounding, 1 is bfloat16; they do not take float16."""
    return 1 if precision == "bfloat16" else None
