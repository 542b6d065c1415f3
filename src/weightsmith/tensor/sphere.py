"""Points on the sphere between vectors: from their inner products alone, or step by step with rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, blocked_sum, cast, is_compiled, like, namespace
from weightsmith.tensor.gram import Host
from weightsmith.tensor.rounding import rounded, rounded_number
from weightsmith.tensor.vector import add_scaled, columns, weighted_sum

ALIGNED = 1e-7  # below this sine of an angle the direction of its arc is lost in rounding
SAME = 1e-14  # a sum of factors nearer to 1 than this is 1
SUM, MEAN, TANGENT, RESULT = range(4)  # what the loops are asked for


def interpolate(vectors: Array, excess: Host, far: Host) -> Array:
    """Return x + (excess * x + far * (y - x)), so that equal vectors come back bit for bit where the excess is 0.

    Args:
        vectors: x and y, (2, n), cut into as many runs of equal length as there are factors.
        excess: What left and right factor are together, less 1: (units,).
        far: The right factor, (units,).

    Returns:
        (n,), dtype of vectors.
    """
    more, right = like(excess, vectors), like(far, vectors)
    if is_compiled(vectors):
        return compiled.interpolate(vectors, more, right)
    x, y = vectors.reshape(2, len(excess), -1)
    return (x + (x * more[:, None] + (y - x) * right[:, None])).reshape(-1)


def interpolate_columns(first: Array, second: Array, excess: Host, far: Host) -> Array:
    """Return what `interpolate` does, for matrices (rows, columns) with a factor for each column, (columns,)."""
    more, right = like(excess, first), like(far, first)
    if is_compiled(first, second):
        return compiled.interpolate_columns(first, second, more, right)
    return first + (first * more + (second - first) * right)


def add_step(base: Array, step: Array, precision: str) -> Array:
    """Return base + step, rounded; base itself, bit for bit (-0 too), where the step is 0. Both (n,)."""
    if precision == "float32":
        return add_scaled(base, step, 1.0)
    return namespace(base).where(step == 0, base, rounded(base + step, precision))


def from_first(vectors: Array, factors: Sequence[float]) -> Array:
    """Return sum_t f_t * v_t, formed from the differences to the first: equal vectors come back bit for bit where f adds to 1."""
    excess = sum(float(f) for f in factors) - 1
    scales = [0.0 if abs(excess) < SAME else excess, *factors[1:]]
    if is_compiled(vectors):
        return compiled.from_first(vectors, like(scales, vectors))
    first = vectors[0]
    parts = vectors - first
    parts[0] = first
    return add_scaled(first, weighted_sum(parts, scales), 1.0)


def mean_direction(cosine: Host, weights: Host, max_iter: int, tol: float) -> Host:
    """Return factors a with sum_i a_i u_i of length 1, the Karcher mean of unit vectors u_i.

    Args:
        cosine: (T, T), inner products of the u_i.
        weights: (T,), positive.
        max_iter: Most steps along the sphere.
        tol: The step, in radians, that counts as none.
    """
    share = weights / weights.sum()
    factors: Host = share.copy()
    length = _length(factors, cosine)
    if length < max(tol, ALIGNED):
        factors[:] = np.arange(len(factors)) == 0  # they cancel: no direction is better than the first's
        return factors
    factors /= length
    for _ in range(max_iter):
        along = np.clip(cosine @ factors, -1.0, 1.0)
        angles, sines = np.arccos(along), np.sqrt(1 - along * along)
        pull = share * np.divide(angles, sines, out=np.zeros_like(sines), where=sines > ALIGNED)
        step = pull - (pull @ along) * factors
        size = _length(step, cosine)
        if size < max(tol, ALIGNED):
            break
        factors = math.cos(size) * factors + math.sin(size) / size * step
        factors /= _length(factors, cosine)
    return factors


def _length(factors: Host, cosine: Host) -> float:
    return math.sqrt(max(float(factors @ cosine @ factors), 0.0))


@dataclass(frozen=True)
class Arc:
    """One step along the sphere: what `Walk` multiplies with.

    Attributes:
        along: Inner products of mean and unit vectors.
        pull: What each unit vector adds to the step; 0 for none.
        size: Length of the step.
        length: Length of the mean after it.
    """

    along: Host
    pull: Host
    size: float = 1.0
    length: float = 1.0


@dataclass(frozen=True)
class Walk:
    """How a tool that rounds each number to a narrow dtype gets to the Karcher mean.

    Later values are filled in as sums over the tensor become known; each method below goes all steps known so far.

    Attributes:
        used: Which inputs have a direction.
        lengths: Of those.
        share: Their weights, adding up to 1.
        scale: Mean length of all inputs.
        precision: To what each step is rounded.
        length: Of the sum of directions; 0 where they cancel and the first is taken.
        arcs: The steps.
    """

    used: Sequence[int]
    lengths: Host
    share: Host
    scale: float
    precision: str
    length: float = 1.0
    arcs: tuple[Arc, ...] = ()

    def after(self, arc: Arc) -> Walk:
        """Return the walk with one more step."""
        return replace(self, arcs=(*self.arcs, arc))

    def next_arc(self, along: Host, tol: float) -> Arc:
        """Return the step that follows from the mean's inner products with the unit vectors."""
        along = np.clip(self._near(along), -1.0, 1.0)
        angles = self._near(np.arccos(along))
        ratio = np.divide(angles, self._near(np.sin(angles)), out=np.zeros_like(angles), where=angles >= tol)
        return Arc(along, self._near(self.share * self._near(ratio)))

    def sum(self, vectors: Array) -> Array:
        """Return the weighted sum of the unit vectors, (T, n) -> (n,)."""
        if self._is_compiled(vectors):
            return compiled.walk(vectors, *self._numbers(), *self._end(), SUM)
        return self._sum(self._units(vectors))

    def mean(self, vectors: Array) -> Array:
        """Return the mean direction, (n,)."""
        if self._is_compiled(vectors):
            return compiled.walk(vectors, *self._numbers(), *self._end(), MEAN)
        return self._mean(self._units(vectors))

    def products(self, vectors: Array) -> Array:
        """Return sums, in blocks, for the inner products of the mean with each unit vector."""
        if self._is_compiled(vectors):
            return compiled.walk_products(vectors, *self._numbers())
        units = self._units(vectors)
        mean = self._mean(units)
        return columns(*(blocked_sum(cast(mean * unit, "float64")) for unit in units))  # products are exact

    def tangent(self, vectors: Array, arc: Arc) -> Array:
        """Return the next step, (n,)."""
        if self._is_compiled(vectors):
            return compiled.walk(vectors, *self._numbers(), *self._end(arc), TANGENT)
        units = self._units(vectors)
        return self._tangent(units, self._mean(units), arc)

    def result(self, vectors: Array) -> Array:
        """Return the mean at the mean length, (n,)."""
        if not self.used:
            return vectors[0] * 0
        if self._is_compiled(vectors):
            return compiled.walk(vectors, *self._numbers(), *self._end(), RESULT)
        return self._step(self._factor(self.scale, vectors) * self.mean(vectors))

    def _is_compiled(self, vectors: Array) -> bool:
        return self.precision == "bfloat16" and is_compiled(vectors) and vectors.dtype == np.float32

    def _numbers(self) -> tuple[Array, ...]:
        """Return what the loops know a walk by; see `sphere_loops.walk`."""
        lengths, share = self.lengths.astype(np.float32), self.share.astype(np.float32)
        arcs = np.array([self._row(arc) for arc in self.arcs], np.float32).reshape(-1, 2 * len(self.used) + 4)
        return np.array(self.used), lengths, share, np.float32(self.length), arcs

    def _end(self, last: Arc | None = None) -> tuple[Array, Array]:
        row = np.zeros(0, np.float32) if last is None else np.array(self._row(last), np.float32)
        return row, np.float32(rounded_number(self.scale, self.precision))

    def _row(self, arc: Arc) -> list[float]:
        turns = [rounded_number(f(arc.size), self.precision) for f in (math.cos, math.sin)]
        return [*arc.along, *arc.pull, *turns, arc.size, arc.length]

    def _units(self, vectors: Array) -> list[Array]:
        pairs = zip(self.used, self.lengths, strict=True)
        return [self._step(vectors[i] / like(length, vectors)) for i, length in pairs]

    def _sum(self, units: Sequence[Array]) -> Array:
        total = self._step(like(self.share[0], units[0]) * units[0])
        for share, unit in zip(self.share[1:], units[1:], strict=True):
            total = self._step(total + self._step(like(share, unit) * unit))
        return total

    def _mean(self, units: Sequence[Array]) -> Array:
        mean = self._step(self._sum(units) / like(self.length, units[0])) if self.length else units[0]
        for arc in self.arcs:
            tangent = self._tangent(units, mean, arc)
            onward = self._step(self._factor(math.sin(arc.size), mean) * self._step(tangent / like(arc.size, mean)))
            mean = self._step(self._step(self._factor(math.cos(arc.size), mean) * mean) + onward)
            mean = self._step(mean / like(arc.length, mean))
        return mean

    def _tangent(self, units: Sequence[Array], mean: Array, arc: Arc) -> Array:
        tangent = mean * 0
        for along, pull, unit in zip(arc.along, arc.pull, units, strict=True):
            if pull:
                aside = self._step(unit - self._step(like(along, mean) * mean))
                tangent = self._step(tangent + self._step(like(pull, mean) * aside))
        return tangent

    def _step(self, values: Array) -> Array:
        return rounded(values, self.precision)

    def _near(self, values: Host) -> Host:
        found: Host = rounded(values, self.precision)
        return found

    def _factor(self, value: float, other: Array) -> Array:
        """Return a factor, which unlike a divisor is rounded itself."""
        return like(rounded_number(value, self.precision), other)


def start_walk(lengths: Host, weights: Host, tol: float, precision: str) -> Walk:
    """Return a walk without steps, from the lengths of the inputs (T,) and their weights."""
    used = np.flatnonzero((lengths > tol) & (weights > 0))
    share = weights[used] / weights[used].sum() if len(used) else weights[used]
    scale = float(weights @ lengths / weights.sum())
    return Walk(tuple(int(i) for i in used), lengths[used], share, scale, precision)
