"""The contract of a localizer: declared and streamed like a merge method, but it gives one mask per task.

A localizer is a function of `(base, task_vectors)`, of `(statistics,)` or of `(finetuned,)`, named so, plus keyword parameters
and `tile`; it returns masks (T, n), bool, True = selected. Reductions, scope and reach are those of `weightsmith.method`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from weightsmith.arguments import check_all
from weightsmith.errors import ArgumentError, MismatchError
from weightsmith.matrices import Matrices, as_matrix
from weightsmith.method import Method, Statistics, Tile
from weightsmith.tensor.arrays import Array


class Localizer(Method):
    """A method whose result is one mask per task; call it on whole tensors."""

    @property
    def __doc__(self) -> str:  # type: ignore[override]  # so that help() and doctest see it
        """The function's docstring."""
        return inspect.getdoc(self.function) or ""

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The tensors the function takes, by name, in order."""
        names = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in names if p.kind is p.POSITIONAL_OR_KEYWORD)

    def checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters, checked; raise ArgumentError for a bad one."""
        return check_all(self.parameters, given, f"localize {self.name}")

    def __call__(self, *tensors: Any, tile: Tile | None = None, **parameters: Any) -> list[Array]:
        """Run on whole tensors in memory: (base, others) or (others,), others a sequence of tensors.

        Returns:
            One mask per tensor of `others`, of its shape, bool.
        """
        caller = f"localize {self.name}"
        if len(tensors) != len(self.inputs):
            raise ArgumentError(f"{caller}: tensors", expected=", ".join(self.inputs), got=str(len(tensors)))
        checked = self.checked(parameters)
        base, others = (tensors[0], tensors[1]) if self.has_base else (None, tensors[0])
        arrays = [np.asarray(x) for x in others]
        shape = arrays[0].shape
        for i, x in enumerate(arrays):
            if x.shape != shape or (base is not None and np.shape(base) != shape):
                raise MismatchError(f"{caller}: tensor {i}", expected=f"shape {shape}", got=f"{x.shape}")
        flat = np.stack([x.reshape(-1).astype(np.result_type(x, np.float32), copy=False) for x in arrays])
        first = None if base is None else np.asarray(base, flat.dtype).reshape(-1)
        where = replace(tile or Tile(), shape=shape, start=0, position=0)
        if not flat.shape[1]:
            return [np.zeros(shape, bool) for _ in arrays]
        return [mask.reshape(shape) for mask in self.whole(first, flat, checked, where)]

    def apply_matrix(self, base: Array, matrices: Matrices, parameters: Mapping[str, Any], tile: Tile) -> Array:
        """Run on one matrix (rows, columns): masks (T, rows * columns)."""
        inputs = (matrices,) if base is None else (base, matrices)
        rows, columns = as_matrix(tile.shape)
        return np.stack([m.reshape(rows * columns) for m in self.function(*inputs, tile=tile, **parameters)])


def localizer(
    *,
    prepare: Callable[..., Statistics | None] | None = None,
    scope: str = "tensor",
    reach: str = "elementwise",
    vectors: Callable[..., Array] | None = None,
    matrices: float = 0,
) -> Callable[[Callable[..., Array]], Localizer]:
    """Declare a localizer: see the attributes of `weightsmith.method.Method`."""

    def declare(function: Callable[..., Array]) -> Localizer:
        return Localizer(function, prepare, scope, 1, None, reach, vectors, matrices)

    return declare
