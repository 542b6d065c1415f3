"""The same tensor in every input: what is merged, copied or dropped, and every way in which the inputs do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, INTEGER_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.names import expert_counts, layer_of, matches, tied_pair
from weightsmith.engine.stream import Work
from weightsmith.errors import ArgumentError, nearest, shown
from weightsmith.method import Method
from weightsmith.plan.settings import Resolver
from weightsmith.plan.slicing import Part
from weightsmith.recipe import Recipe
from weightsmith.recipe.setting_text import key_of

UNCHANGED = "unchanged"  # why a tensor is copied that the method would give back as it is
_VOCABULARY = " (another vocabulary?); `vocabulary:` in a recipe aligns them"


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


def match_tensors(
    recipe: Recipe, method: Method, inputs: Sequence[Checkpoint], parts: Sequence[Part], resolvers: Sequence[Resolver]
) -> Matched:
    """Find each tensor of a part's first input in its others, and account for every tensor of every input.

    Args:
        recipe: What was asked.
        method: Its method.
        inputs: The checkpoints of `recipe.references`.
        parts: The parts of the output.
        resolvers: The parameters of each.
    """
    matched = Matched(notes=[note for c in inputs for note in c.notes])
    for part, parameters in zip(parts, resolvers, strict=True):
        _Matching(recipe, method, [inputs[i] for i in part.inputs], part, parameters, matched).run()
        matched.layers = max(matched.layers, part.first + part.count)
        if part.label:
            matched.origins += [(part.inputs[0], part.starts[0] + k) for k in range(part.count)]
    if matched.faults:
        _explain_experts(inputs, matched)
    _check_heads(inputs, parts, matched)
    _check_patterns(recipe, inputs, matched)
    _check_schedules(inputs, parts, resolvers, matched)
    return matched


@dataclass
class _Matching:
    """The matching of one part; `inputs` are the part's own."""

    recipe: Recipe
    method: Method
    inputs: Sequence[Checkpoint]
    part: Part
    parameters: Resolver
    matched: Matched

    def run(self) -> None:
        """Make the works of this part, and account for what they leave."""
        inputs, part = self.inputs, self.part
        self.stand_ins = [_stand_in(c) for c in inputs]
        self.used: list[set[str]] = [set() for _ in inputs]
        for own in list(part.names(0, inputs[0].tensors)):
            self._match(own, part.output_name(own))
        for i, checkpoint in enumerate(inputs[1:], 1):
            for name in part.names(i, checkpoint.tensors):
                if name not in self.used[i]:
                    self._account_for_extra(name, i)

    def _match(self, own: str, name: str) -> None:
        """Make the work of one tensor of the first input, called `name` in the output, or tell why there is none."""
        matched, entry = self.matched, self.inputs[0].tensors[own]
        if not own.isprintable():
            matched.faults.append(f"tensor '{shown(own)}' has control characters in its name, which are not written")
        copy = _reason_to_copy(self.recipe, name, entry)
        if not copy and len(self.inputs) == 1 and self.method.has_base:
            copy = f"{self.part.label} has the base alone"
        if copy and entry.low_rank is not None:
            matched.faults.append(f"tensor '{shown(own)}' carries an adapter, so its bytes cannot be copied ({copy})")
        others = self._find_others(own, copy)
        if others is None:
            return
        layer, dtype = layer_of(name), self.recipe.dtype or entry.dtype
        if not copy:
            names = [self.part.own_name(own, i) for i in range(self.method.has_base, len(self.inputs))]
            try:
                parameters = self.parameters.resolve(name, names, self.part.place(own))
            except ArgumentError as error:
                matched.faults.append(f"tensor '{shown(name)}': {error}")
                return
            changes = entry.low_rank is not None or (dtype != entry.dtype and entry.dtype in ARITHMETIC_DTYPES)
            if changes or not _is_identity(self.method, parameters):
                if _fits(own, [entry, *others], matched):
                    matched.works.append(Work(name, entry.shape, dtype, (entry, *others), layer, parameters))
                return
        matched.works.append(Work(name, entry.shape, entry.dtype, (entry,), layer, None, copy or UNCHANGED))

    def _find_others(self, own: str, copy: str) -> list[Entry] | None:
        """Return the same tensor of the other inputs, tied ones through their embedding; None after a fault."""
        found, missing = [], []
        for i, checkpoint in enumerate(self.inputs[1:], 1):
            name, tied = self.part.own_name(own, i), self.stand_ins[i]
            entry = checkpoint.tensors.get(name)
            if entry is None and tied is not None and tied[0] == name:
                entry = checkpoint.tensors[tied[1]]
                note = f"{_label(checkpoint)} ties '{name}' to '{tied[1]}', which stands in for it"
                self.matched.notes.append(note)
            elif entry is not None:
                self.used[i].add(name)
            if entry is None and not copy:
                missing.append((name, checkpoint))
            elif entry is not None:
                found.append(entry)
        if missing:
            where = ", ".join(_label(checkpoint) for _, checkpoint in missing)
            name, first = missing[0]
            self.matched.faults.append(f"tensor '{shown(name)}' is missing in {where}; {_hint(name, first)}")
            return None
        return found

    def _account_for_extra(self, name: str, i: int) -> None:
        """Drop a tensor that the first input lacks, by rule, or report it."""
        checkpoint, which = self.inputs[i], self.part.inputs[i]
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
        self.matched.faults.append(
            f"tensor '{shown(name)}' of {_label(checkpoint)} is not in "
            + (f"{_label(self.inputs[0])}, the first of {self.part.label}" if self.part.label else "the first input")
            + f"; {_hint(name, self.inputs[0])}"
        )


