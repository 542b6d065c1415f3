"""From a recipe to a plan, by headers alone: what is merged, copied and dropped, and everything that is wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.budget import TOKEN_BYTES, Demand, choose_limits, machine_limit, usable_threads
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.names import layer_count
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.checkpoint.tokenizer import TokenizerFiles
from weightsmith.device import find_device
from weightsmith.engine.reductions import is_reduced_first, passes_of, ranks_of
from weightsmith.engine.stream import Job, Work
from weightsmith.errors import ArgumentError, MismatchError, WeightsmithError, nearest, raise_all, shown
from weightsmith.merge import METHODS
from weightsmith.method import KthLargest, Method, Reduction, Statistics, Tile, reduce_in_memory
from weightsmith.plan.matching import UNCHANGED, Dropped, match_tensors
from weightsmith.plan.settings import Resolver, resolver
from weightsmith.plan.slicing import Part, find_parts
from weightsmith.recipe import Recipe
from weightsmith.recipe.text import write_recipe
from weightsmith.tensor.coding import stored_bytes
from weightsmith.vocabulary import Aligned, Alignment, align
from weightsmith.vocabulary.tokens import compare_vocabularies

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
class Plan:
    """A recipe with its inputs opened and every tensor accounted for.

    Attributes:
        recipe: What was asked.
        method: The method.
        inputs: The base, where the method has one, then the models; the first lends names, dtypes and files.
        parts: The slices, each with its inputs; one part for whole models.
        works: One per output tensor, in output order.
        origins: With slices: per layer of the output, the input and the layer that lend names and dtypes.
        dropped: Tensors of the inputs that are left out, and why.
        must_equal: Pairs of tensors dropped on the condition that they hold the same bytes.
        notes: What the user should know.
        vocabulary: How the vocabularies were brought together; None without a rule.
        tokenizer: What becomes of the tokenizer's files.
        job: What the engine needs.
        passes: How often the merged tensors are read.
        bytes_read: Over all passes.
        bytes_written: Of the output's tensors.
    """

    recipe: Recipe
    method: Method
    inputs: tuple[Checkpoint, ...]
    parts: tuple[Part, ...]
    works: tuple[Work, ...]
    origins: tuple[tuple[int, int], ...]
    dropped: tuple[Dropped, ...]
    must_equal: tuple[tuple[Entry, Entry], ...]
    notes: tuple[str, ...]
    vocabulary: Alignment | None
    tokenizer: TokenizerFiles
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

    @property
    def parameters(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """The parameters that hold for all merged tensors, and by name those that differ, by tensor."""
        given = {w.name: w.parameters or {} for w in self.merged}
        first = next(iter(given.values()), {})
        varying = [n for n in first if any(p[n] != first[n] for p in given.values())]
        shared = {n: v for n, v in first.items() if n not in varying}
        return shared, {n: {tensor: p[n] for tensor, p in given.items()} for n in varying}

    def layer_sources(self) -> list[list[tuple[str, int]]]:
        """Return, per layer of the output, its sources: reference and layer of each. [] for whole models."""
        return [
            [(self.inputs[i].reference, start + k) for i, start in zip(part.inputs, part.starts, strict=True)]
            for part in self.parts
            if part.label
            for k in range(part.count)
        ]

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain data, for --json."""
        return {
            "method": self.method.name,
            "inputs": [c.reference for c in self.inputs],
            "compute_dtype": self.recipe.compute_dtype or self.job.compute_dtype,
            "parameters": dict(zip(("shared", "by_tensor"), self.parameters, strict=True)),
            "layers": [[{"model": m, "layer": n} for m, n in sources] for sources in self.layer_sources()],
            "merged": len(self.merged),
            "merged_elements": sum(w.size for w in self.merged),
            "copied": [{"name": w.name, "reason": w.reason} for w in self.copied],
            "dropped": [asdict(d) for d in self.dropped],
            "vocabulary": self.vocabulary and self.vocabulary.table(),
            "notes": list(self.notes),
            "passes": self.passes,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "disk_bytes": self.bytes_written,
            "peak_memory_bytes": self.job.limits.peak_bytes,
            "threads": self.job.limits.threads,
            "tile_elements": self.job.limits.tile,
        }


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
    opened, parts, resolvers = _read_headers(recipe, method, options)
    aligned = align(recipe, opened)
    inputs = aligned.inputs
    matched = match_tensors(recipe, method, inputs, parts, resolvers)
    if recipe.vocabulary is None:
        _compare_tokens(recipe, opened, parts, aligned)
    matched.faults[:0] = aligned.faults
    matched.notes += aligned.notes
    write_recipe(recipe)  # what the record cannot hold is refused before any work
    if matched.faults:
        raise_all(
            matched.faults,
            MismatchError,
            f"merge {method.name}: the inputs do not fit each other",
            "List all differences with: weightsmith compare A B; take tensors from the first input unmerged with"
            " --copy PATTERN, leave out tensors that it lacks with --drop PATTERN",
        )
    works = tuple(matched.works)
    merged = [w for w in works if w.parameters is not None]
    if not merged and not any(w.reason == UNCHANGED for w in works):
        raise MismatchError(f"merge {method.name}: nothing to merge", expected="at least one tensor that is not copied")
    asked = _reductions(method, merged[0]) if merged else []
    job = replace(
        _make_job(method, works, inputs, asked, options),
        layers=matched.layers,
        precision=recipe.compute_dtype or "float32",
    )
    scope = method.reduction_scope(merged[0].parameters or {}) if merged else None
    more = sum(passes_of(r, scope, job.compute_dtype) for r in asked)
    passes = [1 + more * is_reduced_first(method, w, job.limits.tile) for w in merged]
    stored = [sum(w.size * stored_bytes(e.dtype) for e in w.inputs) for w in merged]
    copied = sum(w.inputs[0].nbytes for w in works if w.parameters is None)
    return Plan(
        recipe=recipe,
        method=method,
        inputs=inputs,
        parts=tuple(parts),
        works=works,
        origins=tuple(matched.origins),
        dropped=tuple(matched.dropped),
        must_equal=tuple(matched.must_equal),
        notes=tuple(dict.fromkeys(matched.notes)),
        vocabulary=aligned.alignment,
        tokenizer=aligned.output,
        job=job,
        passes=max(passes, default=1),
        bytes_read=sum(p * size for p, size in zip(passes, stored, strict=True)) + copied,
        bytes_written=copied + sum(w.size * stored_bytes(w.dtype) for w in merged),
    )


