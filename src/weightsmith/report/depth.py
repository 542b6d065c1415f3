"""Layers in the order of depth, and kinds of tensors: the two axes of most pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from weightsmith.checkpoint.names import kind_of, layer_of, precedes_layers, stack_of

Part = Mapping[str, Any]
Value = TypeVar("Value")

_KINDS = ("embedding", "convolution", "attention", "mlp", "other", "norm", "head")


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of those values that there are; None where there is none.

    >>> mean([1.0, None, 3.0]), mean([None])
    (2.0, None)
    """
    there = [v for v in values if v is not None and math.isfinite(v)]
    return math.fsum(there) / len(there) if there else None


class Depth:
    """The layers and kinds of a result, and where each of its cells stands.

    Attributes:
        layers: The parts that stand along the axis.
        labels: Their labels: a layer's number, or a name outside the layers or where there are several stacks.
        kinds: Labels of the other axis.
    """

    def __init__(self, found: Part) -> None:
        self.layers: list[Part] = list(found["layers"])
        self.labels = [_label(part) for part in self.layers]
        names = [part["name"] for part in found["kinds"]]
        self.kinds: list[str] = [*(k for k in _KINDS if k in names), *(n for n in names if n not in _KINDS)]
        self._numbered: dict[int | None, list[int]] = {}
        for i, part in enumerate(self.layers):
            self._numbered.setdefault(part["layer"], []).append(i)
        self._cells = {(self.place(cell), cell["kind"]): cell for cell in found["cells"]}

    def place(self, part: Part) -> int | None:
        """Return which of the layers a cell, a tensor or a spectrum lies in; None where it is not known."""
        if part["layer"] is None:
            return next((i for i, other in enumerate(self.layers) if other["name"] == part["kind"]), None)
        there = self._numbered.get(part["layer"], [])
        stacks = {i: str(self.layers[i]["name"]).rpartition(" ")[0] for i in there}
        named = [i for i in there if part["name"].startswith(stacks[i])]
        return max(named, key=lambda i: len(stacks[i])) if named else next(iter(there), None)

    def by_kind(self, value: Callable[[Part], float | None]) -> list[list[float | None]]:
        """Return a value of every cell, (kinds, layers); None where there is no such cell."""
        rows = []
        for kind in self.kinds:
            cells = [self._cells.get((i, kind)) for i in range(len(self.layers))]
            rows.append([None if cell is None else value(cell) for cell in cells])
        return rows


def _label(part: Part) -> str:
    layer, name = part["layer"], str(part["name"])
    return str(layer) if layer is not None and name == f"layer {layer}" else name


def depth_of(named: Sequence[tuple[str, Value]], add: Callable[[list[Value]], Value]) -> Depth:
    """Add up what is known of tensors by layer, by kind, and by both; each part holds it as "value".

    Args:
        named: Names of tensors, each with what is known of it.
        add: Adds several up.
    """
    stacks = list(dict.fromkeys(stack_of(name) for name, _ in named if stack_of(name)))
    layers: dict[tuple[int, int, int | None, str], list[Value]] = {}
    cells: dict[tuple[str, int | None, str], list[Value]] = {}
    for name, value in named:
        layer, kind, stack = layer_of(name), kind_of(name), stack_of(name)
        if layer is None:
            title, place = kind, (-1 if precedes_layers(name) else len(stacks), 0)
        else:
            title = f"layer {layer}" if len(stacks) == 1 else f"{stack.strip('.')} {layer}"
            place = (stacks.index(stack), layer)
        layers.setdefault((*place, layer, title), []).append(value)
        cells.setdefault((title, layer, kind), []).append(value)
    return Depth(
        {
            "layers": [
                {"name": key[3], "layer": key[2], "kind": None, "value": add(layers[key])}
                for key in sorted(layers, key=lambda key: key[:2])
            ],
            "kinds": [{"name": kind} for kind in dict.fromkeys(kind_of(name) for name, _ in named)],
            "cells": [
                {"name": f"{title} {kind}", "layer": layer, "kind": kind, "value": add(found)}
                for (title, layer, kind), found in cells.items()
            ],
        }
    )
