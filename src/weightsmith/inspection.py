"""What is in a checkpoint: tensors by layer and kind, their sizes and norms, and how far they drifted from a base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.names import kind_of, layer_of
from weightsmith.checkpoint.read import check_unchanged, fingerprint, open_checkpoint
from weightsmith.distance import (
    Distance,
    Measured,
    add_distances,
    add_exactly,
    are_numbers,
    gather,
    make_distance,
    measure_pair,
    plain_number,
    reading_job,
    reporter,
    tensors_beside,
    tie_note,
)
from weightsmith.engine.stream import Stream, Work
from weightsmith.plan import Options
from weightsmith.run import Progress
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.vector import extent

_HIGHLIGHTS = (
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "num_experts", "num_local_experts", "vocab_size", "max_position_embeddings",
    "tie_word_embeddings", "dtype", "torch_dtype",
)  # fmt: skip
_KINDS_FIRST, _KINDS_LAST = ("embedding",), ("norm", "head")


@dataclass(frozen=True, slots=True)
class Extent:
    """How large the numbers of one tensor, or of several, are; NaN and infinity are only counted.

    Attributes:
        elements: Number of entries.
        zeros: Entries equal to 0.
        nonfinite: Entries that are NaN or infinite.
        max_magnitude: The largest magnitude.
        squares: Sum of squares, in float64.
    """

    elements: int = 0
    zeros: int = 0
    nonfinite: int = 0
    max_magnitude: float = 0.0
    squares: float = 0.0

    @property
    def norm(self) -> float:
        """Length of the entries as one vector."""
        return math.sqrt(self.squares)

    @property
    def zero_fraction(self) -> float:
        """Share of entries equal to 0; 0 where there is none."""
        return self.zeros / self.elements if self.elements else 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor, or several taken together: a kind, a layer, a model.

    Attributes:
        name: The tensor's name, or a label such as "layer 3" or "mlp".
        tensors: How many tensors.
        parameters: How many entries.
        nbytes: Bytes as stored.
        dtypes: Stored dtypes, sorted.
        shape: The shape, for one tensor; else None.
        extent: How large the numbers are; None where none is BF16, F16, F32 or F64.
        drift: How far they lie from the base's; None where there is nothing to compare.
        parts: What it consists of.
    """

    name: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]
    shape: tuple[int, ...] | None = None
    extent: Extent | None = None
    drift: Distance | None = None
    parts: tuple[Part, ...] = ()

    @property
    def sparsity(self) -> float | None:
        """Share of the task vector's entries that are exactly 0; None without a base."""
        if self.drift is None:
            return None
        return self.drift.equal / self.drift.finite if self.drift.finite else 1.0

    def leaves(self) -> Iterable[Part]:
        """Yield the tensors of this part."""
        if self.shape is not None:
            yield self
        for part in self.parts:
            yield from part.leaves()

    def summary(self) -> dict[str, Any]:
        """Return the figures as plain data, without the parts."""
        found: dict[str, Any] = {"name": self.name}
        if self.shape is not None:
            found["shape"] = list(self.shape)
        else:
            found["tensors"] = self.tensors
        found.update(parameters=self.parameters, bytes=self.nbytes, dtypes=list(self.dtypes))
        if self.extent is not None:
            found.update(
                norm=plain_number(self.extent.norm),
                max_magnitude=plain_number(self.extent.max_magnitude),
                zero_fraction=self.extent.zero_fraction,
                nonfinite=self.extent.nonfinite,
            )
        if self.drift is not None:
            found.update(
                task_vector_norm=plain_number(self.drift.norm_difference),
                relative_drift=plain_number(self.drift.relative),
                max_difference=plain_number(self.drift.max_difference),
                sparsity=self.sparsity,
                cosine=plain_number(self.drift.cosine),
            )
        return found


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        model: The reference.
        base: The base's reference; None without one.
        files: How many weight files.
        tree: The model, whose parts are layers, whose parts are kinds, whose parts are tensors.
        kinds: The same tensors by kind alone.
        not_compared: Name to reason, for tensors that cannot be compared with the base.
        only_base: Tensors that only the base has.
        config: The chief settings of config.json.
        notes: What the user should know.
    """

    model: str
    base: str | None
    files: int
    tree: Part
    kinds: tuple[Part, ...]
    not_compared: Mapping[str, str]
    only_base: tuple[str, ...]
    config: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def layers(self) -> tuple[Part, ...]:
        """Embedding, layers, what lies outside them, head: in this order."""
        return self.tree.parts

    @property
    def tensors(self) -> tuple[Part, ...]:
        """Every tensor, layer by layer."""
        return tuple(self.tree.leaves())

    def summary(self) -> dict[str, Any]:
        """Return the inspection as plain data, for --json."""
        return {
            "model": self.model,
            "base": self.base,
            "files": self.files,
            "config": dict(self.config),
            "total": self.tree.summary(),
            "kinds": [k.summary() for k in self.kinds],
            "layers": [{**p.summary(), "kinds": [k.summary() for k in p.parts]} for p in self.layers],
            "tensors": [t.summary() for t in self.tensors],
            "not_compared": dict(self.not_compared),
            "only_base": list(self.only_base),
            "notes": list(self.notes),
        }


def inspect(
    model: str | Path,
    *,
    base: str | Path | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Describe a checkpoint tensor by tensor, in one pass and bounded memory.

    With w a tensor of the model and b the base's of that name, the task vector is tau = w - b, formed in float64; its
    relative drift is ||tau|| / ||b||, its sparsity the share of entries that are exactly 0.

    Args:
        model: A file, folder, `model+adapter` or hub id.
        base: The model it was trained from; figures of task vectors need it.
        options: Memory and threads.
        progress: Called with (stage, bytes done, bytes in all).

    Raises:
        ArgumentError: A reference names nothing.
        CheckpointError: A file is damaged, or changes while it is read.
        ResourceError: The memory budget is too small.

    The same on the command line: weightsmith inspect MODEL --base BASE
    """
    options = options or Options()
    references = [model] if base is None else [model, base]
    opened = [open_checkpoint(x, follow_symlinks=options.follow_symlinks) for x in references]
    before = [fingerprint(c) for c in opened]
    beside = tensors_beside(opened[1], opened[0]) if base is not None else {}
    works = [
        Work(n, e.shape, e.dtype, (e, *_partner(e, beside)), layer_of(n))
        for n, e in opened[0].tensors.items()
        if e.dtype in ARITHMETIC_DTYPES
    ]
    report = reporter("inspect", sum(e.nbytes for w in works for e in w.inputs), progress)
    measured = {w.name: (Extent(), Distance() if len(w.inputs) > 1 else None) for w in works if not w.size}
    with Stream(reading_job(works, opened, options), len(opened)) as stream:
        for work, sums, counts, largest in gather(stream, works, _measure, report):
            size = Extent(work.size, counts[0], counts[1], largest[0], sums[0])
            has_base = len(work.inputs) > 1
            drift = make_distance(work.size, sums[1:], counts[2:], largest[1]) if has_base else None
            measured[work.name] = size, drift
    for prints in before:
        check_unchanged(prints)
    tree, kinds = _arrange([_leaf(e, *measured.get(n, (None, None))) for n, e in opened[0].tensors.items()])
    return Inspection(
        model=opened[0].reference,
        base=None if base is None else opened[1].reference,
        files=len(opened[0].files),
        tree=tree,
        kinds=kinds,
        not_compared={} if base is None else _not_compared(opened[0], beside),
        only_base=tuple(n for n in beside if n not in opened[0].tensors),
        config={k: opened[0].config[k] for k in _HIGHLIGHTS if _is_short(opened[0].config.get(k))},
        notes=tuple(dict.fromkeys(note for c in opened for note in (*c.notes, *tie_note(c)))),
    )


