"""The loops over tiles, compiled by numba; reached through `compiled.py`, and only where there is an eager form.

No reassociation and no fused multiply-add: the same operations in the same order as the eager forms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from weightsmith.tensor.arrays import BLOCK

F = TypeVar("F", bound=Callable[..., Any])


def _loop(function: F) -> F:
    return numba.njit(nogil=True, cache=True, error_model="numpy")(function)  # type: ignore[no-any-return]


@_loop
def weighted_sum(vectors, factors):  # type: ignore[no-untyped-def]
    count, size = vectors.shape
    out = np.empty(size, vectors.dtype)
    for i in range(size):
        out[i] = vectors[0, i] * factors[0]
    for t in range(1, count):
        for i in range(size):
            out[i] += vectors[t, i] * factors[t]
    return out


@_loop
def plain_sum(vectors):  # type: ignore[no-untyped-def]
    count, size = vectors.shape
    out = vectors[0].copy()
    for t in range(1, count):
        for i in range(size):
            out[i] += vectors[t, i]
    return out


@_loop
def add_scaled(base, vector, factor):  # type: ignore[no-untyped-def]
    out = np.empty(base.size, base.dtype)
    for i in range(base.size):
        out[i] = base[i] + vector[i] * factor
    return out


@_loop
def combine(first, second, left, right):  # type: ignore[no-untyped-def]
    out = np.empty(first.size, first.dtype)
    for i in range(first.size):
        out[i] = first[i] * left + second[i] * right
    return out


@_loop
def _fold(work):  # type: ignore[no-untyped-def]
    half = BLOCK // 2
    while half >= 1:
        for i in range(half):
            work[i] += work[i + half]
        half //= 2
    return work[0]


@_loop
def blocked_dot(first, second):  # type: ignore[no-untyped-def]
    blocks = -(-first.size // BLOCK)
    out = np.empty(blocks, np.float64)
    work = np.zeros(BLOCK, np.float64)
    for b in range(blocks):
        begin, end = b * BLOCK, min((b + 1) * BLOCK, first.size)
        for i in range(end - begin):
            work[i] = np.float64(first[begin + i]) * np.float64(second[begin + i])
        for i in range(end - begin, BLOCK):
            work[i] = 0.0
        out[b] = _fold(work)
    return out


@_loop
def blocked_absolute_sum(vector):  # type: ignore[no-untyped-def]
    blocks = -(-vector.size // BLOCK)
    out = np.empty(blocks, np.float64)
    work = np.zeros(BLOCK, np.float64)
    for b in range(blocks):
        begin, end = b * BLOCK, min((b + 1) * BLOCK, vector.size)
        for i in range(end - begin):
            work[i] = abs(np.float64(vector[begin + i]))
        for i in range(end - begin, BLOCK):
            work[i] = 0.0
        out[b] = _fold(work)
    return out


@_loop
def majority(vectors):  # type: ignore[no-untyped-def]
    total = plain_sum(vectors)
    balance = 0
    for i in range(total.size):
        balance += int(total[i] > 0) - int(total[i] < 0)
    return balance


@_loop
def merge_agreeing(vectors, merge, undecided):  # type: ignore[no-untyped-def]
    count, size = vectors.shape
    sign = plain_sum(vectors)
    for i in range(size):
        sign[i] = 1 if sign[i] > 0 else (-1 if sign[i] < 0 else undecided)
    out = np.zeros(size, vectors.dtype)
    if merge == 2:
        for t in range(count):
            for i in range(size):
                v = vectors[t, i]
                if v * sign[i] > 0 and abs(v) > abs(out[i]):
                    out[i] = v
        return out
    agreeing = np.zeros(size, np.int32)
    for t in range(count):
        for i in range(size):
            v = vectors[t, i]
            if v * sign[i] > 0:
                out[i] += v
                agreeing[i] += 1
    if merge == 0:
        for i in range(size):
            out[i] /= max(agreeing[i], np.int32(1))
    return out


@_loop
def trim(vectors, value, cut, top_value, top_cut, has_top):  # type: ignore[no-untyped-def]
    count, size = vectors.shape
    units = value.shape[1]
    length = size // units
    out = np.empty((count, size), vectors.dtype)
    for t in range(count):
        for u in range(units):
            bound, last = value[t, u], cut[t, u]
            top, top_last = top_value[t, u], top_cut[t, u]
            for j in range(length):
                i = u * length + j
                v = vectors[t, i]
                size_of = abs(v)
                keep = (size_of > bound) | ((size_of == bound) & (j < last))
                if has_top:
                    keep &= not ((size_of > top) | ((size_of == top) & (j < top_last)))
                out[t, i] = v * keep
    return out


@_loop
def cuts(magnitude, value, rank):  # type: ignore[no-untyped-def]
    count, units, size = magnitude.shape
    out = np.empty((count, units), np.int64)
    for t in range(count):
        for u in range(units):
            bound = value[t, u]
            left = rank
            for i in range(size):
                left -= magnitude[t, u, i] > bound
            last = 0
            for i in range(size):
                if left > 0 and magnitude[t, u, i] == bound:
                    left -= 1
                    last = i + 1
            out[t, u] = last
    return out


@_loop
def count_digits(bits, shift, prefixes, counts):  # type: ignore[no-untyped-def]
    """Count the 16-bit digit at `shift` of magnitudes whose higher digits equal the prefix, per vector and rank."""
    count, size = bits.shape
    one, digit = bits.dtype.type(1), bits.dtype.type(0xFFFF)
    for t in range(count):
        for r in range(prefixes.shape[1]):
            prefix = prefixes[t, r]
            for i in range(size):
                high = ((bits[t, i] << one) >> one) >> shift
                if (high >> bits.dtype.type(16)) == prefix:
                    counts[t, r, high & digit] += 1


@_loop
def drop_random(vectors, keys, bound, scale, start):  # type: ignore[no-untyped-def]
    count, size = vectors.shape
    out = np.empty((count, size), vectors.dtype)
    for t in range(count):
        for i in range(size):
            z = keys[t] + np.uint64(start + i + 1) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = (z ^ (z >> np.uint64(31))) >> np.uint64(11)
            out[t, i] = vectors[t, i] * scale * (z < bound)
    return out


@_loop
def count_tasks(vectors, merged, mask_lambda):  # type: ignore[no-untyped-def]
    count, size = vectors.shape
    out = np.zeros(size, np.int32)
    for t in range(count):
        for i in range(size):
            v = vectors[t, i]
            out[i] += abs(v) > abs(merged[i] - v) * mask_lambda
    return out


@_loop
def decode_bfloat16(raw, out):  # type: ignore[no-untyped-def]
    """Widen bfloat16 bits (n,) uint16 to float32 bits (n,) uint32; tell whether all are finite."""
    bad = np.uint32(0)
    for i in range(raw.size):
        u = np.uint32(raw[i]) << np.uint32(16)
        out[i] = u
        bad |= np.uint32((u & np.uint32(0x7F800000)) == np.uint32(0x7F800000))
    return bad == 0


@_loop
def encode_bfloat16(bits, out):  # type: ignore[no-untyped-def]
    """Round float32 bits (n,) uint32 to the nearest bfloat16, ties to even; tell whether all are finite."""
    bad = np.uint32(0)
    for i in range(bits.size):
        u = bits[i]
        r = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        out[i] = np.uint16(r)
        bad |= np.uint32((r & np.uint32(0x7F80)) == np.uint32(0x7F80))
    return bad == 0


@_loop
def is_finite(values):  # type: ignore[no-untyped-def]
    bad = 0
    for i in range(values.size):
        bad |= not (abs(values[i]) < np.inf)
    return bad == 0


@_loop
def add_low_rank(values, left, right, scale, start):  # type: ignore[no-untyped-def]
    """Add entries start.. of scale * left @ right, row-major; the sum over ranks runs left to right."""
    rank, columns = right.shape
    done = 0
    work = np.empty(columns, np.float32)
    while done < values.size:
        row, column = (start + done) // columns, (start + done) % columns
        length = min(columns - column, values.size - done)
        for j in range(length):
            work[j] = 0
        for k in range(rank):
            factor = left[row, k]
            for j in range(length):
                work[j] += factor * right[k, column + j]
        for j in range(length):
            values[done + j] += scale * work[j]
        done += length
