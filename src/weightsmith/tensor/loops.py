"""The loops over tiles, compiled by numba; reached through `compiled.py`, and only where there is an eager form.

No reassociation and no fused multiply-add: the same operations in the same order as the eager forms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from weightsmith.tensor.arrays import BLOCK, LANES

PART = 1024  # elements of scratch that stay in the first cache

F = TypeVar("F", bound=Callable[..., Any])


def loop(function: F) -> F:
    """Compile a function when it is first called, without the interpreter's lock, and keep the code on disk."""
    try:
        return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy")(function))
    except RuntimeError:  # no folder for compiled code can be written: each process compiles anew
        return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


@loop
def weighted_sum(vectors, factors):
    count, size = vectors.shape
    out = np.empty(size, vectors.dtype)
    for i in range(size):
        out[i] = vectors[0, i] * factors[0]
    for t in range(1, count):
        for i in range(size):
            out[i] += vectors[t, i] * factors[t]
    return out


@loop
def plain_sum(vectors):
    count, size = vectors.shape
    out = vectors[0].copy()
    for t in range(1, count):
        for i in range(size):
            out[i] += vectors[t, i]
    return out


@loop
def add_scaled(base, vector, factor):
    out = np.empty(base.size, base.dtype)
    for i in range(base.size):
        step = vector[i] * factor
        out[i] = base[i] if step == 0 else base[i] + step
    return out


@loop
def combine(first, second, left, right):
    out = np.empty(first.size, first.dtype)
    for i in range(first.size):
        out[i] = first[i] * left + second[i] * right
    return out


