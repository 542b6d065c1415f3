"""What was measured of one tensor, or of several together, and the figures that follow from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsmith.checkpoint.names import kind_of, layer_of, precedes_layers, stack_of
from weightsmith.method import exact_sums
from weightsmith.tensor.gram import cosines, symmetric

Whole = np.ndarray[Any, np.dtype[np.int64]]
Real = np.ndarray[Any, np.dtype[np.float64]]
SIGNS = ("moved", "conflicts", "both", "opposed")


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor, or several taken together: a layer, a kind, both, the model.

    Attributes:
        name: The tensor's name, or a label such as "layer 3" or "mlp".
        layer: The layer; None outside the layers and where there are several.
        kind: The kind; None where there are several.
        shape: The shape, for one tensor; else None.
        tensors: How many tensors.
        elements: How many entries.
        agreement: Entries that exactly n masks select, (T + 1,).
        selected: Entries that each mask selects, (T,).
        unchanged: Entries of each model that equal the base's, (T,).
        shared: Entries that both masks of each pair select, (T (T - 1) / 2,), pairs (0, 1), (0, 2), ..., (1, 2), ...
        signs: Entries where two vectors or more are not 0; where signs differ; over all pairs, where both are not 0, and where
            their signs differ, (4,).
        trimmed: The same of the trimmed task vectors; None where nothing was trimmed.
        gram: Inner products of base, merged vector and the T task vectors, (T + 2, T + 2), float64.
        residuals: Sums of squares of merged - tau_t and of m_t * merged - tau_t, (2, T), float64.
    """

    name: str
    layer: int | None
    kind: str | None
    shape: tuple[int, ...] | None
    tensors: int
    elements: int
    agreement: Whole
    selected: Whole
    unchanged: Whole
    shared: Whole
    signs: Whole
    trimmed: Whole | None
    gram: Real
    residuals: Real

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(self.selected)

    @property
    def density(self) -> Real:
        """Share of the entries that each mask selects, (T,)."""
        return self.selected / max(self.elements, 1)

    @property
    def norms(self) -> Real:
        """Lengths of the task vectors, (T,)."""
        found: Real = np.sqrt(np.diagonal(self.gram)[2:])
        return found

    @property
    def cosine(self) -> Real:
        """Cosines between task vectors, (T, T); 0 beside one of length 0."""
        found: Real = cosines(self.gram[2:, 2:])
        return found

    @property
    def jaccard(self) -> Real:
        """Entries that both masks select over entries that either does, (T, T); 1 for two empty masks."""
        either = self.selected[:, None] + self.selected - self._both
        found: Real = np.divide(self._both, either, out=np.ones(either.shape), where=either > 0)
        return found

    @property
    def overlap(self) -> Real:
        """Entries that both masks select over those of the smaller, (T, T); 1 where that is empty."""
        smaller = np.minimum(self.selected[:, None], self.selected)
        found: Real = np.divide(self._both, smaller, out=np.ones(smaller.shape), where=smaller > 0)
        return found

    @property
    def chance(self) -> Real:
        """The Jaccard index of independent masks of these densities, (T, T); 1 on the diagonal."""
        a, b = self.density[:, None], self.density
        either = a + b - a * b
        found: Real = np.divide(a * b, either, out=np.ones(either.shape), where=either > 0)
        np.fill_diagonal(found, 1.0)
        return found

    @property
    def _both(self) -> Whole:
        found: Whole = pairwise(self.shared, self.selected)
        return found

    def summary(self) -> dict[str, Any]:
        """Return the figures as plain data; None where there is no number."""
        length, base, merged = self.norms, math.sqrt(self.gram[0, 0]), math.sqrt(self.gram[1, 1])
        distance, erased = (_shares(np.sqrt(squares), length) for squares in self.residuals)
        recovered = [None if d is None or e is None else d - e for d, e in zip(distance, erased, strict=True)]
        whole = max(self.elements, 1)
        with_merged = cosines(self.gram[1:, 1:])[0, 1:]
        return {
            "name": self.name,
            "layer": self.layer,
            "kind": self.kind,
            "shape": None if self.shape is None else list(self.shape),
            "tensors": self.tensors,
            "elements": self.elements,
            "agreement": self.agreement.tolist(),
            "catastrophic": int(self.agreement[0]) / whole,
            "selfish": int(self.agreement[1]) / whole,
            "general": int(self.agreement[2:].sum()) / whole,
            "density": self.density.tolist(),
            "jaccard_mean": mean_of_pairs(self.jaccard),
            "chance_mean": mean_of_pairs(self.chance),
            "norm": length.tolist(),
            "norm_base": base,
            "norm_merged": merged,
            "drift": _shares(length, np.full(len(length), base)),
            "unchanged": (self.unchanged / whole).tolist(),
            "cosine_mean": mean_of_pairs(self.cosine),
            "cosine_merged": with_merged.tolist(),
            "conflict": conflict(self.signs, whole),
            "conflict_trimmed": None if self.trimmed is None else conflict(self.trimmed, whole),
            "distance": distance,
            "erased": erased,
            "recovered": recovered,
        }


