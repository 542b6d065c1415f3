"""Where the experts of a checkpoint lie: by names and shapes alone, one tensor per expert or all stacked in one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.names import expert_place
from weightsmith.errors import MismatchError, raise_all, shown
from weightsmith.tensor.permute import UnitAxis

_OUTGOING = ("down", "w2", "fc2", "wo", "out")  # asked only where shapes cannot tell
_EXPERTS = {"experts", "shared_expert", "shared_experts"}
_ROUTING = ("gate", "router")


@dataclass(frozen=True)
class Kind:
    """The same tensor of every expert of a layer.

    Attributes:
        label: What the tensors' names have after the expert's number, or after `experts`.
        entries: One per expert, or the one that stacks them.
        shape: Of one expert.
        where: Where the hidden units lie in one expert; None where they do not.
        pairs: Whether the axis holds two numbers per unit, gate and up.
    """

    label: str
    entries: tuple[Entry, ...]
    shape: tuple[int, ...]
    where: UnitAxis | None = None
    pairs: bool = False

    @property
    def is_stacked(self) -> bool:
        """Whether one tensor holds all experts."""
        return self.entries[0].shape != self.shape

    @property
    def size(self) -> int:
        """Elements of one expert."""
        entry = self.entries[0]
        return entry.size // entry.shape[0] if self.is_stacked else entry.size

    @property
    def nbytes(self) -> int:
        """Stored bytes of one expert."""
        entry = self.entries[0]
        return entry.nbytes // entry.shape[0] if self.is_stacked else entry.nbytes


@dataclass(frozen=True)
class ExpertLayer:
    """The routed experts of one layer.

    Attributes:
        name: What precedes `experts` in their names.
        experts: How many there are.
        kinds: Their tensors.
        router: The tensor with one row per expert.
        routing: All tensors of the router with one entry or row per expert, `router` among them.
        others: Other tensors beside the experts with an axis as long as there are experts.
        units: Hidden units of one expert; 0 where shapes and names do not tell.
        why: Why they do not tell.
    """

    name: str
    experts: int
    kinds: tuple[Kind, ...]
    router: Entry
    routing: tuple[Entry, ...]
    others: tuple[Entry, ...]
    units: int = 0
    why: str = ""

    @property
    def nbytes(self) -> int:
        """Stored bytes of all its experts."""
        return self.experts * sum(kind.nbytes for kind in self.kinds)


def find_layers(checkpoint: Checkpoint) -> tuple[ExpertLayer, ...]:
    """Return the layers with routed experts, in the checkpoint's order.

    A part `experts` followed by a number is one expert's tensor; below `experts` without a number, tensors are stacked
    along their first axis, one of at least 3 axes being among them. The router is the one tensor of two axes beside
    `experts` with a row per expert. Parts such as `shared_experts` are not `experts`.

    Raises:
        MismatchError: There are none, or some cannot be told; all faults with the names found.
    """
    held: dict[str, dict[str, Entry]] = {}
    for name, entry in checkpoint.tensors.items():
        place = expert_place(name)
        if place is not None:
            held.setdefault(place[0], {})[name] = entry
    faults: list[str] = []
    layers = [layer for name, found in held.items() if (layer := _layer(name, found, checkpoint, faults)) is not None]
    if faults:
        raise_all(faults, MismatchError, f"merge-experts: experts of '{shown(checkpoint.reference)}' cannot be told")
    if not layers:
        raise MismatchError(
            f"merge-experts: '{shown(checkpoint.reference)}'",
            expected="tensors below a part called `experts`, such as mlp.experts.0.up_proj.weight",
            got="none",
        )
    return tuple(layers)


def _layer(name: str, found: Mapping[str, Entry], checkpoint: Checkpoint, faults: list[str]) -> ExpertLayer | None:
    where = f"'{shown(name)}': "
    wrong = [f"{shown(n)} is {e.dtype}" for n, e in found.items() if e.dtype not in ARITHMETIC_DTYPES]
    if wrong:
        faults.append(f"{where}{wrong[0]} ({len(wrong)} such tensors), which cannot be computed with")
        return None
    numbered = {n: e for n, e in found.items() if _place(n)[1] is not None}
    told = _stacked(found) if not numbered else _numbered(found) if len(numbered) == len(found) else None
    if not told:
        listed = ", ".join(f"{shown(n)} {e.shape}" for n, e in itertools.islice(found.items(), 4))
        faults.append(f"{where}neither one tensor of each kind per expert nor tensors that stack them all: {listed}")
        return None
    experts, kinds = told
    beside = [e for n, e in checkpoint.tensors.items() if _is_beside(n, name) and experts in e.shape]
    routers = [e for e in beside if len(e.shape) == 2 and e.shape[0] == experts]
    named = [e for e in routers if any(word in e.name[len(name) :].lower() for word in _ROUTING)]
    routers = named or routers
    if len(routers) != 1:
        listed = ", ".join(f"{shown(e.name)} {e.shape}" for e in routers) or "none"
        faults.append(f"{where}one router of {experts} rows is expected beside the experts; found {listed}")
        return None
    if routers[0].dtype not in ARITHMETIC_DTYPES:
        faults.append(f"{where}the router {shown(routers[0].name)} is {routers[0].dtype}")
        return None
    stem = ".".join(routers[0].name.split(".")[: name.count(".") + 2 if name else 1])
    routing = [e for e in beside if (e.name + ".").startswith(stem + ".") and e.shape[0] == experts]
    others = [e for e in beside if e not in routing]
    return _with_units(ExpertLayer(name, experts, kinds, routers[0], tuple(routing), tuple(others)))


def _place(name: str) -> tuple[str, int | None, str]:
    return expert_place(name) or ("", None, name)


def _is_beside(name: str, layer: str) -> bool:
    prefix = f"{layer}." if layer else ""
    return name.startswith(prefix) and _EXPERTS.isdisjoint(name[len(prefix) :].split("."))


def _numbered(found: Mapping[str, Entry]) -> tuple[int, tuple[Kind, ...]] | None:
    """Return how many experts and their tensors, one per expert and kind; None where some are missing or differ."""
    table: dict[str, dict[int, Entry]] = {}
    for name, entry in found.items():
        _, number, label = _place(name)
        table.setdefault(label, {})[number or 0] = entry
    count = 1 + max(max(row) for row in table.values())
    for row in table.values():
        first = next(iter(row.values()))
        if len(row) < count or any((e.shape, e.dtype) != (first.shape, first.dtype) for e in row.values()):
            return None
    return count, tuple(Kind(label, tuple(row[e] for e in range(count)), row[0].shape) for label, row in table.items())


def _stacked(found: Mapping[str, Entry]) -> tuple[int, tuple[Kind, ...]] | None:
    """Return how many experts and the tensors that stack them; None where first axes differ or none has 3."""
    counts = {e.shape[:1] for e in found.values()}
    if len(counts) != 1 or () in counts or max(len(e.shape) for e in found.values()) < 3:
        return None
    return counts.pop()[0], tuple(Kind(_place(n)[2], (e,), e.shape[1:]) for n, e in found.items())


def _with_units(layer: ExpertLayer) -> ExpertLayer:
    """Return the layer with the axes on which its experts' hidden units lie, or with why they cannot be told."""
    hidden = layer.router.shape[1]
    matrices = [kind for kind in layer.kinds if len(kind.shape) == 2]
    listed = ", ".join(f"{shown(k.label)} {k.shape}" for k in layer.kinds)
    if any(len(kind.shape) > 2 for kind in layer.kinds) or not matrices:
        return replace(layer, why=f"no matrices of one expert: {listed}")
    told = list(_readings(matrices, hidden))
    if len({_axes(reading) for reading in told}) > 1:
        told = [r for r in told if all(_sounds_outgoing(k) == (role == "out") for k, (role, *_) in r.items())]
    if len({_axes(reading) for reading in told}) != 1:
        return replace(layer, why=f"which axis holds hidden units cannot be told for inputs of size {hidden}: {listed}")
    reading = told[0]
    units = next(kind.shape[axis] for kind, (role, axis, _) in reading.items() if role == "out")
    placed = []
    for kind in layer.kinds:
        if len(kind.shape) == 2:
            _, axis, width = reading[kind]
        elif len(kind.shape) == 0:
            axis, width = 0, 0
        else:
            owner = next((k for k in matrices if _stem(k.label) == _stem(kind.label)), None)
            if owner is None:
                return replace(
                    layer, why=f"{shown(kind.label)} {kind.shape} belongs to no matrix of its name: {listed}"
                )
            role, axis, width = reading[owner][0], 0, reading[owner][2]
            width = 0 if kind.shape[0] == hidden and (role == "out" or width * units != hidden) else width
            if width and kind.shape[0] != width * units:
                return replace(layer, why=f"{shown(kind.label)} {kind.shape} fits neither units nor inputs: {listed}")
        placed.append(replace(kind, where=UnitAxis(axis) if width else None, pairs=width == 2))
    return replace(layer, kinds=tuple(placed), units=units)


