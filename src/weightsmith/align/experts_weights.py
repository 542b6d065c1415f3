"""Weights of merged experts: matched, summed, and put where the output has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from weightsmith.align.experts_layout import ExpertLayer, Kind
from weightsmith.align.publish import Change
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.engine.stream import Work, Worker
from weightsmith.engine.whole import encoded, numbers
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.grouping import shares
from weightsmith.tensor.permute import UnitAxis, add_products, best_order, permuted, unfold

SLAB = 1 << 20  # elements summed at a time


@dataclass(frozen=True)
class LayerGroups:
    """Which experts of a layer become one.

    Attributes:
        layer: The layer.
        dominant: Those that stay, ascending.
        standing: For each expert the dominant one of its group.
        frequencies: How often each was used.
        orders: For experts that were matched: unit i of the dominant one is like unit order[i].
    """

    layer: ExpertLayer
    dominant: tuple[int, ...]
    standing: tuple[int, ...]
    frequencies: Array
    orders: dict[int, Array]

    @property
    def numbers(self) -> list[int]:
        """For each expert its group's number, in the order of the dominant ones."""
        return [self.dominant.index(d) for d in self.standing]

    def members(self, dominant: int) -> tuple[int, ...]:
        """Return the experts of a group, the dominant one first."""
        return dominant, *(e for e, d in enumerate(self.standing) if d == dominant and e != dominant)

    def summary(self) -> dict[str, Any]:
        """Return the groups as plain data."""
        moved = [float(np.mean(order != np.arange(len(order)))) for order in self.orders.values()]
        return {
            "experts": self.layer.experts,
            "kept": len(self.dominant),
            "groups": [list(self.members(d)) for d in self.dominant],
            **({"units_moved": sum(moved) / len(moved)} if moved else {}),
        }


@dataclass
class Weights:
    """Reads single experts; `gate_up` says how two numbers of one unit lie on an axis."""

    worker: Worker
    tile: int
    gate_up: str

    def whole(self, entry: Entry) -> Array:
        """Return a whole tensor as numbers."""
        return numbers(self.worker, self.tile, entry)

    def one(self, kind: Kind, expert: int) -> Array:
        """Return one expert's tensor as numbers, in its own shape."""
        if not kind.is_stacked:
            return self.whole(kind.entries[expert])
        out = np.empty(kind.size, self.worker.job.compute_dtype)
        first = expert * kind.size
        for start in range(0, kind.size, self.tile):
            stop = min(start + self.tile, kind.size)
            self.worker.read(kind.entries[0], first + start, first + stop, out[start:stop])
        return out.reshape(kind.shape)

    def stored(self, kind: Kind, expert: int) -> Array:
        """Return one expert's stored bytes, flat; encoded anew where an adapter is added."""
        entry = kind.entries[0 if kind.is_stacked else expert]
        if entry.low_rank is not None:
            return encoded(self.worker, entry, self.one(kind, expert))
        raw = np.empty(kind.nbytes, np.uint8)
        self.worker.files.entry_into(entry, expert * kind.nbytes if kind.is_stacked else 0, raw.data)
        return raw

    def axis(self, kind: Kind) -> UnitAxis | None:
        """Return where the hidden units lie in one expert's tensor."""
        if kind.where is None or not kind.pairs:
            return kind.where
        return kind.where._replace(**{"repeat" if self.gate_up == "halves" else "block": 2})


def match_experts(groups: LayerGroups, weights: Weights, pool: Executor, report: Callable[[int], None]) -> LayerGroups:
    """Return the groups with the orders in which each member's units are most like those of its dominant expert."""
    orders = {}
    for dominant in groups.dominant:
        for expert in groups.members(dominant)[1:]:
            scores = np.zeros((groups.layer.units, groups.layer.units))
            for kind in groups.layer.kinds:
                where = weights.axis(kind)
                if where is not None and len(kind.shape) == 2:
                    first, second = (unfold(weights.one(kind, e), where) for e in (dominant, expert))
                    add_products(scores, first, second, pool)
            orders[expert] = best_order(scores).astype(np.int32)
            report(1)
    return replace(groups, orders=orders)


