"""From a recipe to a plan, by headers alone: what is merged, copied and dropped, and everything that is wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.arguments import Real
from weightsmith.budget import Demand, Limits, choose_limits, machine_limit, usable_threads
from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, INTEGER_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.names import layer_count, layer_of, matches, tied_pair
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.device import find_device
from weightsmith.errors import ArgumentError, MismatchError, WeightsmithError, nearest, raise_all, shown
from weightsmith.merge import METHODS
from weightsmith.method import KthMagnitude, Method, Reduction, Statistics, Tile, reduce_in_memory
from weightsmith.recipe import Recipe, write_recipe
from weightsmith.schedule import Schedule
from weightsmith.stream import Job, Work
from weightsmith.tensor.coding import stored_bytes

DEFAULT_MEMORY = 1_000_000_000


@dataclass(frozen=True)
class Options:
    """How to run, apart from what the recipe says; none of it changes a byte of the result.

    `allow_nonfinite` lets NaN and infinity pass; `force_base` accepts a base that the models do not seem to come from.
    """

    memory_bytes: int = DEFAULT_MEMORY
    threads: int | None = None
    device: str = "cpu"
    follow_symlinks: bool = False
    allow_nonfinite: bool = False
    force_base: bool = False


@dataclass(frozen=True)
class Dropped:
    """A tensor of one model that has no place in the output."""

    model: int
    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """A recipe with its inputs opened and every tensor accounted for.

    Attributes:
        recipe: What was asked.
        method: The method.
        inputs: The base, where the method has one, then the models; the first lends names, dtypes and files.
        works: One per output tensor, in output order.
        dropped: Tensors of the inputs that are left out, and why.
        must_equal: Pairs of tensors dropped on the condition that they hold the same bytes.
        notes: What the user should know.
        job: What the engine needs.
        passes: How often the merged tensors are read.
        bytes_read: Over all passes.
        bytes_written: Of the output's tensors.
    """

    recipe: Recipe
    method: Method
    inputs: tuple[Checkpoint, ...]
    works: tuple[Work, ...]
    dropped: tuple[Dropped, ...]
    must_equal: tuple[tuple[Entry, Entry], ...]
    notes: tuple[str, ...]
    job: Job
    passes: int
    bytes_read: int
    bytes_written: int

    @property
    def merged(self) -> list[Work]:
        """The works that are computed."""
        return [w for w in self.works if w.parameters is not None]

    @property
    def copied(self) -> list[Work]:
        """The works that are copied byte for byte."""
        return [w for w in self.works if w.parameters is None]

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain data, for --json."""
        return {
            "method": self.method.name,
            "inputs": [c.reference for c in self.inputs],
            "merged": len(self.merged),
            "merged_elements": sum(w.size for w in self.merged),
            "copied": [{"name": w.name, "reason": w.reason} for w in self.copied],
            "dropped": [asdict(d) for d in self.dropped],
            "notes": list(self.notes),
            "passes": self.passes,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "disk_bytes": self.bytes_written,
            "peak_memory_bytes": self.job.limits.peak_bytes,
            "threads": self.job.limits.threads,
            "tile_elements": self.job.limits.tile,
        }


