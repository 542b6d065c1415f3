"""Loops that look for k-th magnitudes inside guessed windows. Reached through `compiled.py`."""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.loops import PART, loop


@loop
def sift(vectors, low, top, above, index, votes):
    """Write to `index` which entries are open; see `select.sift`.

    Sums are of the vectors' type, and counts of 32 bits: the compiler does not vectorize loops over both wide and narrow
    numbers well. Flags are bytes, looked at eight at a time: most groups hold no open entry.
    """
    count, size = vectors.shape
    zero = np.zeros(1, vectors.dtype)[0]
    flags, sums = np.zeros(PART, np.uint8), np.empty(PART, vectors.dtype)
    words, groups = flags.view(np.uint64), np.empty(PART // 8, np.uint32)
    found, balance = np.uint64(0), 0
    for start in range(0, size, PART):
        is_open, total = flags[: min(PART, size - start)], sums[: min(PART, size - start)]
        flags[:] = 0
        total[:] = zero
        for t in range(count):
            v = vectors[t, start : start + PART]
            for r in range(low.shape[1]):
                least, most = low[t, r], top[t, r]
                larger = np.int32(0)
                for i in range(v.size):
                    larger = np.int32(larger + np.int32(abs(v[i]) > most))
                for i in range(v.size):
                    is_open[i] |= np.uint8((abs(v[i]) >= least) & (abs(v[i]) <= most))
                above[t, r] += larger
            if votes:
                most = top[t, 0]
                for i in range(v.size):
                    total[i] += v[i] * (abs(v[i]) > most)
        used = np.uint64(0)
        for g in range(words.size):
            groups[used] = np.uint32(g)
            used += np.uint64(words[g] != np.uint64(0))
        for q in range(used):
            word, first = words[groups[q]], np.uint32(start) + np.uint32(8) * groups[q]
            for j in range(8):
                index[found] = first + np.uint32(j)
                found += (word >> np.uint64(8 * j)) & np.uint64(1)
        if votes:
            part = np.int32(0)
            for i in range(total.size):
                is_closed = is_open[i] == 0
                part = np.int32(
                    part + np.int32((total[i] > zero) & is_closed) - np.int32((total[i] < zero) & is_closed)
                )
            balance += int(part)
    return int(found), balance


@loop
def count_inside(vector, value, top):
    """Return how many magnitudes lie above value and not above top, and how many are equal to value."""
    larger, equal = 0, 0
    for start in range(0, vector.size, PART):
        v = vector[start : start + PART]
        more, same = np.int32(0), np.int32(0)
        for i in range(v.size):
            more = np.int32(more + np.int32((abs(v[i]) > value) & (abs(v[i]) <= top)))
        for i in range(v.size):
            same = np.int32(same + np.int32(abs(v[i]) == value))
        larger += int(more)
        equal += int(same)
    return larger, equal


@loop
def count_bins(bits, first, likeliest, last, shift, seen, counts, least, most):
    """Count magnitudes (n,) uint32, by their bits, from `first` to `last`; see `engine.bins`.

    Added to `seen` (4,) is how many are equal to first, likeliest and last, and how many lie above last. Others in between
    are counted in bins of 2**shift patterns: counts, least and most (bins,) are how many each holds, its least pattern and
    its largest. First, likeliest and last may be one.
    """
    mask = np.uint32(0x7FFFFFFF)
    second, between = np.uint32(first + np.uint32(1)), np.uint32(max(last, first + np.uint32(1)) - first - np.uint32(1))
    flags, groups = np.zeros(PART, np.uint8), np.empty(PART // 8, np.uint32)
    words = flags.view(np.uint64)
    for start in range(0, bits.size, PART):
        b = bits[start : start + PART]
        low, middle, high, larger = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
        flags[:] = 0
        for i in range(b.size):
            magnitude = np.uint32(b[i] & mask)
            low = np.uint32(low + np.uint32(magnitude == first))
            middle = np.uint32(middle + np.uint32(magnitude == likeliest))
            high = np.uint32(high + np.uint32(magnitude == last))
            larger = np.uint32(larger + np.uint32(magnitude > last))
        for i in range(b.size):
            magnitude = np.uint32(b[i] & mask)
            flags[i] = np.uint8((np.uint32(magnitude - second) < between) & (magnitude != likeliest))
        seen[0] += low
        seen[1] += middle
        seen[2] += high
        seen[3] += larger
        used = np.uint64(0)
        for g in range(words.size):
            groups[used] = np.uint32(g)
            used += np.uint64(words[g] != np.uint64(0))
        for q in range(used):
            place = np.uint64(8) * np.uint64(groups[q])
            for i in range(place, place + np.uint64(8)):  # flags beyond the end are 0
                if flags[i]:
                    pattern = np.uint32(b[i] & mask)
                    bin = np.uint32(np.uint32(pattern - first) >> shift)
                    counts[bin] += 1
                    least[bin] = min(least[bin], pattern)
                    most[bin] = max(most[bin], pattern)


@loop
def nth_equal(vector, value, nth):
    """Return the index of the nth magnitude that is equal to value, counted from 1."""
    for i in range(vector.size):
        nth -= int(abs(vector[i]) == value)
        if nth == 0:
            return i
    return vector.size


@loop
def gather_inside(vector, low, top, out):
    """Write to `out` the magnitudes from low to top, in order; return how many they are."""
    found = np.uint64(0)
    for i in range(vector.size):
        magnitude = abs(vector[i])
        out[found] = magnitude
        found += np.uint64((magnitude >= low) & (magnitude <= top))
    return int(found)


@loop
def gather_window(vector, low, top, kept, index, mode):
    """Return how many values lie from low to top and how many above; keep them in order, and their indices.

    Mode 0 keeps nothing, 1 the values, 2 values and indices.
    """
    found, above = 0, 0
    for start in range(0, vector.size, PART):
        v = vector[start : start + PART]
        inside, larger = np.int32(0), np.int32(0)
        for i in range(v.size):
            inside = np.int32(inside + np.int32((v[i] >= low) & (v[i] <= top)))
        for i in range(v.size):
            larger = np.int32(larger + np.int32(v[i] > top))
        above += int(larger)
        if mode == 0 or inside == 0:
            found += int(inside)
        elif mode == 1:
            for i in range(v.size):
                kept[found] = v[i]
                found += int((v[i] >= low) & (v[i] <= top))
        else:
            for i in range(v.size):
                kept[found] = v[i]
                index[found] = start + i
                found += int((v[i] >= low) & (v[i] <= top))
    return found, above


@loop
def sorted_bits(keys):
    """Sort whole numbers (n,) uint32 by their digits of 11 bits: several times as fast as comparing them."""
    current, other = keys.copy(), np.empty_like(keys)
    places = np.zeros((3, 2048), np.uint32)
    low, middle, high = places[0], places[1], places[2]
    mask = np.uint32(2047)
    for i in range(keys.size):
        low[keys[i] & mask] += np.uint32(1)
        middle[(keys[i] >> np.uint32(11)) & mask] += np.uint32(1)
        high[keys[i] >> np.uint32(22)] += np.uint32(1)
    for p in range(3):
        place, shift = places[p], np.uint32(11 * p)
        total = np.uint32(0)
        for d in range(place.size):
            total, place[d] = total + place[d], total
        for i in range(current.size):
            digit = (current[i] >> shift) & mask
            other[place[digit]] = current[i]
            place[digit] += np.uint32(1)
        current, other = other, current
    return current
