"""Whole tensors as matrices, for the methods that have to see them so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import overload

from weightsmith.tensor.arrays import Array


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Return the shape (rows, columns) as which a tensor of two or more axes is seen: all but the first are columns."""
    return shape[0], math.prod(shape[1:])


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
