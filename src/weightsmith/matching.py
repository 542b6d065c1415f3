"""The same tensor in every input: what is merged, copied or dropped, and every way in which the inputs do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.arguments import Real
from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, INTEGER_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.names import layer_count, layer_of, matches, tied_pair
from weightsmith.errors import ArgumentError, nearest, shown
from weightsmith.method import Method
from weightsmith.recipe import Recipe
from weightsmith.schedule import Schedule
from weightsmith.stream import Work


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
        dropped: Tensors left out, and why.
        must_equal: Pairs of tensors; the first is dropped on the condition that it holds the second's bytes.
        notes: What the user should know.
        faults: What does not fit; empty where a merge is possible.
    """

    works: list[Work] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    must_equal: list[tuple[Entry, Entry]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def match_tensors(recipe: Recipe, method: Method, inputs: Sequence[Checkpoint]) -> Matched:
    """Find each tensor of the first input in all others, and account for every tensor of every input.

    Raises:
        ArgumentError: A parameter of the recipe does not fit the method.
    """
    first, matched = inputs[0], Matched(notes=[note for c in inputs for note in c.notes])
    fixed = _fixed_parameters(recipe, method, len(inputs) - method.has_base)
    stand_ins = [_stand_in(c) for c in inputs]
    used: list[set[str]] = [set() for _ in inputs]
    layers = layer_count(first.tensors)
    for name, entry in first.tensors.items():
        if not name.isprintable():
            matched.faults.append(f"tensor '{shown(name)}' has control characters in its name, which are not written")
        copy = _reason_to_copy(recipe, name, entry)
        if copy and entry.low_rank is not None:
            matched.faults.append(f"tensor '{shown(name)}' carries an adapter, so its bytes cannot be copied ({copy})")
        others = _find_others(name, inputs, stand_ins, copy, used, matched)
        if others is None:
            continue
        if copy:
            matched.works.append(Work(name, entry.shape, entry.dtype, (entry,), layer_of(name), None, copy))
        elif _fits(name, [entry, *others], matched):
            parameters = _resolve(fixed, name, layers, method, matched)
            if parameters is not None:
                dtype = recipe.dtype or entry.dtype
                matched.works.append(Work(name, entry.shape, dtype, (entry, *others), layer_of(name), parameters))
    for i, checkpoint in enumerate(inputs[1:], 1):
        for name in checkpoint.tensors:
            if name not in used[i]:
                _account_for_extra(name, i, recipe, inputs, stand_ins, matched)
    _check_patterns(recipe, inputs, matched)
    return matched


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


def _find_others(
    name: str,
    inputs: Sequence[Checkpoint],
    stand_ins: Sequence[tuple[str, str] | None],
    copy: str,
    used: list[set[str]],
    matched: Matched,
) -> list[Entry] | None:
    """Return the same tensor of the other inputs, tied ones through their embedding; None after a fault."""
    found, missing = [], []
    for i, checkpoint in enumerate(inputs[1:], 1):
        entry = checkpoint.tensors.get(name)
        tied = stand_ins[i]
        if entry is None and tied is not None and tied[0] == name:
            entry = checkpoint.tensors[tied[1]]
            matched.notes.append(f"{_label(inputs, i)} ties '{name}' to '{tied[1]}', which stands in for it")
        elif entry is not None:
            used[i].add(name)
        if entry is None and not copy:
            missing.append(i)
        elif entry is not None:
            found.append(entry)
    if missing:
        where = ", ".join(_label(inputs, i) for i in missing)
        hint = nearest(name, list(inputs[missing[0]].tensors)) if len(inputs[missing[0]].tensors) < 20_000 else ""
        matched.faults.append(f"tensor '{shown(name)}' is missing in {where}; {hint}")
        return None
    return found


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
                + (" (another vocabulary?)" if i and entry.shape[1:] == entries[0].shape[1:] else "")
            )
            return False
    return True


def _account_for_extra(
    name: str,
    i: int,
    recipe: Recipe,
    inputs: Sequence[Checkpoint],
    stand_ins: Sequence[tuple[str, str] | None],
    matched: Matched,
) -> None:
    """Drop a tensor that the first input lacks, by rule, or report it."""
    entry = inputs[i].tensors[name]
    for pattern in recipe.drop:
        if matches(pattern, name):
            matched.dropped.append(Dropped(i, name, f"drop {pattern}"))
            return
    tied = stand_ins[0]
    if tied is not None and tied[0] == name and tied[1] in inputs[i].tensors:
        matched.must_equal.append((entry, inputs[i].tensors[tied[1]]))
        matched.dropped.append(Dropped(i, name, f"the first input ties it to {tied[1]}; checked to be equal"))
        return
    hint = nearest(name, list(inputs[0].tensors)) if len(inputs[0].tensors) < 20_000 else ""
    matched.faults.append(f"tensor '{shown(name)}' of {_label(inputs, i)} is not in the first input; {hint}")


def _label(inputs: Sequence[Checkpoint], i: int) -> str:
    return f"'{shown(inputs[i].reference)}'"


def _fixed_parameters(recipe: Recipe, method: Method, models: int) -> dict[str, Any]:
    """Return the recipe's parameters, schedules kept, the rest checked."""
    given: dict[str, Any] = dict(recipe.parameters)
    if recipe.coefficients is not None:
        if "coefficients" not in method.parameters:
            raise ArgumentError(f"merge {method.name} takes no coefficients", do="Leave coefficients out of the recipe")
        given["coefficients"] = recipe.coefficients
    if "seed" in method.parameters:
        given.setdefault("seed", recipe.seed)
    plain = {n: v for n, v in given.items() if not isinstance(v, Schedule)}
    checked = method.check(plain, models)
    for name, value in given.items():
        if not isinstance(value, Schedule):
            continue
        method.check({name: value.rules[0].values[0]}, models)
        if not isinstance(method.parameters[name].kind, Real):
            raise ArgumentError(f"merge {method.name}: {name}", expected="one value for all tensors", got="a schedule")
        if name in method.prepared_by and method.reduction_scope(checked) == "model":
            raise ArgumentError(
                f"merge {method.name}: {name}",
                expected="one value, since its scope is the whole model",
                got="a schedule",
                do="Set scope to tensor, or give one value",
            )
        checked[name] = value
    return checked


def _resolve(fixed: dict[str, Any], name: str, layers: int, method: Method, matched: Matched) -> dict[str, Any] | None:
    """Return the parameters of one tensor; None after a fault."""
    if not any(isinstance(v, Schedule) for v in fixed.values()):
        return fixed
    try:
        values = {n: v.value(name, layer_of(name), layers) if isinstance(v, Schedule) else v for n, v in fixed.items()}
        return {n: method.parameters[n].check(v, f"merge {method.name}") for n, v in values.items()}
    except ArgumentError as error:
        matched.faults.append(f"tensor '{shown(name)}': {error}")
        return None
