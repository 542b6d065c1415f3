"""The contract of a method: reductions, then one pass over tiles.

A method is a function of tensors: `(base, task_vectors)`, `(base, finetuned)` or `(finetuned,)`, named so, plus
keyword parameters annotated with a kind from `arguments.py`, plus `tile`. Inputs arrive flat: base (n,) and the others
stacked (T, n), all in one dtype, float32 (float64 if any input is float64); the result is (n,) of that dtype. The caller
casts to the stored dtype once. What a method has to know of the whole tensor or model it asks for in `prepare`,
a generator that yields reductions and returns what the function then finds in `tile.statistics`:

    def _prepare(*, density):
        (kth,) = yield KthMagnitude(lambda size: [max(1, round(density * size))])
        return kth

    @method(prepare=_prepare, scope="tensor")
    def trimmed(base, task_vectors, *, density: Proportion = 0.2, tile): ...

`scope` says over what a reduction runs: the whole "model", each "tensor", each "row" (the last axis), or "parameter",
where the user chooses by a parameter of that name. `reach` says what the function has to see at once: any run of
elements ("elementwise"), whole rows ("row"), or whole tensors as matrices ("matrix": base (rows, columns), the others a
`Matrices` of that shape; tensors without two axes go to the function `vectors`, element by element). The engine
streams; here, everything is in memory.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias, get_args, get_type_hints

import numpy as np

from weightsmith.arguments import Parameter, Reals, check_all
from weightsmith.errors import ArgumentError, MismatchError, NonFiniteError
from weightsmith.matrices import Given, Matrices, Need, as_matrix
from weightsmith.tensor.arrays import Array, cast, is_torch, namespace
from weightsmith.tensor.coding import to_odd
from weightsmith.tensor.select import Kth, kth_largest, kth_magnitude, trim
from weightsmith.tensor.sign import majority

DISTINCT_INPUTS = ("base", "task_vectors", "finetuned")


@dataclass(frozen=True)
class KthMagnitude:
    """Asks for the k-th largest magnitudes of each task vector over the scope; answered by a list of Kth.

    `ranks` gives the k's, from the number of entries of the scope (of a row, a tensor, or all merged tensors).
    """

    ranks: Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class KthMajority:
    """Asks for the k-th largest magnitude of each task vector and for the majority of the vectors trimmed to their k largest.

    `rank` gives k, at least 1, from the number of entries of the scope. Answered by a Kth and a whole number: how many
    entries have a positive sum of the trimmed vectors, minus how many a negative, see `tensor.sign.majority`.
    """

    rank: Callable[[int], int]


@dataclass(frozen=True)
class KthLargest:
    """Asks for the k-th largest of derived values, sign and all; answered by a list of Kth with V vectors.

    `ranks` as for KthMagnitude: 1 asks for the maximum, `size` for the minimum; with `nonzero` it is given, in place of the
    number of entries, how many of the one vector's values are not 0. `of(base, others, tile)` gets a tile, for
    methods of reach "row" of whole rows, and returns values (V, n), float32 or float64, one per element of the tile.
    -0 counts as 0; values must not be NaN. Among equals the earlier comes first, see `tensor.select.is_above`; where
    `located` is False only values are asked for, and the cuts in the answer mean nothing.
    """

    ranks: Callable[[int], Sequence[int]]
    of: Callable[[Array, Array, Tile], Array]
    located: bool = True
    nonzero: bool = False


@dataclass(frozen=True)
class Sums:
    """Asks for sums over the scope; answered by an array (k,) float64.

    `of(base, others, tile)` gets a tile and returns block sums (blocks, k), float64, see `tensor.vector.columns`. The
    engine adds them exactly (math.fsum), so the answer does not depend on tiles or threads.
    """

    of: Callable[[Array, Array, Tile], Array]


Reduction: TypeAlias = KthMagnitude | KthMajority | KthLargest | Sums
Statistics: TypeAlias = Generator[Reduction, Any, Any]


@dataclass(frozen=True)
class Tile:
    """Which part of which tensor a method is given.

    Attributes:
        name: The tensor's name.
        shape: The whole tensor's shape.
        start: Flat index, in the tensor, of the first element given.
        position: The same index in the scope of the statistics; 0 for rows, which are given whole.
        layer: The tensor's layer, from 0; None outside the layers.
        layers: How many layers the model has.
        statistics: What `prepare` returned, for the scope this tile belongs to.
        precision: To what each step of the formula is rounded, see `tensor.rounding`; "float32" adds no rounding.
    """

    name: str = "tensor"
    shape: tuple[int, ...] = ()
    start: int = 0
    position: int = 0
    layer: int | None = None
    layers: int = 0
    statistics: Any = None
    precision: str = "float32"

    @property
    def row_length(self) -> int:
        """Length of a row: the last axis; 1 for a scalar."""
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True)
class Method:
    """A merge method: call it on whole tensors, or let the engine feed it tiles through `function`.

    Attributes:
        function: What computes the result.
        prepare: The generator of reductions; None for none.
        scope: Over what they run.
        least: Fewest models beside the base.
        most: Most models beside the base; None for any number.
        reach: "elementwise", "row" or "matrix".
        vectors: With reach "matrix": what computes tensors of less than two axes, element by element.
        matrices: With reach "matrix": a function that tells what it needs, or how many matrices of the tensor's size, in
            float64, it holds beside its inputs where it loads each model's once.
    """

    function: Callable[..., Array]
    prepare: Callable[..., Statistics | None] | None
    scope: str
    least: int
    most: int | None
    reach: str = "elementwise"
    vectors: Callable[..., Array] | None = None
    matrices: float | Callable[[Given], Need] = 0

    @property
    def name(self) -> str:
        """The function's name, which is also the file's and the command's."""
        return self.function.__name__

    @property
    def __doc__(self) -> str:  # type: ignore[override]  # so that help() and doctest see it
        """The function's docstring."""
        return inspect.getdoc(self.function) or ""

    @cached_property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.__doc__.partition("\n")[0]

    @cached_property
    def source(self) -> str:
        """The paper, from the first line of the method's module."""
        module = inspect.getmodule(self.function)
        return ((module and module.__doc__) or "").partition("\n")[0]

    @cached_property
    def example(self) -> str:
        """The command line that the docstring gives after `Command:`."""
        found = re.search(r"Command:\s*\n\s+(weightsmith .+)", self.__doc__)
        return found.group(1).strip() if found else ""

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The tensors the function takes, by name, in order."""
        names = inspect.signature(self.function).parameters
        return tuple(n for n in names if n in DISTINCT_INPUTS)

    @property
    def has_base(self) -> bool:
        """Whether the method edits a base; otherwise the first model lends names, dtypes and files."""
        return "base" in self.inputs

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """The keyword parameters with kind, default and help, read from signature and docstring."""
        hints = get_type_hints(self.function, include_extras=True)
        found = {}
        for name, p in inspect.signature(self.function).parameters.items():
            if p.kind is p.KEYWORD_ONLY and name != "tile":
                found[name] = Parameter(name, get_args(hints[name])[1], p.default, _help(self.__doc__, name))
        return found

    @cached_property
    def prepared_by(self) -> frozenset[str]:
        """The parameters that the reductions depend on: one value for the whole scope."""
        return frozenset(inspect.signature(self.prepare).parameters) if self.prepare else frozenset()

    def reduction_scope(self, parameters: Mapping[str, Any]) -> str | None:
        """Return "model", "tensor" or "row"; None where these parameters need no reduction."""
        if self.prepare is None or self.statistics(parameters) is None:
            return None
        return str(parameters["scope"]) if self.scope == "parameter" else self.scope

    def takes_rows(self, parameters: Mapping[str, Any]) -> bool:
        """Tell whether tiles must be whole rows."""
        return self.reach == "row" or self.reduction_scope(parameters) == "row"

    def takes_matrix(self, shape: Sequence[int]) -> bool:
        """Tell whether a tensor of this shape is given whole, as a matrix."""
        return self.reach == "matrix" and len(shape) > 1

    def need(self, given: Given) -> Need:
        """Return what the function makes of a tensor's matrices."""
        return self.matrices(given) if callable(self.matrices) else Need(self.matrices, (1,) * len(given.ranks))

    def statistics(self, parameters: Mapping[str, Any]) -> Statistics | None:
        """Return a fresh generator of reductions; None where these parameters need none."""
        if self.prepare is None:
            return None
        return self.prepare(**{n: parameters[n] for n in self.prepared_by})

    def check(self, given: Mapping[str, Any], models: int, spelled: Callable[[str], str] = str) -> dict[str, Any]:
        """Return all parameters, checked; raise ArgumentError for a bad one or a wrong number of models.

        `spelled` is what messages call a parameter.
        """
        caller = f"merge {self.name}"
        if models < self.least or (self.most is not None and models > self.most):
            most = "or more" if self.most is None else f"to {self.most}" if self.most != self.least else ""
            wanted = f"{self.least} {most}".strip() + (" models beside the base" if self.has_base else " models")
            raise ArgumentError(f"{caller}: number of models", expected=wanted, got=str(models))
        checked = check_all(self.parameters, given, caller, spelled)
        for name, parameter in self.parameters.items():
            if isinstance(parameter.kind, Reals) and checked[name] is not None and len(checked[name]) != models:
                got = str(len(checked[name]))
                raise ArgumentError(f"{caller}: {spelled(name)}", expected=f"{models}, one per model", got=got)
        if "task" in checked and checked["task"] > models:
            raise ArgumentError(f"{caller}: {spelled('task')}", expected=f"1 to {models}", got=str(checked["task"]))
        return checked

    def __call__(self, *tensors: Any, tile: Tile | None = None, **parameters: Any) -> Array:
        """Run on whole tensors in memory: (base, others) or (others,), others a sequence of tensors.

        Shapes must agree; the result has the shape and dtype of the first. `tile` may name the tensor and its layer.
        """
        caller = f"merge {self.name}"
        if len(tensors) != len(self.inputs):
            raise ArgumentError(f"{caller}: tensors", expected=", ".join(self.inputs), got=str(len(tensors)))
        base, others = (tensors[0], tensors[1]) if self.has_base else (None, tensors[0])
        checked = self.check(parameters, len(others))
        first = base if base is not None else others[0]
        for i, other in enumerate(others, 1):
            if tuple(other.shape) != tuple(first.shape):
                raise MismatchError(
                    f"{caller}: model {i}",
                    expected=f"shape {tuple(first.shape)}",
                    got=f"{tuple(other.shape)}",
                )
        for i, x in enumerate([first, *others]):
            if "float" not in str(x.dtype):
                raise MismatchError(f"{caller}: tensor {i}", expected="floating-point numbers", got=str(x.dtype))
        work = _compute_dtype([first, *others])
        flat = [cast(x, work).reshape(-1) for x in ([first, *others] if base is not None else others)]
        for i, x in enumerate(flat):
            if not bool(namespace(x).isfinite(x).all()):
                raise NonFiniteError(f"{caller}: input {i} holds NaN or infinity")
        stack = namespace(first).stack(flat[1:] if base is not None else flat)
        where = replace(tile or Tile(), shape=tuple(first.shape), start=0, position=0)
        result = self.whole(flat[0] if base is not None else None, stack, checked, where)
        return _restore(result.reshape(tuple(first.shape)), first)

    def whole(self, base: Array, others: Array, parameters: Mapping[str, Any], tile: Tile) -> Array:
        """Run on one scope in memory: whole tensors, or whole rows of one. Flat inputs, flat result."""
        if (base is not None and base.shape[0] == 0) or others.shape[1] == 0:
            return others[0] if base is None else base
        scope = self.reduction_scope(parameters)
        if scope is not None:
            units = others.shape[1] // tile.row_length if scope == "row" else 1
            found = reduce_in_memory(self.statistics(parameters), base, others, tile, units)
            tile = replace(tile, statistics=found, position=0)
        return self.apply(base, others, parameters, tile)

    def apply(self, base: Array, others: Array, parameters: Mapping[str, Any], tile: Tile) -> Array:
        """Run the elementwise pass on one tile whose statistics are known."""
        if self.takes_matrix(tile.shape):
            shape = as_matrix(tile.shape)
            matrices = Matrices(len(others), shape, lambda t: others[t].reshape(shape))
            return self.apply_matrix(None if base is None else base.reshape(shape), matrices, parameters, tile)
        inputs = (others,) if base is None else (base, others)
        function = self.vectors if self.vectors is not None else self.function
        return function(*inputs, tile=tile, **parameters)

    def apply_matrix(self, base: Array, matrices: Matrices, parameters: Mapping[str, Any], tile: Tile) -> Array:
        """Run on one matrix (rows, columns) whose statistics are known; flat result."""
        inputs = (matrices,) if base is None else (base, matrices)
        return self.function(*inputs, tile=tile, **parameters).reshape(-1)