def _partner(entry: Entry, beside: Mapping[str, Entry]) -> tuple[Entry, ...]:
    other = beside.get(entry.name)
    return (other,) if other is not None and are_numbers(entry, other) else ()


def _not_compared(checkpoint: Checkpoint, beside: Mapping[str, Entry]) -> dict[str, str]:
    found = {}
    for name, entry in checkpoint.tensors.items():
        other = beside.get(name)
        if other is None:
            found[name] = "not in the base"
        elif other.shape != entry.shape:
            found[name] = f"shape {entry.shape}, in the base {other.shape}"
        elif not are_numbers(entry, other):
            odd = entry.dtype if entry.dtype not in ARITHMETIC_DTYPES else other.dtype
            found[name] = f"{odd} is not computed with"
    return found


def _measure(inputs: Array) -> Measured:
    sums, counts, largest = extent(inputs[0])
    if len(inputs) == 1:
        return sums, counts, np.array([largest])
    pair = measure_pair(inputs[1], inputs[0])
    return (
        np.concatenate([sums, pair[0]], axis=1),
        np.concatenate([counts, pair[1]]),
        np.concatenate([[largest], pair[2]]),
    )


def _leaf(entry: Entry, size: Extent | None, drift: Distance | None) -> Part:
    return Part(entry.name, 1, entry.size, entry.nbytes, (entry.dtype,), entry.shape, size, drift)


