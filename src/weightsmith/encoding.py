"""The contract of an encoding: what a bundle stores of one task, and of what all tasks share.

A tensor of a task is rebuilt as base + term_1 + term_2 + ..., added in float32 and rounded once to its stored dtype. An
encoding says what one task adds: a function of one task vector, plus keyword parameters annotated with a kind from
`arguments.py`, plus `tile`. It returns a `Part`, arrays in the form that it names (see `checkpoint/packed.py`):

    @encoding(form="ternary", prepare=_prepare, scope="model")
    def compeft(task_vector, *, density: Proportion = 0.2, tile) -> Part: ...

What must be known of the whole tensor or model is asked for in `prepare`, a generator of reductions as in `method.py`; they
are answered over one task alone: `others` there has one row, the task vector.

An encoding may pack relative to something that all tasks share. Then it takes `shared` after the task vector, and `others`
in reductions has a second row, the shared vector as it is stored. The shared part is made first, from all tasks together,
and stays as it is when a task is added or removed: so every task is packed alone, by the same function, at any time.

`reach` says what the function sees: "elementwise", a run of elements (n,), of which it gives the same arrays wherever runs
end; or "matrix", a whole tensor of two or more axes as (rows, columns), of which the arrays are stored as they are. What an
encoding does not take (`takes`) is stored without loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from weightsmith.arguments import Parameter, Reals, check_all
from weightsmith.errors import ArgumentError
from weightsmith.matrices import Matrices
from weightsmith.method import KthLargest, KthMagnitude, Method, Reduction, Statistics, Sums, Tile
from weightsmith.tensor.arrays import Array, namespace

PACKED_DTYPES = ("BF16", "F16", "F32")  # what encodings take; other tensors are stored without loss


@dataclass(frozen=True)
class Part:
    """What one task stores of a tensor, or of a run of its elements.

    Attributes:
        arrays: By the names of the form's pieces: for "mask" {"mask": bool (n,)}; "ternary" and "sign" {"signs": int8 (n,)};
            "sparse" {"mask": bool (n,), "values": float32 (n,)}; "low_rank" {"left": (rows, r), "right": (r, columns)}.
        settings: Numbers of the whole tensor, such as {"scale": 0.01}; the same from every run of it. Of reach "matrix" the
            dtype in which float32 arrays are stored is "dtype".
        form: In place of the encoding's; of reach "matrix" alone.
    """

    arrays: Mapping[str, Array]
    settings: Mapping[str, Any] = field(default_factory=dict)
    form: str | None = None


@dataclass(frozen=True)
class Encoding:
    """A way to store tasks; call it on a whole task vector, or let the engine feed it runs through `encode`.

    Attributes:
        function: What makes a `Part` of a task vector.
        form: In which form the part's arrays are stored, a name that `checkpoint/packed.py` knows.
        share: What all tasks share: a method that computes the shared vector (n,), to which base is not added.
        gather: Or: other shared arrays of one tensor, from the task vectors as `Matrices`.
        adds_shared: Whether the shared vector is a term by itself, in form "dense", before the task's own.
        prepare: The generator of reductions over one task; None for none.
        scope: Over what they run: "model", "tensor", or "parameter" where a parameter of that name says.
        reach: "elementwise" or "matrix".
        takes: Tells by name and shape whether a tensor is encoded; tensors without two axes never reach "matrix".
        formula: Bits of all tasks by the method's card: of (merged, frozen, tasks, bits of a stored number, parameters), among
            the parameters "vector_bits", of a number of a vector that all share.
    """

    function: Callable[..., Part]
    form: str
    share: Method | None = None
    gather: Callable[..., Mapping[str, Array]] | None = None
    adds_shared: bool = False
    prepare: Callable[..., Statistics | None] | None = None
    scope: str = "tensor"
    reach: str = "elementwise"
    takes: Callable[[str, Sequence[int]], bool] = lambda name, shape: True
    formula: Callable[[int, int, int, int, Mapping[str, Any]], float] | None = None

    @cached_property
    def packing(self) -> Method:
        """The method whose reductions the engine answers over one task: base, task, and the shared vector where there is one."""

        def one(base: Array, task_vectors: Array, *, tile: Tile) -> Array:
            raise ArgumentError(f"pack {self.name} gives parts, not a tensor")

        def two(base: Array, finetuned: Array, *, tile: Tile) -> Array:
            raise ArgumentError(f"pack {self.name} gives parts, not a tensor")

        two_rows = self.has_vector
        asking = None if self.prepare is None else _Asking(self.prepare, two_rows)
        return _Packing(two if two_rows else one, asking, self.scope, 1, 2)

    @property
    def name(self) -> str:
        """The function's name, which is also the file's and the command's."""
        return self.function.__name__

    @property
    def __doc__(self) -> str:  # type: ignore[override]  # so that help() and doctest see it
        """The function's docstring."""
        return inspect.getdoc(self.function) or ""

    @cached_property
    def _own(self) -> Method:
        """The function seen as a method, for its parameters and texts."""
        return Method(self.function, self.prepare, self.scope, 1, None)

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self._own.summary

    @property
    def source(self) -> str:
        """The paper, from the first line of the encoding's module."""
        return self._own.source

    @property
    def example(self) -> str:
        """The command line that the docstring gives after `Command:`."""
        return self._own.example

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """The keyword parameters: the function's own, then those of the shared part."""
        shared = self.share.parameters if self.share is not None else {}
        gathered = Method(self.gather, None, "tensor", 1, None).parameters if self.gather is not None else {}
        return {**self._own.parameters, **shared, **gathered}

    @property
    def has_shared(self) -> bool:
        """Whether tasks are packed relative to something that all share."""
        return self.share is not None or self.gather is not None

    @property
    def has_vector(self) -> bool:
        """Whether what they share is one vector."""
        return self.share is not None

    def is_taken(self, name: str, shape: Sequence[int], dtype: str) -> bool:
        """Tell whether a tensor is encoded; the others are stored without loss."""
        whole = self.reach != "matrix" or len(shape) > 1
        return dtype in PACKED_DTYPES and whole and 0 not in shape and self.takes(name, shape)

    def check(self, given: Mapping[str, Any], tasks: int) -> dict[str, Any]:
        """Return all parameters, checked; raise ArgumentError for a bad one, or one that is not one per task where it must be."""
        caller = f"pack {self.name}"
        checked = check_all(self.parameters, given, caller)
        if "tasks" in checked and checked["tasks"] is None:
            checked["tasks"] = tasks
        for name, value in checked.items():
            if isinstance(self.parameters[name].kind, Reals) and value is not None and len(value) not in (1, tasks):
                raise ArgumentError(f"{caller}: {name}", expected=f"1 or {tasks}, one per task", got=str(len(value)))
        return checked

    def of_task(self, parameters: Mapping[str, Any], task: int) -> dict[str, Any]:
        """Return the parameters of one task, from 0: of those that are one per task, a tuple of its own alone."""
        return {
            n: v if v is None or not isinstance(self.parameters[n].kind, Reals) else (v[task % len(v)],)
            for n, v in parameters.items()
        }

    def encode(
        self, task_vector: Array, shared: Any, parameters: Mapping[str, Any], tile: Tile, base: Array | None = None
    ) -> Part:
        """Return the part of one task for a run of elements (n,), or for a matrix (rows, columns).

        Args:
            task_vector: finetuned - base, float32.
            shared: The shared vector of the same shape, or the mapping that `gather` gave; None where nothing is shared.
            parameters: One task's, see `of_task`.
            tile: Which part of which tensor, and what `prepare` returned.
            base: The base's values, for functions that take them.
        """
        names = inspect.signature(self.function).parameters
        own = {n: v for n, v in parameters.items() if n in names}
        given = {"shared": shared} if "shared" in names else {}
        given |= {"base": base} if "base" in names else {}
        return self.function(task_vector, **given, **own, tile=tile)

    def shared_arrays(self, matrices: Matrices, parameters: Mapping[str, Any]) -> Mapping[str, Array]:
        """Return what all tasks share of one tensor, in float32, where that is not one vector."""
        if self.gather is None:
            raise ArgumentError(f"pack {self.name} shares no arrays")
        names = inspect.signature(self.gather).parameters
        return self.gather(matrices, **{n: v for n, v in parameters.items() if n in names})

    def __call__(self, task_vector: Array, shared: Any = None, **parameters: Any) -> Part:
        """Run on a whole task vector in memory, reductions and all."""
        from weightsmith.method import reduce_in_memory

        checked = self.of_task(self.check(parameters, 1), 0)
        tile = Tile(shape=tuple(task_vector.shape))
        if self.prepare is not None:
            xp = namespace(task_vector)
            flat = [task_vector.reshape(-1)] + ([shared.reshape(-1)] if self.has_vector else [])
            names = inspect.signature(self.prepare).parameters
            asked = self.prepare(**{n: checked[n] for n in names})
            found = reduce_in_memory(asked, xp.zeros_like(flat[0]), xp.stack(flat), tile)
            tile = replace(tile, statistics=found)
        return self.encode(task_vector, shared, checked, tile)


