"""Which layers of which inputs become which layers of the output: one part for whole models, else one per slice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from weightsmith.checkpoint.entry import Checkpoint
from weightsmith.checkpoint.names import layer_count, layer_of, precedes_layers, renumbered, stack_of
from weightsmith.errors import shown
from weightsmith.method import Method
from weightsmith.recipe import Recipe, Settings, Slice


@dataclass(frozen=True)
class Part:
    """Layers of the output, and the inputs that they are merged from.

    Attributes:
        label: "slice 2"; "" for whole models.
        inputs: Positions among the plan's inputs: the base first, where the method has one, then the models.
        settings: Per-model parameters, one mapping per model.
        parameters: The recipe's parameters, with those of the slice in their place.
        starts: The first layer of each input, in its own numbering.
        count: Number of layers.
        first: Number in the output of the first of them.
        has_start: Whether the tensors before the layers come from here.
        has_end: Whether the tensors after the layers come from here.
    """

    label: str
    inputs: tuple[int, ...]
    settings: tuple[Settings, ...]
    parameters: Settings
    starts: tuple[int, ...]
    count: int
    first: int = 0
    has_start: bool = True
    has_end: bool = True

    def names(self, which: int, tensors: Iterable[str]) -> Iterator[str]:
        """Yield the names, among those of one of the inputs, that belong to this part."""
        start, stop = self.starts[which], self.starts[which] + self.count
        for name in tensors:
            layer = layer_of(name)
            if not self.label:
                yield name
            elif layer is not None:
                if start <= layer < stop:
                    yield name
            elif self.has_start if precedes_layers(name) else self.has_end:
                yield name

    def place(self, name: str) -> int | None:
        """Return the place within the part, from 0, of the layer of a tensor of the first input; None outside the layers."""
        layer = layer_of(name)
        return None if layer is None else layer - self.starts[0]

    def output_name(self, name: str) -> str:
        """Return the output's name of a tensor of the first input."""
        return self._moved(name, self.first)

    def own_name(self, name: str, which: int) -> str:
        """Return the name that one of the inputs has for a tensor of the first."""
        return self._moved(name, self.starts[which])

    def _moved(self, name: str, start: int) -> str:
        place = self.place(name)
        return name if place is None or start == self.starts[0] else renumbered(name, place + start)


def find_parts(
    recipe: Recipe, method: Method, inputs: Sequence[Checkpoint | None]
) -> tuple[list[Part], list[tuple[int, str]]]:
    """Return the parts of the output, without slices that have faults, and the faults, each with the number of its slice.

    Args:
        recipe: What was asked.
        method: Its method.
        inputs: The checkpoints of `recipe.references`, in order; None for one that could not be opened.
    """
    if not recipe.slices:
        settings = recipe.settings or ({},) * len(recipe.models)
        count = layer_count(inputs[0].tensors) if inputs and inputs[0] else 0
        everything = tuple(range(len(inputs)))
        return [Part("", everything, settings, recipe.parameters, (0,) * len(inputs), count)], []
    opened = dict(zip(recipe.references, inputs, strict=True))
    faults = [(0, fault) for c in opened.values() if c for fault in _stack_faults(c)]
    sound = []
    for place, part in enumerate(recipe.slices, 1):
        wrong = part.faults(recipe.base) + _range_faults(part, opened)
        if method.has_base and part.base is None and recipe.base is None:
            wrong.append("the base is missing; name it beside the slice's sources or in the recipe")
        if not method.has_base and part.base is not None:
            wrong.append(f"{method.name} takes no base")
        faults += [(place, f"slice {place}: {fault}") for fault in wrong]
        sound.append(not wrong)
    return [part for part, is_sound in zip(_parts(recipe, method), sound, strict=True) if is_sound], faults


def _parts(recipe: Recipe, method: Method) -> Iterator[Part]:
    where = {reference: i for i, reference in enumerate(recipe.references)}
    counts = [sum(end - first for first, end in (s.layers for s in part.sources[:1])) for part in recipe.slices]
    firsts = [0, *accumulate(counts)]
    for i, part in enumerate(recipe.slices):
        base = (part.base or recipe.base) if method.has_base else None
        sources = sorted(
            part.sources, key=lambda source: source.model != base
        )  # the base first, the rest as they stand
        yield Part(
            label=f"slice {i + 1}",
            inputs=tuple(where[s.model] for s in sources),
            settings=tuple(s.settings for s in sources if s.model != base),
            parameters={**recipe.parameters, **part.parameters},
            starts=tuple(s.layers[0] for s in sources),
            count=counts[i],
            first=firsts[i],
            has_start=i == 0,
            has_end=i == len(recipe.slices) - 1,
        )


def _stack_faults(checkpoint: Checkpoint) -> list[str]:
    """Return why a model's layers cannot be cut: it has several stacks of different length, or none."""
    layers: dict[str, int] = {}
    for name in checkpoint.tensors:
        layer = layer_of(name)
        if layer is not None:
            layers[stack_of(name)] = max(layers.get(stack_of(name), 0), layer + 1)
    if len(set(layers.values())) == 1:
        return []
    seen = ", ".join(f"{n} in '{shown(stack)}'" for stack, n in sorted(layers.items())[:5]) or "none"
    return [f"model '{shown(checkpoint.reference)}' cannot be sliced: expected one number of layers, got {seen}"]


def _range_faults(part: Slice, opened: dict[str, Checkpoint | None]) -> list[str]:
    faults = []
    for source in part.sources:
        checkpoint = opened.get(source.model)
        if checkpoint is not None and source.layers[1] > layer_count(checkpoint.tensors):
            faults.append(
                f"layers {source.layers[0]} to {source.layers[1]} are out of range;"
                f" '{shown(source.model)}' has layers 0 to {layer_count(checkpoint.tensors)}, the end not included"
            )
    return faults
