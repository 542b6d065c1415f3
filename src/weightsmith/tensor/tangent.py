"""The interpolation of multislerp as mergekit computes it, each step rounded to a narrow precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.tensor.arrays import Array, like
from weightsmith.tensor.consensus import sum_left
from weightsmith.tensor.rounding import rounded, rounded_number


@dataclass(frozen=True)
class Tangent:
    """What is known of the whole vectors; later values are filled in as sums over the tensor become known.

    Attributes:
        weights: One per vector.
        lengths: One per vector.
        eps: What counts as no length.
        precision: To what each step is rounded.
        size: Length of the weighted sum of unit vectors.
        dots: Inner product of each unit vector with that sum, made a unit vector.
        far: Length of the weighted sum of tangents.
    """

    weights: Sequence[float]
    lengths: Sequence[float]
    eps: float
    precision: str
    size: float = 1.0
    dots: Sequence[float] = ()
    far: float = 0.0

    def near(self, value: float) -> float:
        """Return a number rounded to the precision."""
        return rounded_number(value, self.precision)

    def step(self, values: Array) -> Array:
        """Return values rounded to the precision."""
        return rounded(values, self.precision)

    def units(self, vectors: Array) -> list[Array]:
        """Return the unit vectors, T times (n,)."""
        lengths = like([self.near(n + self.eps) or 1.0 for n in self.lengths], vectors)
        return [self.step(self.step(v) / lengths[t]) for t, v in enumerate(vectors)]

    def weighted(self, vectors: Sequence[Array]) -> Array:
        """Return their weighted sum, (n,)."""
        weights = like(list(self.weights), vectors[0])
        return self.step(sum_left([self.step(v * weights[t]) for t, v in enumerate(vectors)]))

    def mean(self, vectors: Array) -> Array:
        """Return the weighted sum of the unit vectors, divided by `size`."""
        return self.step(self.weighted(self.units(vectors)) / like(self.size, vectors))

    def products(self, vectors: Array) -> list[Array]:
        """Return the products, entry by entry, of each unit vector with the mean."""
        mean = self.mean(vectors)
        return [self.step(u * mean) for u in self.units(vectors)]

    def tangent(self, vectors: Array) -> Array:
        """Return the weighted sum of the unit vectors' parts that are at right angles to the mean."""
        mean, dots = self.mean(vectors), like(list(self.dots), vectors)
        return self.weighted([self.step(u - self.step(mean * dots[t])) for t, u in enumerate(self.units(vectors))])

    def merged(self, vectors: Array) -> Array:
        """Return the point of the sphere to which the tangent leads, at the weighted mean length, (n,)."""
        far = self.near(self.far + self.eps)
        ahead, aside = self.near(math.cos(far)), self.near(self.near(math.sin(far)) / far)
        length = self.near(sum(self.near(w * n) for w, n in zip(self.weights, self.lengths, strict=True)))
        left = self.step(self.mean(vectors) * like(ahead, vectors))
        right = self.step(self.tangent(vectors) * like(aside, vectors))
        return self.step(self.step(left + right) * like(length, vectors))