def answer_all(statistics: Statistics | None, answer: Callable[[Reduction], Any]) -> Any:
    """Run a generator of reductions, each answered by `answer`; return what it returns, None for no generator."""
    given: Any = None
    try:
        while statistics is not None:
            given = answer(statistics.send(given))
    except StopIteration as done:
        return done.value


def reduce_in_memory(statistics: Statistics | None, base: Array, others: Array, tile: Tile, units: int = 1) -> Any:
    """Answer a generator's reductions over tensors held in memory; return what it returns."""

    def answer(asked: Reduction) -> Any:
        if isinstance(asked, KthMagnitude):
            return kth_magnitude(others, asked.ranks(others.shape[1] // units), units)
        if isinstance(asked, KthMajority):
            (kth,) = kth_magnitude(others, [asked.rank(others.shape[1] // units)], units)
            return kth, majority(trim(others, kth))
        if isinstance(asked, KthLargest):
            values = asked.of(base, others, tile)
            size = int((values != 0).sum()) if asked.nonzero else others.shape[1] // units
            return kth_largest(values, asked.ranks(size), units)
        return exact_sums([asked.of(base, others, tile)])

    return answer_all(statistics, answer)


def exact_sums(parts: Sequence[Array]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Add block sums (blocks, k) exactly, whatever their order: (k,), float64."""
    return np.array([math.fsum(column) for column in np.concatenate(list(parts)).T])


def method(
    *,
    prepare: Callable[..., Statistics | None] | None = None,
    scope: str = "tensor",
    least: int = 1,
    most: int | None = None,
    reach: str = "elementwise",
    vectors: Callable[..., Array] | None = None,
    matrices: float | Callable[[Given], Need] = 0,
) -> Callable[[Callable[..., Array]], Method]:
    """Declare a method: see the attributes of `Method`."""

    def declare(function: Callable[..., Array]) -> Method:
        return Method(function, prepare, scope, least, most, reach, vectors, matrices)

    return declare


def _help(doc: str, name: str) -> str:
    found = re.search(rf"^\s+{name}: (.+?)(?=^\s+\w+: |^\S|\n\n|\Z)", doc, re.S | re.M)
    return " ".join(found.group(1).split()) if found else ""


def _compute_dtype(tensors: Sequence[Array]) -> str:
    return "float64" if any(str(t.dtype).endswith("float64") for t in tensors) else "float32"


def _restore(result: Array, first: Array) -> Array:
    """Round the result to the dtype of the first input, once, into memory of its own."""
    if is_torch(first):
        if str(first.dtype).endswith("bfloat16") and str(result.dtype).endswith("float64"):
            narrow = to_odd(result.cpu().numpy())
            result = namespace(first).from_numpy(narrow).to(first.device)
        stored = result.to(first.dtype, copy=True)
    else:
        with np.errstate(over="ignore"):
            stored = result.astype(first.dtype)
    if not bool(namespace(stored).isfinite(stored).all()):
        raise NonFiniteError("the result does not fit its dtype", expected=str(first.dtype), got="infinity")
    return stored


__all__ = [
    "Given",
    "Kth",
    "KthLargest",
    "KthMagnitude",
    "KthMajority",
    "Matrices",
    "Method",
    "Need",
    "Reduction",
    "Statistics",
    "Sums",
    "Tile",
    "method",
    "reduce_in_memory",
]
