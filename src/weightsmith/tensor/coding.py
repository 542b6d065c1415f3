"""Stored bytes to numbers and back, for the dtypes that are computed with."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array

_NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
INTEGERS = {  # stored as they are, never computed with
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8",
}  # fmt: skip
_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


def stored_bytes(dtype: str) -> int:
    """Return the bytes of one element of BF16, F16, F32 or F64."""
    return _BYTES[dtype]


def decode(raw: Array, dtype: str, out: Array) -> bool:
    """Turn stored bytes (n * width,) uint8 into numbers (n,), in out's dtype; tell whether all are finite."""
    if dtype == "BF16" and out.dtype == np.float32:
        return bool(compiled.decode_bfloat16(raw.view("<u2"), out.view(np.uint32)))
    if dtype == "BF16":
        narrow = np.empty(out.shape, np.float32)
        finite = decode(raw, dtype, narrow)
        with np.errstate(invalid="ignore"):  # a signaling NaN, counted already
            out[:] = narrow
        return finite
    with np.errstate(invalid="ignore"):  # a signaling NaN, counted below
        out[:] = raw.view(_NUMPY[dtype])
    return bool(compiled.is_finite(out))


def decode_rows(raw: Array, out: Array, subtract: bool) -> bool:
    """Turn rows of BF16 (k, n) uint16 into out (k, n) float32; with `subtract`, the later rows minus the first.

    Tells whether all are finite; where not, `out` is undefined. Faster than `decode` row by row.
    """
    return bool(compiled.decode_bfloat16_rows(raw, out, subtract))


def encode(values: Array, dtype: str, out: Array) -> bool:
    """Round numbers (n,) to the nearest stored ones, ties to even, into bytes (n * width,); tell whether all are finite."""
    if dtype == "BF16":
        if values.dtype != np.float32:
            values = to_odd(values)
        return bool(compiled.encode_bfloat16(np.ascontiguousarray(values).view(np.uint32), out.view("<u2")))
    stored = out.view(_NUMPY[dtype])
    with np.errstate(over="ignore"):
        stored[:] = values
    return (
        bool(compiled.is_finite(values))
        if dtype in ("F32", "F64") and values.dtype == stored.dtype
        else bool(np.isfinite(stored).all())
    )


def to_odd(values: Array) -> Array:
    """Narrow float64 to float32, rounding to odd, so that a second rounding to bfloat16 is as good as one."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    bits = narrow.view(np.uint32)
    error = narrow.astype(np.float64) != values
    too_far = np.abs(narrow.astype(np.float64)) > np.abs(values)
    even = (bits & 1) == 0
    return (
        np.where(error & even & np.isfinite(narrow), np.where(too_far, bits - 1, bits + 1), bits)
        .astype(np.uint32)
        .view(np.float32)
    )