def _compare_tokens(recipe: Recipe, inputs: Sequence[Checkpoint], parts: Sequence[Part], aligned: Aligned) -> None:
    """Report models whose embeddings or heads would be merged, or stacked, with other tokens in their rows."""
    groups = {part.inputs for part in parts if part.has_start or part.has_end}
    groups.add((parts[0].inputs[0], parts[-1].inputs[0]))
    for group in groups:
        faults, notes = compare_vocabularies([inputs[i] for i in dict.fromkeys(group)], recipe.copy)
        aligned.faults += [fault for fault in faults if fault not in aligned.faults]
        aligned.notes += notes


def _read_headers(
    recipe: Recipe, method: Method, options: Options
) -> tuple[tuple[Checkpoint, ...], list[Part], list[Resolver]]:
    """Open the inputs and check slices and parameters; what is wrong with any of them is reported together."""
    _check_base_given(recipe, method)
    opened: list[Checkpoint | None] = []
    problems: list[WeightsmithError] = []
    for reference in recipe.references:
        try:
            opened.append(open_checkpoint(reference, follow_symlinks=options.follow_symlinks))
        except WeightsmithError as error:
            opened.append(None)
            problems.append(error)
    parts, faults = find_parts(recipe, method, opened)
    problems += [ArgumentError(fault) for fault in faults]
    resolvers = []
    for part in parts:
        where = f"{part.label}: " if part.label else ""
        try:
            _check_distinct([c for c in (opened[i] for i in part.inputs) if c], method)
            if len(part.inputs) > method.has_base or not part.label:
                resolvers.append(resolver(recipe, method, part))
            else:
                resolvers.append(Resolver(method, {}, {}, {}, part.count))  # the base alone, which is copied
        except WeightsmithError as error:
            problems.append(type(error)(f"{where}{error}") if where else error)
    if not problems and len(parts) > 1:
        problems += _scope_problems(method, parts, resolvers)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        told = list(dict.fromkeys(map(str, problems)))
        raise_all(told, type(problems[0]), f"merge {method.name}: the inputs cannot be used")
    return tuple(c for c in opened if c), parts, resolvers


