"""From a recipe to a plan, by headers alone: what is merged, copied and dropped, and everything that is wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.budget import Demand, choose_limits, machine_limit, usable_threads
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.names import layer_count
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.device import find_device
from weightsmith.errors import ArgumentError, MismatchError, WeightsmithError, nearest, raise_all, shown
from weightsmith.matching import Dropped, match_tensors
from weightsmith.merge import METHODS
from weightsmith.method import KthMagnitude, Method, Reduction, Statistics, Tile, reduce_in_memory
from weightsmith.recipe import Recipe, write_recipe
from weightsmith.reductions import is_reduced_first
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
    matched = match_tensors(recipe, method, inputs)
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
        dropped=tuple(matched.dropped),
        must_equal=tuple(matched.must_equal),
        notes=tuple(dict.fromkeys(matched.notes)),
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
