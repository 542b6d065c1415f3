"""Whole tensors as matrices, for the methods that have to see them so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from weightsmith.tensor.arrays import Array


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Return the shape (rows, columns) as which a tensor of two or more axes is seen: all but the first are columns."""
    return shape[0], math.prod(shape[1:])


@dataclass(frozen=True)
class Given:
    """What headers tell of the matrices that a method is given for one tensor.

    Attributes:
        rows: Of each.
        columns: Of each.
        ranks: Per model: None where it comes whole; the rank of the factors that `Matrices.factors` gives.
        parameters: The method's, for this tensor.
    """

    rows: int
    columns: int
    ranks: tuple[int | None, ...]
    parameters: Mapping[str, Any]

    @property
    def short(self) -> float:
        """The smaller side as a share of the larger: how many matrices the Gram matrix of the smaller side is."""
        return min(self.rows, self.columns) / max(self.rows, self.columns)

    @property
    def factored(self) -> int | None:
        """The ranks of all models together; None where one comes whole."""
        known = [r for r in self.ranks if r is not None]
        return sum(known) if len(known) == len(self.ranks) else None

    @property
    def thin(self) -> float:
        """How many matrices the factors of all models are; 0 where one comes whole."""
        return (self.factored or 0) * (self.rows + self.columns) / (self.rows * self.columns)

    def whole(self) -> tuple[int, ...]:
        """Return 1 for each model that comes whole, 0 for the others: the loads where factors are taken instead."""
        return tuple(int(r is None) for r in self.ranks)


@dataclass(frozen=True)
class Need:
    """What a method makes of these matrices, so that a plan can tell what it reads and holds.

    Attributes:
        held: How many matrices of that size, in float64, it holds at most beside base, one model's matrix and the result.
        loads: How often it loads each model's matrix.
        factors: How often it asks for each model's factors.
        reduced: Whether it looks at the statistics of the tensor.
    """

    held: float
    loads: tuple[int, ...]
    factors: int = 0
    reduced: bool = True


class Matrices(Sequence[Array]):
    """Matrices of one shape, each loaded anew whenever it is asked for; so hold few at a time.

    Attributes:
        shape: (rows, columns) of each.
    """

    def __init__(
        self,
        count: int,
        shape: tuple[int, int],
        load: Callable[[int], Array],
        factors: Callable[[int], tuple[Array, Array] | None] = lambda t: None,
    ) -> None:
        self.shape = shape
        self._count = count
        self._load = load
        self._factors = factors

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...
    def __getitem__(self, index: int | slice) -> Array:
        if isinstance(index, slice):
            return [self._load(t) for t in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._load(index % self._count)

    def factors(self, index: int) -> tuple[Array, Array] | None:
        """Return left (rows, rank) and right (rank, columns) whose product is the matrix; None where it has no such form.

        A task vector has one where the model is an adapter on just this base tensor; rank 0 where it leaves it as it is.
        """
        return self._factors(index)