def _is_identity(method: Method, parameters: dict[str, Any]) -> bool:
    """Tell whether a method gives back its one input as it is: it takes one, no base, and nothing is asked of it."""
    return method.most == 1 and not method.has_base and all(value is None for value in parameters.values())


def _explain_experts(inputs: Sequence[Checkpoint], matched: Matched) -> None:
    """Put in front of what does not fit that the models have experts of different count."""
    found = [set(expert_counts({n: e.shape for n, e in c.tensors.items()}).values()) for c in inputs]
    if any(counts != found[0] for counts in found):
        told = (", ".join(map(str, sorted(counts))) or "none" for counts in found)
        listed = "; ".join(f"{count} in {_label(c)}" for count, c in zip(told, inputs, strict=True))
        matched.faults.insert(
            0, f"experts of different count: {listed}; only models with as many experts can be merged"
        )


def _check_heads(inputs: Sequence[Checkpoint], parts: Sequence[Part], matched: Matched) -> None:
    """Report an output whose config, the first input's, ties a head that the last slice's model does not, or not so."""
    last = inputs[parts[-1].inputs[0]]
    if last is not inputs[0] and (_stand_in(last) is None) != (_stand_in(inputs[0]) is None):
        tied, untied = (last, inputs[0]) if _stand_in(last) else (inputs[0], last)
        matched.faults.append(
            f"{_label(tied)} ties its head to its embedding and {_label(untied)} does not,"
            " so that the head of the last slice does not fit the embedding of the first"
        )


def _check_schedules(
    inputs: Sequence[Checkpoint], parts: Sequence[Part], resolvers: Sequence[Resolver], matched: Matched
) -> None:
    """Report patterns of schedules that match nothing; note curves with more numbers than there are layers."""
    names: set[str] = {part.output_name(n) for part in parts for n in part.names(0, inputs[part.inputs[0]].tensors)}
    names |= {n for part in parts for i, which in enumerate(part.inputs) for n in part.names(i, inputs[which].tensors)}
    given = {(key, rule): r.layers for r in resolvers for key, s in r.schedules() for rule in s.rules}
    for key, match in dict.fromkeys((key, rule.match) for key, rule in given):
        if not any(matches(match, name) for name in names):
            matched.faults.append(f"{key_of(key)}: pattern '{shown(match)}' matches no tensor")
    for (key, rule), layers in given.items():
        if len(rule.values) > max(layers, 1):
            matched.notes.append(
                f"{key_of(key)}: a curve of {len(rule.values)} numbers over {layers} layers does not reach all"
            )


def _check_patterns(recipe: Recipe, inputs: Sequence[Checkpoint], matched: Matched) -> None:
    """Report patterns that select nothing."""
    first = inputs[0].tensors
    for pattern in recipe.copy:
        if not any(matches(pattern, n) for n in first):
            matched.faults.append(f"copy pattern '{shown(pattern)}' matches no tensor")
    for pattern in recipe.drop:
        if not any(matches(pattern, n) for c in inputs[1:] for n in c.tensors.keys() - first.keys()):
            matched.faults.append(f"drop pattern '{shown(pattern)}' matches no tensor that the first input lacks")


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


def _fits(name: str, entries: Sequence[Entry], matched: Matched) -> bool:
    for i, entry in enumerate(entries):
        if entry.dtype not in ARITHMETIC_DTYPES:
            matched.faults.append(
                f"tensor '{shown(name)}' of {entry.file.parent.name}/{entry.file.name} is {entry.dtype}, which is only"
                f" copied; arithmetic needs one of {', '.join(ARITHMETIC_DTYPES)}; use --copy '{shown(name)}'"
            )
            return False
        if entry.shape != entries[0].shape:
            matched.faults.append(
                f"tensor '{shown(name)}' has shape {entries[0].shape} in {entries[0].file}"
                f" and {entry.shape} in {entry.file}"
                + (" (transposed?)" if entry.shape == entries[0].shape[::-1] else "")
                + (_VOCABULARY if i and layer_of(name) is None and entry.shape[1:] == entries[0].shape[1:] else "")
            )
            return False
    return True


def _hint(name: str, checkpoint: Checkpoint) -> str:
    return nearest(name, list(checkpoint.tensors)) if len(checkpoint.tensors) < 20_000 else ""


def _label(checkpoint: Checkpoint) -> str:
    return f"'{shown(checkpoint.reference)}'"
