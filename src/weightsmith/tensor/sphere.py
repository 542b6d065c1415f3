"""Means of directions: the Karcher mean on the sphere, from inner products alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightsmith.tensor.arrays import Array, like
from weightsmith.tensor.gram import Host
from weightsmith.tensor.rounding import rounded, rounded_number

ALIGNED = 1e-7  # below this sine of an angle the direction of its arc is lost in rounding


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
    """One step along the sphere: what `walk` multiplies with.

    Attributes:
        along: Inner products of mean and unit vectors.
        pull: What each unit vector adds to the step; 0 for none.
        size: Length of the step.
        length: Length of the mean after it.
    """

    along: Host
    pull: Host
    size: float
    length: float


@dataclass(frozen=True)
class Path:
    """How a tool that rounds each number to a narrow dtype gets to the Karcher mean.

    Attributes:
        used: Which inputs have a direction.
        lengths: Of those.
        share: Their weights, adding up to 1.
        length: Of the sum of directions; 0 where they cancel and the first is taken.
        arcs: The steps.
        scale: Mean length of all inputs.
    """

    used: Sequence[int]
    lengths: Host
    share: Host
    length: float
    arcs: tuple[Arc, ...]
    scale: float


def plan_path(products: Host, weights: Host, max_iter: int, tol: float, precision: str) -> Path:
    """Find the numbers of a rounded iteration from exact inner products: angles are rounded, as those of the tool are."""
    all_lengths = np.sqrt(np.diagonal(products))
    used = np.flatnonzero((all_lengths > tol) & (weights > 0))
    scale = float(weights @ all_lengths / weights.sum())
    if not len(used):
        return Path((), all_lengths[used], weights[used], 0.0, (), scale)
    lengths, share = all_lengths[used], weights[used] / weights[used].sum()
    cosine = products[np.ix_(used, used)] / lengths / lengths[:, None]
    mean, total = share.copy(), _length(share, cosine)
    mean, total = (mean / total, total) if total >= tol else (1.0 * (np.arange(len(used)) == 0), 0.0)
    arcs: list[Arc] = []
    while len(arcs) < max_iter:
        along = rounded(np.clip(cosine @ mean, -1.0, 1.0), precision)
        angles = rounded(np.arccos(along), precision)
        ratio = np.divide(angles, rounded(np.sin(angles), precision), out=np.zeros_like(angles), where=angles >= tol)
        pull = rounded(share * rounded(ratio, precision), precision)
        step = pull - (pull @ along) * mean
        size = _length(step, cosine)
        if size < max(tol, ALIGNED):
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
        arcs.append(Arc(along, pull, size, _length(mean, cosine)))
        mean = mean / arcs[-1].length
    return Path(tuple(int(i) for i in used), lengths, share, total, tuple(arcs), scale)


def walk(vectors: Array, path: Path, precision: str) -> Array:
    """Go a path with vectors (T, n), every step rounded to the precision; (n,)."""

    def r(values: Array) -> Array:
        return rounded(values, precision)

    def number(value: float) -> Array:
        return like(value, vectors)

    def factor(value: float) -> Array:  # unlike divisors, factors are rounded themselves
        return like(rounded_number(value, precision), vectors)

    if not path.used:
        return vectors[0] * 0
    units = [r(vectors[i] / number(length)) for i, length in zip(path.used, path.lengths, strict=True)]
    mean = units[0]
    if path.length:
        mean = r(number(path.share[0]) * units[0])
        for share, unit in zip(path.share[1:], units[1:], strict=True):
            mean = r(mean + r(number(share) * unit))
        mean = r(mean / number(path.length))
    for arc in path.arcs:
        tangent = mean * 0
        for along, pull, unit in zip(arc.along, arc.pull, units, strict=True):
            if pull:
                tangent = r(tangent + r(number(pull) * r(unit - r(number(along) * mean))))
        onward = r(factor(math.sin(arc.size)) * r(tangent / number(arc.size)))
        mean = r(r(r(factor(math.cos(arc.size)) * mean) + onward) / number(arc.length))
    return r(factor(path.scale) * mean)