class _Packing(Method):
    """A method that takes whatever parameters its encoding has."""

    @cached_property
    def prepared_by(self) -> frozenset[str]:
        """The parameters that the reductions depend on."""
        asking = self.prepare
        return frozenset(inspect.signature(asking.prepare).parameters) if isinstance(asking, _Asking) else frozenset()


@dataclass(frozen=True)
class _Asking:
    """Runs `prepare`; with a shared vector, the rows that reductions see become the task vector and the shared vector."""

    prepare: Callable[..., Statistics | None]
    two_rows: bool

    def __call__(self, **parameters: Any) -> Statistics | None:
        statistics = self.prepare(**parameters)
        return _translated(statistics) if self.two_rows and statistics is not None else statistics


def _translated(statistics: Statistics) -> Statistics:
    answer: Any = None
    try:
        while True:
            answer = yield _seen(statistics.send(answer))
    except StopIteration as done:
        return done.value


def _seen(asked: Reduction) -> Reduction:
    """Return a reduction over (base, [finetuned, shared]) from one over [task vector, shared]."""
    if not isinstance(asked, Sums | KthLargest):
        raise ArgumentError(
            "an encoding with a shared vector asks for Sums and KthLargest alone", got=type(asked).__name__
        )
    of = asked.of
    return replace(
        asked, of=lambda base, others, tile: of(base, namespace(others).stack([others[0] - base, others[1]]), tile)
    )


def encoding(
    *,
    form: str,
    share: Method | None = None,
    gather: Callable[..., Mapping[str, Array]] | None = None,
    adds_shared: bool = False,
    prepare: Callable[..., Statistics | None] | None = None,
    scope: str = "tensor",
    reach: str = "elementwise",
    takes: Callable[[str, Sequence[int]], bool] = lambda name, shape: True,
    formula: Callable[[int, int, int, int, Mapping[str, Any]], float] | None = None,
) -> Callable[[Callable[..., Part]], Encoding]:
    """Declare an encoding: see the attributes of `Encoding`."""

    def declare(function: Callable[..., Part]) -> Encoding:
        return Encoding(function, form, share, gather, adds_shared, prepare, scope, reach, takes, formula)

    return declare


__all__ = ["PACKED_DTYPES", "Encoding", "KthLargest", "KthMagnitude", "Part", "Statistics", "Sums", "Tile", "encoding"]