def _arrange(tensors: Sequence[Part]) -> tuple[Part, tuple[Part, ...]]:
    """Return the tree of layers and kinds, and the kinds alone."""
    several = len({_stack(t.name) for t in tensors} - {""}) > 1
    by_layer: dict[tuple[Any, ...], list[Part]] = {}
    for tensor in tensors:
        by_layer.setdefault(_place(tensor.name), []).append(tensor)
    layers = []
    for place, found in sorted(by_layer.items()):
        _, stack, layer, kind = place
        label = kind or (f"{stack} {layer}" if several else f"layer {layer}")
        layers.append(_together(label, _by_kind(found)))
    kinds = tuple(_together(k.name, (), of=k.parts) for k in _by_kind(tensors))
    return _together("model", layers), kinds


def _place(name: str) -> tuple[int, str, int, str]:
    """Return what layers are sorted by: rank, stack, layer, and the kind of what lies outside the layers."""
    layer, kind = layer_of(name), kind_of(name)
    if layer is not None:
        return 1, _stack(name), layer, ""
    return _rank(kind), "", 0, kind


def _rank(kind: str) -> int:
    return 0 if kind in _KINDS_FIRST else 3 + _KINDS_LAST.index(kind) if kind in _KINDS_LAST else 2


def _stack(name: str) -> str:
    """Return what precedes the layer number in a name: an encoder and a decoder are two stacks."""
    layer = layer_of(name)
    if layer is None:
        return ""
    parts = name.split(".")
    at = next(i for i, part in enumerate(parts) if part.isascii() and part.isdigit() and int(part) == layer)
    return ".".join(parts[:at])


def _by_kind(tensors: Sequence[Part]) -> list[Part]:
    found: dict[str, list[Part]] = {}
    for tensor in tensors:
        found.setdefault(kind_of(tensor.name), []).append(tensor)
    return [_together(kind, found[kind]) for kind in sorted(found, key=lambda k: (_rank(k), k))]


def _together(name: str, parts: Sequence[Part], of: Sequence[Part] | None = None) -> Part:
    """Return parts as one, which consists of them; with `of`, that adds those up and consists of nothing."""
    added = parts if of is None else of
    sizes = [p.extent for p in added if p.extent is not None]
    drifts = [p.drift for p in added if p.drift is not None]
    return Part(
        name=name,
        tensors=sum(p.tensors for p in added),
        parameters=sum(p.parameters for p in added),
        nbytes=sum(p.nbytes for p in added),
        dtypes=tuple(sorted({d for p in added for d in p.dtypes})),
        extent=_add_extents(sizes) if sizes else None,
        drift=add_distances(drifts) if drifts else None,
        parts=tuple(parts),
    )


def _add_extents(sizes: Sequence[Extent]) -> Extent:
    return Extent(
        elements=sum(e.elements for e in sizes),
        zeros=sum(e.zeros for e in sizes),
        nonfinite=sum(e.nonfinite for e in sizes),
        max_magnitude=max(e.max_magnitude for e in sizes),
        squares=add_exactly([e.squares for e in sizes]),
    )


def _is_short(value: Any) -> bool:
    """Tell whether a setting is one line: a number, a text, a flag, or a few texts."""
    if isinstance(value, list):
        return len(value) <= 4 and all(isinstance(v, str) for v in value)
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