def _check_base_given(recipe: Recipe, method: Method) -> None:
    if method.has_base and recipe.base is None and not recipe.slices:
        raise ArgumentError(
            f"merge {method.name}: the base is missing",
            do="Pass --base, the model all others were trained from",
        )
    if not method.has_base and recipe.base is not None:
        raise ArgumentError(
            f"merge {method.name} takes no base",
            do="Leave it out, or list it as a model if it is to be merged",
        )


def _check_distinct(opened: Sequence[Checkpoint], method: Method) -> None:
    """Refuse two references to the same files among the inputs of one tensor."""
    seen: dict[tuple[str, ...], str] = {}
    for checkpoint in opened:
        files = tuple(map(os.path.realpath, checkpoint.files))
        if files in seen:
            raise ArgumentError(
                f"merge {method.name}: '{shown(checkpoint.reference)}' and '{shown(seen[files])}' are the same files",
                do="Name each model once, and the base only as the base",
            )
        seen[files] = checkpoint.reference


def _scope_problems(method: Method, parts: Sequence[Part], resolvers: Sequence[Resolver]) -> list[ArgumentError]:
    """Return why slices cannot share a reduction over the whole model."""
    scoped = [r.example for p, r in zip(parts, resolvers, strict=True) if len(p.inputs) > method.has_base]
    asked = [tuple((n, f.get(n)) for n in sorted({*method.prepared_by, "scope"})) for f in scoped]
    is_whole = any(method.reduction_scope(f) == "model" for f in scoped)
    if is_whole and (len(set(asked)) > 1 or len({p.inputs for p in parts}) > 1):
        return [
            ArgumentError(
                f"merge {method.name}: scope",
                expected="the same models and parameters in every slice, since it is the whole model",
                got="slices that differ",
                do="Set scope to tensor",
            )
        ]
    return []


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


def _ranked_size(method: Method, merged: Sequence[Work], asked: Sequence[Reduction]) -> int:
    """Return the size of the largest scope in which k-th values may be found in one pass; 0 for none."""
    scopes = [(method.reduction_scope(w.parameters or {}), w.size) for w in merged]
    over_model = sum(n for s, n in scopes if s == "model") if any(isinstance(r, KthLargest) for r in asked) else 0
    return max([over_model, *(n for s, n in scopes if s == "tensor")])


def _make_job(
    method: Method,
    works: Sequence[Work],
    inputs: Sequence[Checkpoint],
    asked: Sequence[Reduction],
    options: Options,
) -> Job:
    merged = [w for w in works if w.parameters is not None]
    wide = any(e.dtype == "F64" for w in merged for e in w.inputs)
    by_row = [w for w in merged if method.takes_rows(w.parameters or {})]
    lows = [e.low_rank for w in merged for e in w.inputs if e.low_rank is not None]
    demand = Demand(
        inputs=len(inputs),
        entries=sum(len(c.tensors) for c in inputs),
        itemsize=8 if wide else 4,
        ranks=max((ranks_of(r, len(merged[0].inputs) - method.has_base) for r in asked), default=0),
        ranked=_ranked_size(method, merged, asked),
        row=max((w.shape[-1] if w.shape else 1 for w in by_row), default=0),
        factor_bytes=max((4 * (p.down.size + p.up.size) for p in lows), default=0),
        matrix_bytes=max((_matrix_bytes(method, w, wide) for w in merged), default=0),
        token_bytes=TOKEN_BYTES * len(inputs) * max((e.shape[0] for w in works for e in w.inputs if e.rows), default=0),
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


def _matrix_bytes(method: Method, work: Work, wide: bool) -> int:
    """Return what one thread holds for a tensor taken as a matrix: base, one input, the result, its bytes, and the method's."""
    if not method.takes_matrix(work.shape):
        return 0
    held = work.size * (3 * (8 if wide else 4) + 8)
    return held + method.workspace_bytes(work.shape, len(work.inputs) - method.has_base)


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the file system that will hold folder."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
