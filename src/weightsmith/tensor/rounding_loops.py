"""Loops that round between their steps, to a precision given by its `code`. Reached through `compiled.py`."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.loops import PART, loop


@loop
def step(value, precision):
    """Return one number rounded to bfloat16 (1), or as it is (None, by which numba compiles the loop a second time)."""
    if precision is None:
        return value
    bits = np.uint32(np.float32(value).view(np.uint32))
    halfway = np.uint32(np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return np.uint32(np.uint32(bits + halfway) & np.uint32(0xFFFF0000)).view(np.float32)


@loop
def round_bfloat16(values):
    out = np.empty(values.size, np.float32)
    for i in range(values.size):
        out[i] = step(values[i], 1)
    return out


@loop
def merge_stepwise(base, vectors, factors, weights, total_weight, lambda_, elects, normalizes, precision):
    count, size = vectors.shape
    out = np.empty(size, base.dtype)
    tau, vote = np.empty((count, PART), base.dtype), np.empty(PART, base.dtype)
    merged, divisor = np.empty(PART, base.dtype), np.empty(PART, base.dtype)
    zero, one = np.zeros(1, base.dtype)[0], np.ones(1, base.dtype)[0]
    for start in range(0, size, PART):
        b, o = base[start : start + PART], out[start : start + PART]
        length = b.size
        vote[:] = zero
        for t in range(count):
            v, x, factor, weight = vectors[t, start : start + PART], tau[t], factors[t], weights[t]
            for i in range(length):
                x[i] = step(step(step(v[i], precision) * factor, precision) * weight, precision)
                vote[i] += x[i]
        if elects:
            merged[:], divisor[:] = zero, zero
            for i in range(length):
                vote[i] = one if step(vote[i], precision) >= zero else -one
            for t in range(count):
                x, weight = tau[t], weights[t]
                for i in range(length):
                    agrees = x[i] * vote[i] > zero
                    merged[i] += x[i] if agrees else zero
                    divisor[i] += weight if agrees else zero
            for i in range(length):
                d = step(divisor[i], precision)
                divisor[i] = one if d == zero else d
        else:
            merged[:], divisor[:] = vote, total_weight
        for i in range(length):
            m = step(merged[i], precision)
            if normalizes:
                m = step(m / divisor[i], precision)
            m = step(m * lambda_, precision)
            o[i] = b[i] if m == zero else step(b[i] + m, precision)
    return out


@loop
def fused_sum(vectors, factors):
    count, size = vectors.shape
    out = np.zeros(size, vectors.dtype)
    for t in range(count):
        factor = np.float64(factors[t])
        for i in range(size):
            out[i] = np.float64(out[i]) + np.float64(vectors[t, i]) * factor
    return out


@loop
def weighted_mean(vectors, factors, whole):
    count, size = vectors.shape
    out = np.empty(size, vectors.dtype)
    zero, one = np.zeros(1, vectors.dtype)[0], np.ones(1, vectors.dtype)[0]
    total, differing = np.empty(PART, vectors.dtype), np.empty(PART, vectors.dtype)
    for start in range(0, size, PART):
        first, o = vectors[0, start : start + PART], out[start : start + PART]
        for i in range(o.size):
            total[i] = np.float64(zero) + np.float64(first[i]) * np.float64(factors[0])
            differing[i] = zero
        for t in range(1, count):
            v, factor = vectors[t, start : start + PART], np.float64(factors[t])
            if factor == 1:  # the same bits, twice as fast
                for i in range(o.size):
                    total[i] += v[i]
            else:
                for i in range(o.size):
                    total[i] = np.float64(total[i]) + np.float64(v[i]) * factor
            for i in range(o.size):
                differing[i] += one if v[i] != first[i] else zero
        for i in range(o.size):
            o[i] = total[i] / whole if differing[i] > zero else first[i]
    return out


@loop
def count_changes(vectors, bound, precision):
    count, size = vectors.shape
    out = np.zeros((2, count), np.int64)
    number = np.empty(PART, np.int32)
    for start in range(0, size, PART):
        length = min(PART, size - start)
        number[:] = 0
        for t in range(count):
            v = vectors[t, start : start + length]
            for i in range(length):
                number[i] += abs(step(v[i], precision)) > bound
        for t in range(count):
            v = vectors[t, start : start + length]
            together, alone = 0, 0
            for i in range(length):
                changed = abs(step(v[i], precision)) > bound
                together += int(changed & (number[i] > 1))
                alone += int(changed & (number[i] == 1))
            out[0, t] += together
            out[1, t] += alone
    return out


@loop
def merge_changes(base, vectors, bound, factors, precision, last):
    count, size = vectors.shape
    out = np.empty(size, base.dtype)
    number, total = np.empty(PART, base.dtype), np.empty(PART, base.dtype)
    zero, one = np.zeros(1, base.dtype)[0], np.ones(1, base.dtype)[0]
    for start in range(0, size, PART):
        b, o = base[start : start + PART], out[start : start + PART]
        number[:], total[:] = zero, zero
        for t in range(count):
            v = vectors[t, start : start + PART]
            for i in range(b.size):
                number[i] += one if abs(step(v[i], precision)) > bound else zero
        for t in range(count):
            v, factor = vectors[t, start : start + PART], factors[t]
            for i in range(b.size):
                change = step(v[i], precision)
                alone, shared = change * factor, step(change / max(number[i], one), precision)
                value = alone if number[i] == one else shared
                total[i] += value if abs(change) > bound else zero
        for i in range(b.size):
            whole = step(total[i], last)
            o[i] = b[i] if whole == zero else step(b[i] + whole, last)
    return out


@loop
def swap_near(base, other, t, least, precision):
    out = np.empty(base.size, base.dtype)
    zero, one = np.zeros(1, base.dtype)[0], np.ones(1, base.dtype)[0]
    for i in range(base.size):
        b, x = base[i], other[i]
        distance = max(step(abs(b - x), precision), least)
        share = min(max(step(step(one / distance, precision) * t, precision), zero), one)
        mixed = step(step(share * x, precision) + step(step(one - share, precision) * b, precision), precision)
        out[i] = b if b == x else mixed
    return out
