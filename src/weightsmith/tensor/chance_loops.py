"""Loops that draw and rank. Reached through `compiled.py`."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.arrays import LANES
from weightsmith.tensor.loops import loop

DIGIT = 11  # most bits that one pass of the sort looks at
MOST_DOUBTS = 100  # of a row, that are counted one by one


@loop
def keep_random(vectors, probabilities, keys, start):
    count, size = vectors.shape
    stride = 0 if probabilities.shape[1] == 1 else 1
    out = np.empty((count, size), vectors.dtype)
    zero = np.zeros(1, vectors.dtype)[0]
    for t in range(count):
        for i in range(size):
            z = keys[t] + np.uint64(start + i + 1) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = (z ^ (z >> np.uint64(31))) >> np.uint64(11)
            kept = np.float64(np.int64(z)) * 2.0**-53 < np.float64(probabilities[t, i * stride])
            out[t, i] = vectors[t, i] if kept else zero
    return out


@loop
def thin_rows(vectors, bits, length, chances, keys, start, inverse):
    """Keep the entries of rows by chances (T, length) that go by rank; see `ranks.thin_rows`.

    `bits` are those of the float32 numbers that are ranked, (T, n). Where the chance itself is not asked for, few ranks are.
    """
    count, size = vectors.shape
    out = np.empty((count, size), np.float32)
    first, second = np.empty(length, np.uint64), np.empty(length, np.uint64)
    chance, counts = np.empty((2, length), np.float32), np.empty((2, 1 << DIGIT), np.uint32)
    bounds, drawn = np.empty((2, 1 << DIGIT), np.float32), np.empty(length)
    is_open, doubtful = np.zeros(-(-length // 8) * 8, np.uint8), np.empty(MOST_DOUBTS, np.int64)
    zero, one = np.float32(0), np.float32(1)
    for t in range(count):
        for begin in range(0, size, length):
            end = begin + length
            row, v, o = bits[t, begin:end], vectors[t, begin:end], out[t, begin:end]
            state = keys[t] + np.uint64(start + begin + 1) * np.uint64(0x9E3779B97F4A7C15)
            for i in range(length):
                z = state + np.uint64(i) * np.uint64(0x9E3779B97F4A7C15)
                z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                z = (z ^ (z >> np.uint64(31))) >> np.uint64(11)
                drawn[i] = np.float64(np.int64(z)) * 2.0**-53
            if not inverse and _decide(row, chances[t], drawn, v, o, counts, bounds, chance, is_open, doubtful):
                continue
            own = chance[0]
            _place(row, chances[t], own, first, second, counts)
            for i in range(length):
                o[i] = v[i] if drawn[i] < np.float64(own[i]) else zero
            if inverse:
                for i in range(length):
                    o[i] /= own[i] + (one if own[i] == zero else zero)
    return out


@loop
def absolute_row_sums(vectors, length):
    count, size = vectors.shape
    out = np.empty((size // length, count), np.float64)
    lanes = np.empty(LANES, np.float64)
    for t in range(count):
        for r in range(size // length):
            x = vectors[t, r * length : (r + 1) * length]
            lanes[:] = 0.0
            for i in range(0, length, LANES):
                u = x[i : i + LANES]
                for j in range(u.size):
                    lanes[j] += abs(np.float64(u[j]))
            half = LANES // 2
            while half >= 1:
                for j in range(half):
                    lanes[j] += lanes[j + half]
                half //= 2
            out[r, t] = lanes[0]
    return out


@loop
def _varying(bits):
    """Return from which bit on magnitudes vary, and over how many bits, at least 1."""
    magnitude = np.uint32(0x7FFFFFFF)
    union, common = np.uint32(0), magnitude
    for i in range(bits.size):
        union |= bits[i] & magnitude
        common &= bits[i] & magnitude
    varying = np.uint64(union & ~common)
    low = np.uint64(0)
    while (varying >> low) & np.uint64(1) == 0 and low < 31:
        low += np.uint64(1)
    width = 1
    while varying >> (low + np.uint64(width)) != 0:
        width += 1
    return low, width


@loop
def _decide(bits, table, drawn, v, out, counts, bounds, chance, is_open, doubtful):
    """Keep entries of a row where drawn < table[rank], the table ascending; False, and nothing, where that would take long.

    The first bits of a magnitude tell between which two ranks its own lies; where that is not enough, it is counted.
    """
    length, magnitude, zero = bits.size, np.uint32(0x7FFFFFFF), np.float32(0)
    low, width = _varying(bits)
    looked = 4
    while looked < min(width, DIGIT) and 4 << looked <= length:  # more than half as many counters as entries cost more
        looked += 1
    shift, radix = np.uint32(np.int64(low) + max(0, width - looked)), 1 << min(width, looked)
    mask, one, none = np.uint32(radix - 1), np.uint32(1), np.uint32(0)
    count, least, most = counts[0, :radix], bounds[0, :radix], bounds[1, :radix]
    count[:] = 0
    for i in range(length):
        count[np.uint32(np.uint32(bits[i] & magnitude) >> shift) & mask] += one
    before = 0
    for d in range(radix):
        if count[d] > 0:
            least[d] = table[before]
            before += int(count[d])
            most[d] = table[before - 1]
    low_chance, high_chance = chance[0], chance[1]
    for i in range(length):
        where = np.uint32(np.uint32(bits[i] & magnitude) >> shift) & mask
        low_chance[i], high_chance[i] = least[where], most[where]
    for i in range(length):  # apart, so that the compiler makes no branches of it
        out[i] = v[i] if drawn[i] < np.float64(low_chance[i]) else zero
    for i in range(length):
        is_open[i] = (drawn[i] >= np.float64(low_chance[i])) & (drawn[i] < np.float64(high_chance[i]))
    doubts, eights = 0, is_open.view(np.uint64)
    for k in range(-(-length // 8)):
        if eights[k] == 0:
            continue
        for i in range(8 * k, min(8 * k + 8, length)):
            if is_open[i] and (v[i] != zero or bits[i] != 0):
                if doubts == doubtful.size:
                    return False
                doubtful[doubts] = i
                doubts += 1
    for k in range(doubts):
        i = doubtful[k]
        key, rank = np.uint32(bits[i] & magnitude), np.uint32(0)
        left, right = bits[:i], bits[i + 1 :]
        for j in range(left.size):
            rank = np.uint32(rank + (one if np.uint32(left[j] & magnitude) <= key else none))
        for j in range(right.size):
            rank = np.uint32(rank + (one if np.uint32(right[j] & magnitude) < key else none))
        out[i] = v[i] if drawn[i] < table[rank] else zero
    return True


@loop
def _place(bits, table, out, first, second, counts):
    """Write table[r] to out where r is the rank of each magnitude: a stable sort, digit by digit, of the bits that vary."""
    length, magnitude = bits.size, np.uint32(0x7FFFFFFF)
    low, width = _varying(bits)
    passes = (width + DIGIT - 1) // DIGIT
    digit = np.uint64((width + passes - 1) // passes)
    mask = np.uint64((np.uint64(1) << digit) - np.uint64(1))
    radix = np.int64(mask) + 1
    place, after = counts[0, :radix], counts[1, :radix]
    place[:], one = 0, np.uint32(1)
    for i in range(length):
        key = np.uint64(bits[i] & magnitude) >> low
        first[i] = key << np.uint64(32) | np.uint64(i)
        place[key & mask] += one
    shift = np.uint64(32)
    for _ in range(passes - 1):
        _start_places(place)
        after[:] = 0
        for i in range(length):
            pair = first[i]
            d = (pair >> shift) & mask
            where = place[d]
            second[where] = pair
            place[d] = np.uint32(where + one)
            after[(pair >> (shift + digit)) & mask] += one
        first, second, place, after, shift = second, first, after, place, shift + digit
    _start_places(place)
    for i in range(length):
        pair = first[i]
        d = (pair >> shift) & mask
        where = place[d]
        out[pair & np.uint64(0xFFFFFFFF)] = table[where]
        place[d] = np.uint32(where + one)


@loop
def _start_places(counts):
    """Turn counts into how many come before."""
    before = np.uint32(0)
    for d in range(counts.size):
        here = counts[d]
        counts[d] = before
        before = np.uint32(before + here)