@dataclass
class _Draft:
    """What is gathered while the inputs are compared."""

    works: list[Work] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    must_equal: list[tuple[Entry, Entry]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def find_method(name: str) -> Method:
    """Return the merge method of that name; ArgumentError with the nearest names otherwise."""
    for method in METHODS:
        if method.name == name:
            return method
    raise ArgumentError(f"unknown method '{shown(name)}'", do=nearest(name, [m.name for m in METHODS]))


def make_plan(recipe: Recipe, options: Options | None = None) -> Plan:
    """Open the inputs, read headers, account for every tensor.

    Raises:
        ArgumentError: The recipe does not fit the method.
        CheckpointError: An input is damaged.
        MismatchError: The inputs do not fit each other; all differences together.
        ResourceError: The memory budget, or the machine, is too small.
    """
    options = options or Options()
    method = find_method(recipe.method)
    inputs = _open_inputs(recipe, method, options)
    draft = _Draft(notes=[note for c in inputs for note in c.notes])
    _compare(recipe, method, inputs, draft)
    write_recipe(recipe)  # what the record cannot hold is refused before any work
    if draft.faults:
        raise_all(
            draft.faults,
            MismatchError,
            f"merge {method.name}: the inputs do not fit each other",
            "List all differences with: weightsmith compare A B; take tensors from the first input unmerged with"
            " --copy PATTERN, leave out tensors that it lacks with --drop PATTERN",
        )
    works = tuple(draft.works)
    merged = [w for w in works if w.parameters is not None]
    if not merged:
        raise MismatchError(f"merge {method.name}: nothing to merge", expected="at least one tensor that is not copied")
    asked = _reductions(method, merged[0])
    job = _make_job(method, works, inputs, asked, options)
    digits = 4 if job.compute_dtype == "float64" else 2  # a magnitude is found 16 bits at a time
    more = sum(digits if isinstance(r, KthMagnitude) else 1 for r in asked)
    passes = [1 + more * is_reduced_first(method, w, job.limits.tile) for w in merged]
    stored = [sum(w.size * stored_bytes(e.dtype) for e in w.inputs) for w in merged]
    copied = sum(w.inputs[0].nbytes for w in works if w.parameters is None)
    return Plan(
        recipe=recipe,
        method=method,
        inputs=inputs,
        works=works,
        dropped=tuple(draft.dropped),
        must_equal=tuple(draft.must_equal),
        notes=tuple(dict.fromkeys(draft.notes)),
        job=job,
        passes=max(passes),
        bytes_read=sum(p * size for p, size in zip(passes, stored, strict=True)) + copied,
        bytes_written=copied + sum(w.size * stored_bytes(w.dtype) for w in merged),
    )


def _open_inputs(recipe: Recipe, method: Method, options: Options) -> tuple[Checkpoint, ...]:
    """Open base and models; faults of several inputs are reported together."""
    if method.has_base and recipe.base is None:
        raise ArgumentError(
            f"merge {method.name}: the base is missing",
            do="Pass --base, the model all others were trained from",
        )
    if not method.has_base and recipe.base is not None:
        raise ArgumentError(
            f"merge {method.name} takes no base",
            do="Leave it out, or list it as a model if it is to be merged",
        )
    references = ([recipe.base] if recipe.base is not None else []) + list(recipe.models)
    opened, faults = [], []
    for reference in references:
        try:
            opened.append(open_checkpoint(reference, follow_symlinks=options.follow_symlinks))
        except WeightsmithError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise_all([str(f) for f in faults], type(faults[0]), f"merge {method.name}: the inputs cannot be opened")
    seen: dict[tuple[str, ...], str] = {}
    for checkpoint in opened:
        files = tuple(map(os.path.realpath, checkpoint.files))
        if files in seen:
            raise ArgumentError(
                f"merge {method.name}: '{shown(checkpoint.reference)}' and '{shown(seen[files])}' are the same files",
                do="Name each model once, and the base only as the base",
            )
        seen[files] = checkpoint.reference
    return tuple(opened)


def _compare(recipe: Recipe, method: Method, inputs: Sequence[Checkpoint], draft: _Draft) -> None:
    """Account for every tensor of every input."""
    first = inputs[0]
    layers = layer_count(first.tensors)
    fixed = _fixed_parameters(recipe, method, len(inputs) - method.has_base)
    stand_ins = [_stand_in(c) for c in inputs]
    used: list[set[str]] = [set() for _ in inputs]
    for name, entry in first.tensors.items():
        if not name.isprintable():
            draft.faults.append(f"tensor '{shown(name)}' has control characters in its name, which are not written")
        used[0].add(name)
        copy = _reason_to_copy(recipe, name, entry)
        others = _find_others(name, inputs, stand_ins, copy, used, draft)
        if others is None:
            continue
        if copy:
            dtype = entry.dtype
            draft.works.append(Work(name, entry.shape, dtype, (entry,), layer_of(name), None, copy))
            continue
        if _fits(name, [entry, *others], draft):
            dtype = recipe.dtype or entry.dtype
            parameters = _resolve(fixed, name, layers, method, draft)
            if parameters is not None:
                draft.works.append(Work(name, entry.shape, dtype, (entry, *others), layer_of(name), parameters))
    for i, checkpoint in enumerate(inputs[1:], 1):
        for name in checkpoint.tensors:
            if name not in used[i]:
                _account_for_extra(name, i, recipe, inputs, stand_ins, draft)
    for pattern in recipe.copy:
        if not any(matches(pattern, n) for n in first.tensors):
            draft.faults.append(f"copy pattern '{shown(pattern)}' matches no tensor")
    for pattern in recipe.drop:
        if not any(matches(pattern, n) for c in inputs[1:] for n in c.tensors.keys() - first.tensors.keys()):
            draft.faults.append(f"drop pattern '{shown(pattern)}' matches no tensor that the first input lacks")


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
    draft: _Draft,
) -> list[Entry] | None:
    """Return the same tensor of the other inputs, tied ones through their embedding; None after a fault."""
    found, missing = [], []
    for i, checkpoint in enumerate(inputs[1:], 1):
        entry = checkpoint.tensors.get(name)
        tied = stand_ins[i]
        if entry is None and tied is not None and tied[0] == name:
            entry = checkpoint.tensors[tied[1]]
            draft.notes.append(f"{_label(inputs, i)} ties '{name}' to '{tied[1]}', which stands in for it")
        elif entry is not None:
            used[i].add(name)
        if entry is None and not copy:
            missing.append(i)
        elif entry is not None:
            found.append(entry)
    if missing:
        where = ", ".join(_label(inputs, i) for i in missing)
        hint = nearest(name, list(inputs[missing[0]].tensors)) if len(inputs[missing[0]].tensors) < 20_000 else ""
        draft.faults.append(f"tensor '{shown(name)}' is missing in {where}; {hint}")
        return None
    return found