def pairwise(values: Any, diagonal: Any) -> Any:
    """Return a symmetric matrix (T, T) from its pairs above the diagonal, row by row, and its diagonal."""
    count = len(diagonal)
    found = np.zeros((count, count), np.asarray(values).dtype)
    found[np.triu_indices(count, 1)] = values
    found += found.T
    np.fill_diagonal(found, diagonal)
    return found


def mean_of_pairs(matrix: Real) -> float | None:
    """Return the mean of what is above the diagonal, (T, T); None for one task."""
    above = matrix[np.triu_indices(len(matrix), 1)]
    return math.fsum(above.tolist()) / len(above) if len(above) else None


def conflict(signs: Whole, elements: int) -> dict[str, float | None]:
    """Return how often signs differ: of all entries, of those that two tasks moved, and pair by pair."""
    moved, conflicts, both, opposed = map(int, signs)
    return {
        "any": conflicts / elements,
        "conditional": conflicts / moved if moved else None,
        "pairwise": opposed / both if both else None,
    }


def _shares(values: Real, wholes: Real) -> list[float | None]:
    pairs = zip(values.tolist(), wholes.tolist(), strict=True)
    return [v / w if w > 0 else 0.0 if v == 0 else None for v, w in pairs]


def measured(
    name: str,
    shape: tuple[int, ...],
    elements: int,
    counts: Sequence[Whole],
    sums: Real,
) -> Part:
    """Return one tensor's part from its counts, in the order of the attributes of Part, and its sums."""
    tasks = len(counts[1])
    size = (tasks + 2) * (tasks + 3) // 2
    agreement, selected, unchanged, shared, signs, *trimmed = counts
    return Part(
        name,
        layer_of(name),
        kind_of(name),
        shape,
        1,
        elements,
        agreement,
        selected,
        unchanged,
        shared,
        signs,
        trimmed[0] if trimmed else None,
        symmetric(sums[:size]),
        sums[size:].reshape(2, tasks),
    )


def together(name: str, parts: Sequence[Part], layer: int | None = None, kind: str | None = None) -> Part:
    """Return several parts, at least one, as one; its counts and sums are exact sums of theirs."""

    def summed(key: str) -> Any:
        found = [getattr(p, key) for p in parts]
        if found[0].dtype.kind == "i":
            return np.sum(found, axis=0)
        return exact_sums([np.stack(found).reshape(len(found), -1)]).reshape(found[0].shape)

    return Part(
        name,
        layer,
        kind,
        None,
        sum(p.tensors for p in parts),
        sum(p.elements for p in parts),
        summed("agreement"),
        summed("selected"),
        summed("unchanged"),
        summed("shared"),
        summed("signs"),
        None if parts[0].trimmed is None else summed("trimmed"),
        summed("gram"),
        summed("residuals"),
    )


def by_layer(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Return one part per layer, in order of depth; what lies outside the layers goes by kind."""
    groups = _groups(parts, lambda p: (place_of(p.name)[:3], "" if p.layer is not None else p.kind))
    labels = _labels(groups)
    return tuple(together(label, found, found[0].layer) for label, found in zip(labels, groups, strict=True))


def by_kind(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Return one part per kind, in alphabetical order."""
    return tuple(together(str(f[0].kind), f, kind=f[0].kind) for f in _groups(parts, lambda p: (p.kind,)))


def by_cell(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Return one part per layer and kind, in order of depth."""
    groups = _groups(parts, lambda p: place_of(p.name))
    return tuple(together(n, f, f[0].layer, f[0].kind) for n, f in zip(_labels(groups), groups, strict=True))


def place_of(name: str) -> tuple[int, str, int, str]:
    """Return what tensors are sorted by: before, in or after the layers; the stack, the layer, the kind."""
    layer, kind = layer_of(name), kind_of(name)
    if layer is None:
        return 0 if precedes_layers(name) else 2, "", 0, kind
    return 1, stack_of(name), layer, kind


def _groups(parts: Iterable[Part], key: Any) -> list[list[Part]]:
    found: dict[Any, list[Part]] = {}
    for part in parts:
        found.setdefault(key(part), []).append(part)
    return [found[k] for k in sorted(found)]


def _labels(groups: Sequence[Sequence[Part]]) -> list[str]:
    """Return what each group is called, by its first part: the stack is told where there are several."""
    stacks = [stack_of(found[0].name) for found in groups]
    several = len({*stacks} - {""}) > 1
    return [
        str(found[0].kind)
        if found[0].layer is None
        else f"{stack.rstrip('.') if several else 'layer'} {found[0].layer}"
        for stack, found in zip(stacks, groups, strict=True)
    ]
