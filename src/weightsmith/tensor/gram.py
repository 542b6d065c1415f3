"""What follows from inner products: lengths, angles, and steps as long as these say; and inner products row by row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import LANES, Array, cast, is_compiled, is_torch, namespace
from weightsmith.tensor.vector import weighted_sum

Host = np.ndarray[Any, np.dtype[np.float64]]


def symmetric(products: Host) -> Host:
    """Return Gram matrices (..., T, T) from their upper triangles (..., T (T + 1) / 2), in the order of `vector.gram`."""
    count = (math.isqrt(8 * products.shape[-1] + 1) - 1) // 2
    upper = np.triu_indices(count)
    full = np.empty((*products.shape[:-1], count, count))
    full[..., upper[0], upper[1]] = products
    full[..., upper[1], upper[0]] = products
    return full


def norms(grams: Host) -> Host:
    """Return the lengths of the vectors behind Gram matrices, (..., T, T) -> (..., T)."""
    return np.sqrt(np.diagonal(grams, axis1=-2, axis2=-1))


def cosines(grams: Host) -> Host:
    """Return the cosines of the angles, in [-1, 1]; 0 beside a vector of length 0. (..., T, T) -> (..., T, T)."""
    lengths = norms(grams)
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return np.clip(grams * inverse[..., :, None] * inverse[..., None, :], -1.0, 1.0)


def row_gram(vectors: Array, length: int) -> Host:
    """Return all inner products of each row: (T, rows * length) -> (rows, T (T + 1) / 2), float64.

    Columns as in `vector.gram`. Entry i of a row is added to lane i % LANES, in order; the lanes by halving.
    """
    if is_compiled(vectors):
        found: Host = compiled.gram(vectors, length)
        return found
    xp = namespace(vectors)
    count, rows = vectors.shape[0], vectors.shape[1] // length
    steps = -(-length // LANES)
    wide = cast(vectors, "float64").reshape(count, rows, length)
    shape = (count, rows, steps * LANES)
    padded = wide.new_zeros(shape) if is_torch(wide) else np.zeros(shape)
    padded[:, :, :length] = wide
    padded = padded.reshape(count, rows, steps, LANES)
    products = []
    for s in range(count):
        for t in range(s, count):
            lanes = xp.zeros_like(padded[0, :, 0])
            for step in range(steps):
                lanes = lanes + padded[s, :, step] * padded[t, :, step]
            while lanes.shape[1] > 1:
                half = lanes.shape[1] // 2
                lanes = lanes[:, :half] + lanes[:, half:]
            products.append(lanes[:, 0])
    return np.stack([np.asarray(p.cpu() if is_torch(p) else p) for p in products], axis=1)


def column_gram(first: Array, second: Array) -> Host:
    """Return the three inner products of each column of two matrices: (rows, columns) each -> (columns, 3), float64.

    In the order of `row_gram` on the matrices turned.
    """
    if is_compiled(first, second):
        found: Host = compiled.column_gram(first, second)
        return found
    turned = namespace(first).stack([first.T, second.T]).reshape(2, -1)
    return row_gram(turned, first.shape[0])


def add_sum(base: Array, vectors: Array, factors: Array) -> Array:
    """Return base + factor * sum_t v_t; base itself, bit for bit (-0 too), where the product is 0.

    Args:
        base: (n,), cut into as many runs of equal length as there are factors.
        vectors: (T, n), added left to right.
        factors: (units,), dtype of base.

    Returns:
        (n,), dtype of base.
    """
    if is_compiled(base, vectors, factors):
        return compiled.add_sum(base, vectors, factors)
    step = (weighted_sum(vectors).reshape(len(factors), -1) * factors[:, None]).reshape(-1)
    return namespace(base).where(step == 0, base, base + step)