@loop
def blocked_sum(values):
    blocks = -(-values.size // BLOCK)
    out = np.empty(blocks, np.float64)
    lanes = np.empty(LANES, np.float64)
    for b in range(blocks):
        x = values[b * BLOCK : (b + 1) * BLOCK]
        lanes[:] = 0.0
        for i in range(0, x.size, LANES):
            u = x[i : i + LANES]
            for j in range(u.size):
                lanes[j] += u[j]
        out[b] = fold_lanes(lanes)
    return out


@loop
def blocked_absolute_sum(vector):
    blocks = -(-vector.size // BLOCK)
    out = np.empty(blocks, np.float64)
    lanes = np.empty(LANES, np.float64)
    for b in range(blocks):
        x = vector[b * BLOCK : (b + 1) * BLOCK]
        lanes[:] = 0.0
        for i in range(0, x.size, LANES):
            u = x[i : i + LANES]
            for j in range(u.size):
                lanes[j] += abs(np.float64(u[j]))
        out[b] = fold_lanes(lanes)
    return out


@loop
def majority(vectors):
    total = plain_sum(vectors)
    balance = 0
    for i in range(total.size):
        balance += int(total[i] > 0) - int(total[i] < 0)
    return balance


@loop
def merge_agreeing(vectors, merge, undecided):
    count, size = vectors.shape
    out = np.zeros(size, vectors.dtype)
    sign, agreeing = np.empty(PART, vectors.dtype), np.empty(PART, vectors.dtype)
    zero, one = np.zeros(1, vectors.dtype)[0], np.ones(1, vectors.dtype)[0]
    for start in range(0, size, PART):
        merged = out[start : start + PART]
        s, n = sign[: merged.size], agreeing[: merged.size]
        s[:] = vectors[0, start : start + PART]
        n[:] = 0
        for t in range(1, count):
            v = vectors[t, start : start + PART]
            for i in range(v.size):
                s[i] += v[i]
        for i in range(s.size):
            s[i] = one if s[i] > 0 else (-one if s[i] < 0 else undecided * one)
        for t in range(count):
            v = vectors[t, start : start + PART]
            if merge == 2:
                for i in range(v.size):
                    merged[i] = max(merged[i], v[i] * s[i])
            else:
                for i in range(v.size):
                    along = v[i] * s[i]  # positive where it agrees
                    merged[i] += along if along > zero else zero
                    n[i] += one if along > zero else zero
        for i in range(s.size):
            merged[i] = merged[i] * s[i] + zero  # never -0
        if merge == 0:
            for i in range(s.size):
                merged[i] /= max(n[i], one)
    return out


@loop
def trim(vectors, value, cut, top_value, top_cut, has_top):
    count, size = vectors.shape
    units = value.shape[1]
    length = size // units
    out = np.empty((count, size), vectors.dtype)
    bounds = np.empty(2, vectors.dtype)
    for t in range(count):
        for u in range(units):
            v, o = vectors[t, u * length : (u + 1) * length], out[t, u * length : (u + 1) * length]
            bounds[0], bounds[1] = value[t, u], top_value[t, u]
            bound, top = bounds[0], bounds[1]
            last = min(max(cut[t, u], 0), length)  # before it an entry equal to the bound is kept
            before, after, kept, rest = v[:last], v[last:], o[:last], o[last:]
            for i in range(last):
                kept[i] = before[i] * (abs(before[i]) >= bound)
            for i in range(length - last):
                rest[i] = after[i] * (abs(after[i]) > bound)
            if has_top:
                last = min(max(top_cut[t, u], 0), length)
                kept, rest = o[:last], o[last:]
                for i in range(last):
                    kept[i] *= abs(kept[i]) < top
                for i in range(length - last):
                    rest[i] *= abs(rest[i]) <= top
    return out


@loop
def drop_random(vectors, keys, bound, scale, start):
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


@loop
def count_tasks(vectors, merged, mask_lambda):
    count, size = vectors.shape
    out = np.zeros(size, np.int32)
    for t in range(count):
        for i in range(size):
            v = vectors[t, i]
            out[i] += abs(v) > abs(merged[i] - v) * mask_lambda
    return out


@loop
def decode_bfloat16(raw, out):
    """Widen bfloat16 bits (n,) uint16 to float32 bits (n,) uint32; tell whether all are finite.

    Here and below whole numbers are kept to 32 bits explicitly: numba widens them to 64, and the loop runs at half speed.
    """
    largest = np.uint32(0)
    for i in range(raw.size):
        u = np.uint32(np.uint32(raw[i]) << np.uint32(16))
        out[i] = u
        largest = max(largest, np.uint32(u & np.uint32(0x7FFFFFFF)))
    return largest < np.uint32(0x7F800000)


@loop
def decode_bfloat16_rows(raw, values, subtract):
    """Decode rows of bfloat16 (k, n) uint16 into values (k, n) float32; subtract the first from the others.

    Tells whether all are finite before they are subtracted.
    """
    largest = np.uint32(0)
    for start in range(0, raw.shape[1], PART):
        first = values[0, start : start + PART]
        for k in range(raw.shape[0]):
            r, v = raw[k, start : start + PART], values[k, start : start + PART]
            if subtract and k > 0:
                for i in range(r.size):
                    u = np.uint32(np.uint32(r[i]) << np.uint32(16))
                    v[i] = u.view(np.float32) - first[i]
                    largest = max(largest, np.uint32(u & np.uint32(0x7FFFFFFF)))
            else:
                for i in range(r.size):
                    u = np.uint32(np.uint32(r[i]) << np.uint32(16))
                    v[i] = u.view(np.float32)
                    largest = max(largest, np.uint32(u & np.uint32(0x7FFFFFFF)))
    return largest < np.uint32(0x7F800000)


@loop
def encode_bfloat16(bits, out):
    """Round float32 bits (n,) uint32 to the nearest bfloat16, ties to even; tell whether all are finite."""
    largest = np.uint32(0)
    for i in range(bits.size):
        u = bits[i]
        high = np.uint32(u >> np.uint32(16))
        r = np.uint32(np.uint32(u + np.uint32(0x7FFF) + np.uint32(high & np.uint32(1))) >> np.uint32(16))
        if np.uint32(u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
            r = np.uint32(high | np.uint32(0x40))  # NaN stays NaN
        out[i] = np.uint16(r)
        largest = max(largest, np.uint32(r & np.uint32(0x7FFF)))
    return largest < np.uint32(0x7F80)


@loop
def is_finite(values):
    bad = 0
    for i in range(values.size):
        bad |= not (abs(values[i]) < np.inf)
    return bad == 0


@loop
def add_low_rank(values, left, right, scale, start):
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


@loop
def pair_sums(first, second, first_bits, second_bits):
    """Return block sums (blocks, 5), counts (5,) and the largest difference of two arrays (n,); see `vector`."""
    blocks = -(-first.size // BLOCK)
    out = np.empty((blocks, 5), np.float64)
    a, b, top = np.zeros(BLOCK), np.zeros(BLOCK), np.zeros(LANES)
    s0, s1, s2, s3, s4 = np.empty(LANES), np.empty(LANES), np.empty(LANES), np.empty(LANES), np.empty(LANES)
    differing, equal, finite, wrong_first, wrong_second = 0, 0, 0, 0, 0
    for block in range(blocks):
        begin = block * BLOCK
        size = min(BLOCK, first.size - begin)
        for i in range(size):
            u, v = first[begin + i], second[begin + i]
            fine_u, fine_v = abs(u) < np.inf, abs(v) < np.inf
            fine = fine_u & fine_v
            a[i] = u if fine else 0.0
            b[i] = v if fine else 0.0
            differing += int(first_bits[begin + i] != second_bits[begin + i])
            equal += int(fine & (u == v))
            finite += int(fine)
            wrong_first += int(not fine_u)
            wrong_second += int(not fine_v)
        a[size:], b[size:] = 0.0, 0.0
        s0[:], s1[:], s2[:], s3[:], s4[:] = 0.0, 0.0, 0.0, 0.0, 0.0
        for row in range(BLOCK // LANES):
            for j in range(LANES):
                x, y = a[row * LANES + j], b[row * LANES + j]
                d = abs(x - y)
                s0[j] += d
                s1[j] += d * d
                s2[j] += x * x
                s3[j] += y * y
                s4[j] += x * y
                top[j] = d if d > top[j] else top[j]
        for k, s in enumerate((s0, s1, s2, s3, s4)):
            out[block, k] = fold_lanes(s)
    return out, np.array([differing, equal, finite, wrong_first, wrong_second]), top.max()


@loop
def extent(vector):
    """Return block sums of squares (blocks, 1), counts (2,) and the largest magnitude of (n,); see `vector`."""
    blocks = -(-vector.size // BLOCK)
    out = np.empty((blocks, 1), np.float64)
    a, s, top = np.zeros(BLOCK), np.empty(LANES), np.zeros(LANES)
    zeros, wrong = 0, 0
    for block in range(blocks):
        begin = block * BLOCK
        size = min(BLOCK, vector.size - begin)
        for i in range(size):
            u = abs(vector[begin + i])
            a[i] = u if u < np.inf else 0.0
            zeros += int(u == 0)
            wrong += int(not (u < np.inf))
        a[size:], s[:] = 0.0, 0.0
        for row in range(BLOCK // LANES):
            for j in range(LANES):
                x = a[row * LANES + j]
                s[j] += x * x
                top[j] = x if x > top[j] else top[j]
        out[block, 0] = fold_lanes(s)
    return out, np.array([zeros, wrong]), top.max()


@loop
def fold_lanes(lanes):
    half = LANES // 2
    while half >= 1:
        for j in range(half):
            lanes[j] += lanes[j + half]
        half //= 2
    return lanes[0]
