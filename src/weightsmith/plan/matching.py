"""The same tensor in every input: what is merged, copied or dropped, and every way in which the inputs do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, INTEGER_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.names import expert_counts, layer_of, matches, tied_pair
from weightsmith.engine.stream import Work
from weightsmith.errors import ArgumentError, shown
from weightsmith.method import Method
from weightsmith.plan.headers import Headers
from weightsmith.plan.misfits import Misfits, label
from weightsmith.plan.settings import Resolver, schedules
from weightsmith.plan.slicing import Part
from weightsmith.recipe import Recipe
from weightsmith.recipe.origin import key_of

UNCHANGED = "unchanged"  # why a tensor is copied that the method would give back as it is


@dataclass(frozen=True)
class Dropped:
    """A tensor of one model that has no place in the output."""

    model: int
    name: str
    reason: str


@dataclass
class Matched:
    """Every tensor of every input, accounted for.

    Attributes:
        works: One per output tensor, in output order.
        layers: Number of layers of the output.
        origins: Where there are slices, for each layer of the output the input and the layer that lend its names.
        dropped: Tensors left out, and why.
        must_equal: Pairs of tensors; the first is dropped on the condition that it holds the second's bytes.
        notes: What the user should know.
        faults: What does not fit; empty where a merge is possible.
    """

    works: list[Work] = field(default_factory=list)
    layers: int = 0
    origins: list[tuple[int, int]] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    must_equal: list[tuple[Entry, Entry]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def match_tensors(recipe: Recipe, method: Method, headers: Headers, is_aligned: bool = True) -> Matched:
    """Find each tensor of a part's first input in its others, and account for every tensor of every input.

    Where inputs or parts are missing from `headers`, what there is is compared, and the result is good for its faults alone.

    Args:
        recipe: What was asked.
        method: Its method.
        headers: The inputs, the parts of the output and their parameters.
        is_aligned: Whether vocabularies were brought together where the recipe asks for it.
    """
    inputs = headers.inputs
    opened = [c for c in inputs if c]
    matched = Matched(notes=[note for c in opened for note in c.notes])
    for part, parameters in zip(headers.parts, headers.resolvers, strict=True):
        first = inputs[part.inputs[0]] if part.inputs else None
        if first is None:
            continue
        others = [inputs[i] for i in part.inputs[1:]]
        _Matching(recipe, method, first, others, part, parameters, is_aligned, matched).run()
        matched.layers = max(matched.layers, part.first + part.count)
        if part.label:
            matched.origins += [(part.inputs[0], part.starts[0] + k) for k in range(part.count)]
    if matched.faults:
        _explain_experts(opened, matched)
    if headers.is_whole:
        _check_heads(opened, headers.parts, matched)
    _check_curves([r for r in headers.resolvers if r], matched.notes)
    return matched


@dataclass
class _Matching:
    """The matching of one part, whose inputs are `first` and `others`, None for one that could not be opened."""

    recipe: Recipe
    method: Method
    first: Checkpoint
    others: Sequence[Checkpoint | None]
    part: Part
    parameters: Resolver | None
    is_aligned: bool
    matched: Matched

    def run(self) -> None:
        """Make the works of this part, and account for what they leave."""
        part, own_names = self.part, list(self.part.names(0, self.first.tensors))
        self.there = [(i, c) for i, c in enumerate(self.others, 1) if c is not None]
        self.stand_ins = {i: _stand_in(c) for i, c in [(0, self.first), *self.there]}
        self.used: dict[int, set[str]] = {i: set() for i, _ in self.there}
        self.misfits = Misfits(self.first, len(own_names), part.label, self.is_aligned, self.recipe.origin)
        for own in own_names:
            self._match(own, part.output_name(own))
        for i, checkpoint in self.there:
            for name in part.names(i, checkpoint.tensors):
                if name not in self.used[i]:
                    self._account_for_extra(name, i, checkpoint)
        self.matched.faults += self.misfits.faults()

    def _match(self, own: str, name: str) -> None:
        """Make the work of one tensor of the first input, called `name` in the output, or tell why there is none."""
        matched, entry = self.matched, self.first.tensors[own]
        if not own.isprintable():
            matched.faults.append(f"tensor '{shown(own)}' has control characters in its name, which are not written")
        copy = _reason_to_copy(self.recipe, name, entry)
        if not copy and not self.others and self.method.has_base:
            copy = f"{self.part.label} has the base alone"
        if copy and entry.low_rank is not None:
            matched.faults.append(f"tensor '{shown(own)}' carries an adapter, so its bytes cannot be copied ({copy})")
        others = self._find_others(own, copy)
        layer, dtype = layer_of(name), self.recipe.dtype or entry.dtype
        if not copy:
            names = [self.part.own_name(own, i) for i in range(self.method.has_base, len(self.others) + 1)]
            try:
                parameters = self.parameters.resolve(name, names, self.part.place(own)) if self.parameters else {}
            except ArgumentError as error:
                matched.faults.append(f"tensor '{shown(name)}': {error}")
                return
            changes = entry.low_rank is not None or (dtype != entry.dtype and entry.dtype in ARITHMETIC_DTYPES)
            if changes or not _is_identity(self.method, parameters):
                if self.misfits.fits(
                    own, [entry, *others.values()], [self.first, *(c for i, c in self.there if i in others)]
                ):
                    inputs = (entry, *others.values())
                    matched.works.append(Work(name, entry.shape, dtype, inputs, layer, parameters))
                return
        matched.works.append(Work(name, entry.shape, entry.dtype, (entry,), layer, None, copy or UNCHANGED))

    def _find_others(self, own: str, copy: str) -> dict[int, Entry]:
        """Return the same tensor of the other inputs that have it, tied ones through their embedding."""
        found = {}
        for i, checkpoint in self.there:
            name, tied = self.part.own_name(own, i), self.stand_ins[i]
            entry = checkpoint.tensors.get(name)
            if entry is None and tied is not None and tied[0] == name:
                entry = checkpoint.tensors[tied[1]]
                note = f"{label(checkpoint)} ties '{name}' to '{tied[1]}', which stands in for it"
                self.matched.notes.append(note)
            elif entry is not None:
                self.used[i].add(name)
            if entry is None and not copy:
                self.misfits.lacks(name, checkpoint)
            elif entry is not None:
                found[i] = entry
        return found

    def _account_for_extra(self, name: str, i: int, checkpoint: Checkpoint) -> None:
        """Drop a tensor that the first input lacks, by rule, or report it."""
        which = self.part.inputs[i]
        for pattern in self.recipe.drop:
            if matches(pattern, name):
                self.matched.dropped.append(Dropped(which, name, f"drop {pattern}"))
                return
        tied = self.stand_ins[0]
        if tied is not None and tied[0] == name and tied[1] in checkpoint.tensors:
            self.matched.must_equal.append((checkpoint.tensors[name], checkpoint.tensors[tied[1]]))
            reason = f"the first input ties it to {tied[1]}; checked to be equal"
            self.matched.dropped.append(Dropped(which, name, reason))
            return
        self.misfits.adds(name, checkpoint)


def _is_identity(method: Method, parameters: dict[str, Any]) -> bool:
    """Tell whether a method gives back its one input as it is: it takes one, no base, and nothing is asked of it."""
    return method.most == 1 and not method.has_base and all(value is None for value in parameters.values())


def _explain_experts(inputs: Sequence[Checkpoint], matched: Matched) -> None:
    """Put in front of what does not fit that the models have experts of different count."""
    found = [set(expert_counts({n: e.shape for n, e in c.tensors.items()}).values()) for c in inputs]
    if any(counts != found[0] for counts in found):
        told = (", ".join(map(str, sorted(counts))) or "none" for counts in found)
        listed = "; ".join(f"{count} in {label(c)}" for count, c in zip(told, inputs, strict=True))
        matched.faults.insert(
            0, f"experts of different count: {listed}; only models with as many experts can be merged"
        )


def _check_heads(inputs: Sequence[Checkpoint], parts: Sequence[Part], matched: Matched) -> None:
    """Report an output whose config, the first input's, ties a head that the last slice's model does not, or not so."""
    last = inputs[parts[-1].inputs[0]]
    if last is not inputs[0] and (_stand_in(last) is None) != (_stand_in(inputs[0]) is None):
        tied, untied = (last, inputs[0]) if _stand_in(last) else (inputs[0], last)
        matched.faults.append(
            f"{label(tied)} ties its head to its embedding and {label(untied)} does not,"
            " so that the head of the last slice does not fit the embedding of the first"
        )


def _check_curves(resolvers: Sequence[Resolver], notes: list[str]) -> None:
    """Note curves with more numbers than there are layers."""
    for key, rule, layers in dict.fromkeys(
        (key, rule, r.layers) for r in resolvers for key, s in r.schedules() for rule in s.rules
    ):
        if len(rule.values) > max(layers, 1):
            notes.append(
                f"{key_of(key)}: a curve of {len(rule.values)} numbers over {layers} layers does not reach all"
            )


def pattern_faults(recipe: Recipe, headers: Headers) -> list[str]:
    """Return patterns that match no tensor of the models that could be opened; none of them where nothing can be concluded."""
    opened, first = [c for c in headers.inputs if c], headers.inputs[0] if headers.inputs else None
    if not opened:
        return []
    everything = {name for c in opened for name in c.tensors}
    where = "no tensor" if len(opened) == len(headers.inputs) else "no tensor of the models that can be opened"
    at, faults = recipe.origin.at, []
    for pattern in recipe.copy:
        if not any(matches(pattern, n) for n in (first.tensors if first else everything)):
            faults.append(f"{at(('copy', pattern))}copy pattern '{shown(pattern)}' matches {where}")
    extra = everything - first.tensors.keys() if first else everything
    for pattern in recipe.drop if headers.is_whole else ():
        if not any(matches(pattern, n) for n in extra):
            told = (
                f"{at(('drop', pattern))}drop pattern '{shown(pattern)}' matches no tensor that the first input lacks"
            )
            faults.append(told)
    if recipe.slices and not headers.is_whole:
        return faults  # the layers' numbers in the output are not known
    names = set() if recipe.slices else everything
    for part in headers.parts if recipe.slices else ():
        given = [c for c in (headers.inputs[i] for i in part.inputs) if c]
        names |= {n for i, c in enumerate(given) for n in part.names(i, c.tensors)}
        names |= {part.output_name(n) for n in part.names(0, given[0].tensors)}
    for key, match in dict.fromkeys((key, rule.match) for key, s in schedules(recipe) for rule in s.rules):
        if not any(matches(match, name) for name in names):
            line = at((key, match))
            faults.append(f"{line}{recipe.origin.spelled(key)}: pattern '{shown(match)}' matches {where}")
    return faults


def _reason_to_copy(recipe: Recipe, name: str, entry: Entry) -> str:
    for pattern in recipe.copy:
        if matches(pattern, name):
            return f"copy {pattern}"
    if entry.dtype in INTEGER_DTYPES:
        return f"{entry.dtype} is not averaged"
    return "no elements" if entry.size == 0 else ""


def _stand_in(checkpoint: Checkpoint) -> tuple[str, str] | None:
    """Return (head, embedding) where the config ties them and the head is not stored."""
    if not checkpoint.config.get("tie_word_embeddings"):
        return None
    pair = tied_pair(checkpoint.tensors)
    return (pair[1], pair[0]) if pair and pair[1] not in checkpoint.tensors else None