Reading = dict[Kind, tuple[str, int, int]]  # role, axis of the units, numbers per unit on it


def _readings(matrices: Sequence[Kind], hidden: int) -> Iterator[Reading]:
    """Yield every reading of one expert's matrices as one outgoing (hidden, units) and incoming ones (units, hidden).

    Incoming are gate and up, one of the two, or both in one matrix of twice the units. Stacked ones may be transposed.
    """
    for transposed in (False, True) if matrices[0].is_stacked else (False,):
        for out in matrices:
            out_shape = out.shape[::-1] if transposed else out.shape
            if out_shape[0] != hidden or not out_shape[1]:
                continue
            units = out_shape[1]
            reading: Reading = {out: ("out", 0 if transposed else 1, 1)}
            for kind in matrices:
                rows, columns = kind.shape[::-1] if transposed else kind.shape
                if kind is not out and columns == hidden and rows in (units, 2 * units):
                    reading[kind] = ("in", 1 if transposed else 0, rows // units)
            widths = sum(width for role, _, width in reading.values() if role == "in")
            if len(reading) == len(matrices) and widths in (1, 2):
                yield reading


def _axes(reading: Reading) -> tuple[tuple[str, int, int], ...]:
    return tuple(sorted((kind.label, axis, width) for kind, (_, axis, width) in reading.items()))


def _sounds_outgoing(kind: Kind) -> bool:
    return any(part.startswith(_OUTGOING) for part in kind.label.lower().replace("_", ".").split("."))


def _stem(label: str) -> str:
    for end in (".weight", ".bias", "_bias", "_weight"):
        label = label.removesuffix(end)
    return label
