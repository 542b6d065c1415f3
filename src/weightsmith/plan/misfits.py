"""How inputs do not fit each other: tensor by tensor while they are few, in one line per model where they are many."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.names import layer_of
from weightsmith.errors import nearest, shown
from weightsmith.recipe import Origin

EACH = 3  # of one kind and model, told one by one
_VOCABULARY = " (another vocabulary?); `vocabulary:` in a recipe aligns them"


@dataclass
class _Model:
    """One model's tensors that do not fit: those it lacks, those it has beside, and those of another shape or dtype, with why."""

    checkpoint: Checkpoint
    lacking: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    shapes: list[tuple[str, str]] = field(default_factory=list)
    dtypes: list[tuple[str, str]] = field(default_factory=list)


class Misfits:
    """Gathers what does not fit in one part of the output.

    Args:
        first: The input that the others are compared with.
        count: How many of its tensors there are in this part.
        slice_: "slice 2"; "" for whole models.
        is_aligned: Whether an embedding of another length is a fault; not where vocabularies are still to be brought together.
        origin: Where the recipe comes from.
    """

    def __init__(self, first: Checkpoint, count: int, slice_: str, is_aligned: bool, origin: Origin) -> None:
        self.first, self.count, self.slice, self.is_aligned, self.origin = first, count, slice_, is_aligned, origin
        self._models: dict[int, _Model] = {}

    def lacks(self, name: str, checkpoint: Checkpoint) -> None:
        """Note a tensor of the first input, by the name that the model would have for it, that the model lacks."""
        self._of(checkpoint).lacking.append(name)

    def adds(self, name: str, checkpoint: Checkpoint) -> None:
        """Note a tensor of a model that the first input lacks."""
        self._of(checkpoint).extra.append(name)

    def fits(self, name: str, entries: Sequence[Entry], checkpoints: Sequence[Checkpoint]) -> bool:
        """Tell whether a tensor can be merged; note the inputs that do not fit."""
        sound = True
        for entry, checkpoint in zip(entries, checkpoints, strict=True):
            if entry.dtype not in ARITHMETIC_DTYPES:
                copy = self.origin.given("copy", shown(name), several=True)
                told = (
                    f"tensor '{shown(name)}' of {entry.file.parent.name}/{entry.file.name} is {entry.dtype}, which is only"
                    f" copied; arithmetic needs one of {', '.join(ARITHMETIC_DTYPES)}; use {copy}"
                )
                self._of(checkpoint).dtypes.append((name, told))
                return False  # one way out for all inputs
            if entry.shape == entries[0].shape:
                continue
            sound = False
            by_token = layer_of(name) is None and entry.shape[1:] == entries[0].shape[1:]
            if self.is_aligned or not by_token:
                told = (
                    f"tensor '{shown(name)}' has shape {entries[0].shape} in {entries[0].file}"
                    f" and {entry.shape} in {entry.file}"
                    + (" (transposed?)" if entry.shape == entries[0].shape[::-1] else "")
                    + (_VOCABULARY if by_token else "")
                )
                self._of(checkpoint).shapes.append((name, told))
        return sound

    def faults(self) -> list[str]:
        """Return the lines, model by model."""
        return [line for model in self._models.values() for line in self._lines(model)]

    def _of(self, checkpoint: Checkpoint) -> _Model:
        return self._models.setdefault(id(checkpoint), _Model(checkpoint))

    def _lines(self, model: _Model) -> list[str]:
        which, first = label(model.checkpoint), label(self.first)
        lines = []
        line = self.origin.at(("model", model.checkpoint.reference))
        if len(model.lacking) > EACH or (model.lacking and len(model.extra) > EACH) or self._is_foreign(model):
            lines.append(line + self._summary(model))
        else:
            for name in model.lacking:
                lines.append(f"tensor '{shown(name)}' is missing in {which}; {_hint(name, model.checkpoint)}")
            if len(model.extra) > EACH:
                lines.append(
                    f"{line}model {which} has {len(model.extra)} tensors that {first} lacks, first: {_listed(model.extra)};"
                    f" {self._compare(model)}"
                )
                model.extra.clear()
            where = f"{first}, the first of {self.slice}" if self.slice else "the first input"
            for name in model.extra:
                lines.append(f"tensor '{shown(name)}' of {which} is not in {where}; {_hint(name, self.first)}")
        for found, what in ((model.dtypes, "such a dtype"), (model.shapes, "another shape")):
            told = [line for _, line in found]
            if len(told) > EACH:
                more = (
                    f"{len(told) - 1} more tensors of {which} have {what}, first: {_listed([n for n, _ in found[1:]])}"
                )
                told = [f"{told[0]}; {more}; {self._compare(model)}"]
            lines += told
        return lines

    def _summary(self, model: _Model) -> str:
        """Return one line on a model that lacks many tensors, or some while it has many others."""
        lacking, extra = len(model.lacking), len(model.extra)
        beside = f" and has {extra} others" if extra else ""
        foreign = "it looks like another architecture; " if self._is_foreign(model) else ""
        where = f" in {self.slice}" if self.slice else ""
        return (
            f"model {label(model.checkpoint)} lacks {lacking} of {self.count} tensors of {label(self.first)}{where},"
            f" first: {_listed(model.lacking)}{beside}; {foreign}{self._compare(model)}"
        )

    def _is_foreign(self, model: _Model) -> bool:
        return 2 * len(model.lacking) > self.count > 1

    def _compare(self, model: _Model) -> str:
        pair = " ".join(shlex.quote(shown(c.reference)) for c in (self.first, model.checkpoint))
        return f"list all with: weightsmith compare {pair}"


def label(checkpoint: Checkpoint) -> str:
    """Return what messages call a model."""
    return f"'{shown(checkpoint.reference)}'"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{shown(name)}'" for name in names[:EACH])


def _hint(name: str, checkpoint: Checkpoint) -> str:
    return nearest(name, list(checkpoint.tensors)) if len(checkpoint.tensors) < 20_000 else ""