def _fits(name: str, entries: Sequence[Entry], draft: _Draft) -> bool:
    for i, entry in enumerate(entries):
        if entry.dtype not in ARITHMETIC_DTYPES:
            draft.faults.append(
                f"tensor '{shown(name)}' of {entry.file.parent.name}/{entry.file.name} is {entry.dtype}, which is only"
                f" copied; arithmetic needs one of {', '.join(ARITHMETIC_DTYPES)}; use --copy '{shown(name)}'"
            )
            return False
        if entry.shape != entries[0].shape:
            draft.faults.append(
                f"tensor '{shown(name)}' has shape {entries[0].shape} in {entries[0].file} and {entry.shape} in {entry.file}"
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
    draft: _Draft,
) -> None:
    """Drop a tensor that the first input lacks, by rule, or report it."""
    entry = inputs[i].tensors[name]
    for pattern in recipe.drop:
        if matches(pattern, name):
            draft.dropped.append(Dropped(i, name, f"drop {pattern}"))
            return
    tied = stand_ins[0]
    if tied is not None and tied[0] == name and tied[1] in inputs[i].tensors:
        draft.must_equal.append((entry, inputs[i].tensors[tied[1]]))
        draft.dropped.append(Dropped(i, name, f"the first input ties it to {tied[1]}; checked to be equal"))
        return
    hint = nearest(name, list(inputs[0].tensors)) if len(inputs[0].tensors) < 20_000 else ""
    draft.faults.append(f"tensor '{shown(name)}' of {_label(inputs, i)} is not in the first input; {hint}")


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


def _resolve(fixed: dict[str, Any], name: str, layers: int, method: Method, draft: _Draft) -> dict[str, Any] | None:
    """Return the parameters of one tensor; None after a fault."""
    if not any(isinstance(v, Schedule) for v in fixed.values()):
        return fixed
    try:
        values = {n: v.value(name, layer_of(name), layers) if isinstance(v, Schedule) else v for n, v in fixed.items()}
        return {n: method.parameters[n].check(v, f"merge {method.name}") for n, v in values.items()}
    except ArgumentError as error:
        draft.faults.append(f"tensor '{shown(name)}': {error}")
        return None


def is_reduced_first(method: Method, work: Work, tile: int) -> bool:
    """Tell whether a work's statistics take passes of their own; else they are formed in memory, tile by tile."""
    scope = method.reduction_scope(work.parameters or {})
    return scope == "model" or (scope == "tensor" and work.size > tile)


def _reductions(method: Method, work: Work) -> list[Reduction]:
    """Return the reductions that the method will ask for, found by a dry run on one zero."""
    asked: list[Reduction] = []

    def listen() -> Statistics:
        statistics = method.statistics(work.parameters or {})
        answer: Any = None
        try:
            while statistics is not None:
                request = statistics.send(answer)
                asked.append(request)
                answer = yield request
        except StopIteration as done:
            return done.value

    others = np.zeros((len(work.inputs) - method.has_base, 1), np.float32)
    reduce_in_memory(listen(), np.zeros(1, np.float32), others, Tile(shape=(1,)))
    return asked


def _make_job(
    method: Method,
    works: Sequence[Work],
    inputs: Sequence[Checkpoint],
    asked: Sequence[Reduction],
    options: Options,
) -> Job:
    merged = [w for w in works if w.parameters is not None]
    wide = any(e.dtype == "F64" for w in merged for e in w.inputs)
    by_row = [w for w in merged if method.reduction_scope(w.parameters or {}) == "row"]
    lows = [e.low_rank for w in merged for e in w.inputs if e.low_rank is not None]
    demand = Demand(
        inputs=len(inputs),
        entries=sum(len(c.tensors) for c in inputs),
        itemsize=8 if wide else 4,
        ranks=max((len(r.ranks(10**6)) for r in asked if isinstance(r, KthMagnitude)), default=0),
        row=max((w.shape[-1] if w.shape else 1 for w in by_row), default=0),
        factor_bytes=max((4 * (p.down.size + p.up.size) for p in lows), default=0),
        on_device=options.device != "cpu",
    )
    threads = options.threads or usable_threads()
    device = find_device(options.device)
    limits = choose_limits(demand, options.memory_bytes, threads)
    ceiling = machine_limit()
    if ceiling is not None and limits.peak_bytes > ceiling:
        limits = choose_limits(demand, ceiling, threads, "the memory limit of this process (container or ulimit -v)")
    return Job(
        method,
        layer_count(inputs[0].tensors),
        "float64" if wide else "float32",
        limits,
        device,
        options.allow_nonfinite,
    )


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the file system that will hold folder."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
