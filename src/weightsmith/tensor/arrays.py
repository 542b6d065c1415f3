"""One set of formulas for numpy arrays and torch tensors.

Every function of this room has an eager form, which both libraries run, and most have a compiled form for plain
numpy arrays. The two give the same bits: the eager form is the compiled form's oracle.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from weightsmith.tensor import compiled

# A numpy array or a torch tensor. Not a Union: the eager forms use what both libraries share.
Array: TypeAlias = Any

# Sums are formed over blocks of this many elements, counted from the tensor's start; so they do not depend on
# how a tensor is cut into tiles, as long as every tile starts at a multiple of it.
BLOCK = 4096
LANES = 64  # running sums side by side within a block
PAD = 32  # counters that are written and not read, see `digits.count_digits`


class Plain(np.ndarray[Any, np.dtype[Any]]):
    """A numpy array that the compiled forms do not take, so that the eager forms compute it."""


def is_compiled(*arrays: Array) -> bool:
    """Tell whether the compiled forms take these: plain numpy, contiguous, float32 or float64."""
    return all(type(a) is np.ndarray and a.dtype.char in "fd" and a.flags.c_contiguous for a in arrays)


def is_torch(array: Array) -> bool:
    """Tell whether array is a torch tensor, without importing torch."""
    return type(array).__module__.partition(".")[0] == "torch"


def namespace(array: Array) -> Any:
    """Return the module whose functions take this array: numpy or torch."""
    if is_torch(array):
        import torch

        return torch
    return np


def cast(array: Array, dtype: str) -> Array:
    """Return array as dtype ("float32", "float64", "int64", ...), copied only where needed."""
    if is_torch(array):
        import torch

        return array.to(getattr(torch, dtype))
    return array.astype(dtype, copy=False)


def like(values: Any, array: Array) -> Array:
    """Return values as an array of the library, dtype and device of `array`."""
    if is_torch(array):
        import torch

        return torch.as_tensor(values, dtype=array.dtype, device=array.device)
    with np.errstate(over="ignore"):  # infinity is refused where it is stored
        return np.asarray(values, dtype=array.dtype)


def blocked_sum(values: Array) -> Array:
    """Sum float64 values in blocks of BLOCK: entry i is added to lane i % LANES, in order; the lanes by halving.

    Args:
        values: (n,), float64.

    Returns:
        (ceil(n / BLOCK),), float64.
    """
    if is_compiled(values):
        return compiled.blocked_sum(values)
    xp = namespace(values)
    blocks = -(-values.shape[0] // BLOCK)
    padded = xp.zeros_like(values, shape=(blocks * BLOCK,)) if xp is np else values.new_zeros(blocks * BLOCK)
    padded[: values.shape[0]] = values
    rows = padded.reshape(blocks, BLOCK // LANES, LANES)
    lanes = xp.zeros_like(rows[:, 0])
    for row in range(BLOCK // LANES):
        lanes = lanes + rows[:, row]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]
