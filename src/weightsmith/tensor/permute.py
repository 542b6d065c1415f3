"""Axes made of units that may change places: unfolding, permuting, merging, and what decides which unit goes where.

An axis of size repeat * units * block is read as (repeat, units, block): a unit is `block` neighbors that move as one
(an attention head, a channel after flattening), and all units follow one another `repeat` times (fused q, k and v).
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np

from weightsmith.errors import ResourceError
from weightsmith.tensor.arrays import Array

PRODUCT_BYTES = 1 << 25  # float64 operands of one step of a product, each
PRODUCT_ROWS = 256


class UnitAxis(NamedTuple):
    """One axis of a tensor and how units lie on it."""

    axis: int
    repeat: int = 1
    block: int = 1

    def units(self, shape: tuple[int, ...]) -> int:
        """Return how many units the axis of a tensor of that shape holds."""
        return shape[self.axis] // (self.repeat * self.block)

    def split(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with the axis cut into (repeat, units, block)."""
        parts = (self.repeat, self.units(shape), self.block)
        return *shape[: self.axis], *parts, *shape[self.axis + 1 :]

    def resized(self, shape: tuple[int, ...], units: int) -> tuple[int, ...]:
        """Return the shape that the tensor has with another number of units."""
        return *shape[: self.axis], self.repeat * units * self.block, *shape[self.axis + 1 :]


def unfold(array: Array, where: UnitAxis) -> Array:
    """Return the units of a tensor as rows, (units, rest); a copy unless they lie so already."""
    units = where.units(array.shape)
    return np.moveaxis(array.reshape(where.split(array.shape)), where.axis + 1, 0).reshape(units, -1)


def permuted(array: Array, where: UnitAxis, order: Array) -> Array:
    """Return a tensor of any dtype whose unit i is unit order[i] of the given one.

    >>> permuted(np.arange(6), UnitAxis(0, block=2), np.array([2, 0, 1])).tolist()
    [4, 5, 0, 1, 2, 3]
    """
    return np.take(array.reshape(where.split(array.shape)), order, axis=where.axis + 1).reshape(array.shape)


def merged(array: Array, where: UnitAxis, labels: Array, *, summed: bool) -> Array:
    """Return a tensor whose unit k is the mean, or the sum, of the units i with labels[i] = k; float64.

    >>> merged(np.array([1.0, 5.0, 3.0]), UnitAxis(0), np.array([0, 1, 0]), summed=False).tolist()
    [2.0, 5.0]
    """
    count = int(labels.max()) + 1
    rows = unfold(array, where)
    out = np.zeros((count, rows.shape[1]))
    np.add.at(out, labels, rows)
    if not summed:
        out /= np.bincount(labels)[:, None]
    shape = where.resized(array.shape, count)
    split = where.split(shape)
    moved = (split[where.axis + 1], *split[: where.axis + 1], *split[where.axis + 2 :])
    return np.moveaxis(out.reshape(moved), 0, where.axis + 1).reshape(shape)


def add_products(total: Array, first: Array, second: Array, pool: Executor) -> None:
    """Add first @ second.T, formed in float64, to total (units, units), in place; the pool takes blocks of rows.

    Blocks do not depend on the number of threads, so neither do the bits, as long as each multiplies alone.
    """
    step = max(1, PRODUCT_BYTES // (8 * max(1, first.shape[0])))
    for start in range(0, first.shape[1], step):
        left, right = (x[:, start : start + step].astype(np.float64) for x in (first, second))

        def add(row: int, left: Array = left, right: Array = right) -> None:
            total[row : row + PRODUCT_ROWS] += left[row : row + PRODUCT_ROWS] @ right.T

        list(pool.map(add, range(0, len(total), PRODUCT_ROWS)))


def best_order(scores: Array) -> Array:
    """Return the permutation p with the largest sum of scores[i, p[i]], (units,).

    Raises:
        ResourceError: scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ResourceError(
            f"align: scipy is not installed ({error})", do="Install it with: pip install 'weightsmith[align]'"
        ) from error
    order: Array = linear_sum_assignment(scores, maximize=True)[1]
    return order


def merge_closest(incoming: Array, outgoing: Array, copies: Array, beta: float, most: int) -> Array:
    """Merge units while the two closest are at most beta times the largest distance apart; return labels from 0.

    A unit has incoming weights x and outgoing weights y; D_ij = |x_i - x_j|^2 + |y_i - y_j|^2. Merging i and j, which stand
    for n_i and n_j units, gives x = (n_i x_i + n_j x_j) / (n_i + n_j) and y = y_i + y_j. Both act on inner products
    alone, so no weights are needed.

    Args:
        incoming: Inner products <x_i, x_j>, (units, units), float64; overwritten.
        outgoing: Inner products <y_i, y_j>, (units, units), float64; overwritten.
        copies: For each unit the first one that it is an exact copy of, itself where there is none; merged first.
        beta: Share of the largest D_ij before anything is merged; 0 merges the copies alone.
        most: At most so many merges.

    >>> merge_closest(np.ones((2, 2)), np.ones((2, 2)), np.array([0, 0]), beta=0.0, most=1).tolist()
    [0, 0]
    """
    units = len(copies)
    counts, labels = np.ones(units), np.arange(units)
    bound = max((float(_row(incoming, outgoing, i).max()) for i in range(units)), default=0.0) * beta

    def merge(i: int, j: int) -> None:
        both = counts[i] + counts[j]
        _combine(incoming, i, j, counts[i] / both, counts[j] / both)
        _combine(outgoing, i, j, 1.0, 1.0)
        counts[i] = both
        labels[labels == j] = i

    found = [(int(i), j) for j, i in enumerate(copies) if i != j][:most]
    for i, j in found:
        merge(i, j)
    gone = np.zeros(units, bool)
    gone[[j for _, j in found]] = True
    distances = np.stack([_row(incoming, outgoing, i) for i in range(units)])
    np.maximum(distances, np.finfo(np.float64).tiny, out=distances)  # rounding: what is no copy is not at distance 0
    distances[gone] = distances[:, gone] = np.inf
    np.fill_diagonal(distances, np.inf)
    nearest, every = distances.argmin(1), np.arange(units)
    for _ in range(most - len(found)):
        gaps = distances[every, nearest]
        i, j = sorted((int(gaps.argmin()), int(nearest[gaps.argmin()])))
        if not distances[i, j] <= bound or i == j:
            break
        merge(i, j)
        gone[j] = True
        row = np.maximum(_row(incoming, outgoing, i), np.finfo(np.float64).tiny)
        row[gone] = row[i] = np.inf
        distances[i] = distances[:, i] = row
        distances[j] = distances[:, j] = np.inf
        stale = (nearest == i) | (nearest == j) | (every == i)
        nearest[~stale & (row < distances[every, nearest])] = i
        nearest[stale] = distances[stale].argmin(1)
    return np.unique(labels, return_inverse=True)[1]


def _row(incoming: Array, outgoing: Array, i: int) -> Array:
    """Return D_ij for all j."""
    row: Array = sum(g[i, i] + g.diagonal() - 2 * g[i] for g in (incoming, outgoing))
    return row


def _combine(gram: Array, i: int, j: int, first: float, second: float) -> None:
    """Replace vector i by first * vector i + second * vector j in a matrix of inner products."""
    square = first**2 * gram[i, i] + 2 * first * second * gram[i, j] + second**2 * gram[j, j]
    gram[i] = gram[:, i] = first * gram[i] + second * gram[j]
    gram[i, i] = square
