"""The loops of `gram.py` and of `vector.gram`: the same operations in the same order. Reached through `compiled.py`.

Numbers are widened once for several products, and four rows of lanes are added at a time, so that the running sums are
loaded and stored a quarter as often; each lane still gets its entries in order.
"""

from __future__ import annotations

import numpy as np

from weightsmith.tensor.arrays import LANES
from weightsmith.tensor.loops import PART, fold_lanes, loop

ROWS = 4 * LANES  # entries added at a time
WIDTH = 64  # columns whose running sums are kept at a time


@loop
def gram(vectors, length):
    """Return all inner products of each run of `length` entries, the last may be shorter: (T, n) -> (runs, pairs)."""
    count, size = vectors.shape
    runs, pairs = -(-size // length), count * (count + 1) // 2
    out = np.empty((runs, pairs), np.float64)
    lanes, tail = np.empty((pairs + 1, LANES), np.float64), np.empty((count, ROWS), vectors.dtype)
    for run in range(runs):
        start, stop = run * length, min((run + 1) * length, size)
        whole = stop - (stop - start) % ROWS
        lanes[:] = 0.0
        for i in range(start, whole, PART):
            _add_products(vectors, i, min(i + PART, whole), lanes)
        if whole < stop:  # zeros after the last entry change no sum
            tail[:] = 0
            tail[:, : stop - whole] = vectors[:, whole:stop]
            _add_products(tail, 0, ROWS, lanes)
        for pair in range(pairs):
            out[run, pair] = fold_lanes(lanes[pair])
    return out


@loop
def _add_products(vectors, start, stop, lanes):
    """Add the products of the entries start .. stop, a multiple of ROWS, to the lanes of their pairs; the last are spare."""
    count = vectors.shape[0]
    spare = lanes[-1]
    if count == 1:
        _add_square(vectors[0, start:stop], lanes[0])
    for t in range(1, count):
        z, own = vectors[t, start:stop], lanes[_pair(t, t, count)]
        for s in range(0, t - 1, 2):
            x, y = vectors[s, start:stop], vectors[s + 1, start:stop]
            _add_three(x, y, z, lanes[_pair(s, t, count)], lanes[_pair(s + 1, t, count)], own if s + 2 == t else spare)
        if t % 2 == 1:
            square = lanes[0] if t == 1 else spare
            _add_two(vectors[t - 1, start:stop], z, square, lanes[_pair(t - 1, t, count)], own)


@loop
def _pair(s, t, count):
    return s * count - s * (s + 1) // 2 + t


@loop
def _add_square(z, zz):
    for i in range(0, z.size, ROWS):
        w = z[i : i + ROWS]
        for j in range(LANES):
            a, b = np.float64(w[j]), np.float64(w[j + LANES])
            c, d = np.float64(w[j + 2 * LANES]), np.float64(w[j + 3 * LANES])
            zz[j] = zz[j] + a * a + b * b + c * c + d * d


@loop
def _add_two(x, y, xx, xy, yy):
    for i in range(0, y.size, ROWS):
        u, v = x[i : i + ROWS], y[i : i + ROWS]
        for j in range(LANES):
            a, b = np.float64(u[j]), np.float64(v[j])
            c, d = np.float64(u[j + LANES]), np.float64(v[j + LANES])
            e, f = np.float64(u[j + 2 * LANES]), np.float64(v[j + 2 * LANES])
            g, h = np.float64(u[j + 3 * LANES]), np.float64(v[j + 3 * LANES])
            xx[j] = xx[j] + a * a + c * c + e * e + g * g
            xy[j] = xy[j] + a * b + c * d + e * f + g * h
            yy[j] = yy[j] + b * b + d * d + f * f + h * h


@loop
def _add_three(x, y, z, xz, yz, zz):
    for i in range(0, z.size, ROWS):
        u, v, w = x[i : i + ROWS], y[i : i + ROWS], z[i : i + ROWS]
        for j in range(LANES):
            a, b, c = np.float64(u[j]), np.float64(v[j]), np.float64(w[j])
            d, e, f = np.float64(u[j + LANES]), np.float64(v[j + LANES]), np.float64(w[j + LANES])
            g, h, k = np.float64(u[j + 2 * LANES]), np.float64(v[j + 2 * LANES]), np.float64(w[j + 2 * LANES])
            m, n, p = np.float64(u[j + 3 * LANES]), np.float64(v[j + 3 * LANES]), np.float64(w[j + 3 * LANES])
            xz[j] = xz[j] + a * c + d * f + g * k + m * p
            yz[j] = yz[j] + b * c + e * f + h * k + n * p
            zz[j] = zz[j] + c * c + f * f + k * k + p * p


@loop
def column_gram(first, second):
    rows, columns = first.shape
    out = np.empty((columns, 3), np.float64)
    lanes, zero = np.empty((3, LANES, WIDTH), np.float64), np.zeros(columns, first.dtype)
    for start in range(0, columns, WIDTH):
        stop = min(start + WIDTH, columns)
        lanes[:] = 0.0
        for top in range(0, rows, ROWS):
            for lane in range(min(LANES, rows - top)):
                r = top + lane
                x0, y0 = first[r, start:stop], second[r, start:stop]
                x1, y1, x2, y2, x3, y3 = zero, zero, zero, zero, zero, zero
                if r + LANES < rows:
                    x1, y1 = first[r + LANES, start:stop], second[r + LANES, start:stop]
                if r + 2 * LANES < rows:
                    x2, y2 = first[r + 2 * LANES, start:stop], second[r + 2 * LANES, start:stop]
                if r + 3 * LANES < rows:
                    x3, y3 = first[r + 3 * LANES, start:stop], second[r + 3 * LANES, start:stop]
                xx, xy, yy = lanes[0, lane], lanes[1, lane], lanes[2, lane]
                for i in range(x0.size):
                    a, b, c, d = np.float64(x0[i]), np.float64(x1[i]), np.float64(x2[i]), np.float64(x3[i])
                    e, f, g, h = np.float64(y0[i]), np.float64(y1[i]), np.float64(y2[i]), np.float64(y3[i])
                    xx[i] = xx[i] + a * a + b * b + c * c + d * d
                    xy[i] = xy[i] + a * e + b * f + c * g + d * h
                    yy[i] = yy[i] + e * e + f * f + g * g + h * h
        half = LANES // 2
        while half >= 1:
            for pair in range(3):
                for lane in range(half):
                    x, y = lanes[pair, lane], lanes[pair, lane + half]
                    for i in range(WIDTH):
                        x[i] += y[i]
            half //= 2
        for pair in range(3):
            out[start:stop, pair] = lanes[pair, 0, : stop - start]
    return out