def merged(groups: LayerGroups, dominant: int, kind: Kind, weights: Weights) -> Array:
    """Return the stored bytes of one group's merged tensor, flat; those of a single expert as they are.

    It is the dominant expert plus the members' weighted differences from it, in float64, so that equals stay what they are.
    """
    members = groups.members(dominant)
    if len(members) == 1:
        return weights.stored(kind, dominant)
    where = weights.axis(kind)
    first = weights.one(kind, dominant)
    total = first.astype(np.float64)
    flat, flat_total = first.reshape(-1), total.reshape(-1)
    for expert, share in zip(members[1:], shares(groups.frequencies, members)[1:], strict=True):
        other = weights.one(kind, expert)
        if where is not None and expert in groups.orders:
            other = permuted(other, where, groups.orders[expert])
        other = other.reshape(-1)
        for start in range(0, len(flat), SLAB):
            part = slice(start, start + SLAB)
            flat_total[part] += share * (other[part].astype(np.float64) - flat[part])
    entry, out = kind.entries[0], np.empty(kind.nbytes, np.uint8)
    work, width = Work(entry.name, kind.shape, entry.dtype, (entry,)), kind.nbytes // kind.size
    for start in range(0, kind.size, SLAB):
        stop = min(start + SLAB, kind.size)
        weights.worker.store(work, start, flat_total[start:stop], out[start * width : stop * width])
    return out


def written_tensors(model: Checkpoint, groups: Sequence[LayerGroups], layout: str) -> dict[str, Entry]:
    """Return the output's tensors in order: those of one kind side by side, group after group, so that each is made once."""
    after: dict[str, list[tuple[str, Entry]]] = {}
    for group in groups:
        for kind in group.layer.kinds:
            if kind.is_stacked:
                continue
            if layout == "same":
                order = [e for d in group.dominant for e in group.members(d)]
                listed = [(kind.entries[e].name, kind.entries[e]) for e in order]
            else:
                listed = [(kind.entries[i].name, kind.entries[d]) for i, d in enumerate(group.dominant)]
            after |= dict.fromkeys((e.name for e in kind.entries), listed)
    written: dict[str, Entry] = {}
    for name, entry in model.tensors.items():
        written |= dict(after.get(name, [(name, entry)]))
    return written


def changes_of(groups: Sequence[LayerGroups], weights: Weights, layout: str) -> dict[str, Change]:
    """Return how each tensor of the output that differs from the entry that lends its bytes is made."""
    changes: dict[str, Change] = {}
    held: dict[tuple[str, str, int], Array] = {}  # the last merged tensor alone

    def make(group: LayerGroups, kind: Kind, dominant: int) -> Array:
        key = (group.layer.name, kind.label, dominant)
        if key not in held:
            held.clear()
            held[key] = merged(group, dominant, kind, weights)
        return held[key]

    for group in groups:
        if len(group.dominant) == group.layer.experts:
            continue
        for kind in group.layer.kinds:
            slots = group.standing if layout == "same" else group.dominant
            if kind.is_stacked:
                changes[kind.entries[0].name] = Change(
                    (len(slots), *kind.shape), partial(_stack, group, kind, slots, weights)
                )
                continue
            for place, dominant in enumerate(slots):
                if len(group.members(dominant)) > 1:
                    changes[kind.entries[place].name] = Change(kind.shape, partial(make, group, kind, dominant))
        if layout == "dominant":
            for entry in group.layer.routing:
                shape = (len(group.dominant), *entry.shape[1:])
                changes[entry.name] = Change(shape, partial(_rows, entry, group.dominant, weights))
    return changes


def _stack(group: LayerGroups, kind: Kind, slots: Sequence[int], weights: Weights) -> Array:
    """Return the stored bytes of a tensor that stacks experts, flat: each group's where its members lie."""
    out = np.empty((len(slots), kind.nbytes), np.uint8)
    for dominant in group.dominant:
        out[[i for i, d in enumerate(slots) if d == dominant]] = merged(group, dominant, kind, weights)
    return out.reshape(-1)


def _rows(entry: Entry, rows: Sequence[int], weights: Weights) -> Array:
    """Return the stored bytes of some rows of a tensor, flat."""
    kind = Kind("", (entry,), entry.shape[1:])
    return np.concatenate([weights.stored(kind, row) for row in rows])
