"""From a recipe to a plan, by headers alone: what is merged, copied and dropped, and everything that is wrong."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from weightsmith.budget import usable_threads
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.tokenizer import TokenizerFiles
from weightsmith.engine.stream import Job, Work
from weightsmith.errors import ArgumentError, Gathered, MismatchError, WeightsmithError
from weightsmith.method import Method
from weightsmith.plan.forecast import make_job, reads, reductions
from weightsmith.plan.headers import Headers, find_method, read_headers
from weightsmith.plan.masking import apply_mask
from weightsmith.plan.matching import UNCHANGED, Dropped, Matched, match_tensors, pattern_faults
from weightsmith.plan.slicing import Part
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
        mask: Inside which the merge is; None without one.
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
    mask: Checkpoint | None = None

    @property
    def opened(self) -> tuple[Checkpoint, ...]:
        """Every checkpoint that is read: the inputs, and the mask."""
        return self.inputs if self.mask is None else (*self.inputs, self.mask)

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
            "mask": self.recipe.mask,
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


def make_plan(recipe: Recipe, options: Options | None = None, found: Gathered | None = None) -> Plan:
    """Open the inputs, read headers, account for every tensor.

    Args:
        recipe: What to merge.
        options: How to run.
        found: What was wrong with the recipe's text, raised together with all that is wrong here.

    Raises:
        ArgumentError: The recipe does not fit the method.
        CheckpointError: An input is damaged.
        MismatchError: The inputs do not fit each other; all differences together.
        ResourceError: The memory budget, or the machine, is too small.
    """
    options, found = options or Options(), found or Gathered()
    method = _method_of(recipe, found)
    headers = read_headers(recipe, method, options.follow_symlinks, found)
    if method is None:
        found.add(pattern_faults(recipe, headers), MismatchError, "the inputs do not fit each other")
        raise found.error()
    if not found.faults:
        try:
            write_recipe(recipe)  # what the record cannot hold is refused before any work
        except ArgumentError as error:
            found.add_errors([error], f"merge {method.name}: the recipe cannot be recorded")
    matched, aligned = _match(recipe, method, headers, found)
    found.raise_any()
    parts, inputs = headers.parts, aligned.inputs
    works, mask = tuple(matched.works), None
    if recipe.mask is not None:
        mask, works = apply_mask(recipe.mask, method, works, options.follow_symlinks)
    merged = [w for w in works if w.parameters is not None]
    if not merged and not any(w.reason == UNCHANGED for w in works):
        raise MismatchError(f"merge {method.name}: nothing to merge", expected="at least one tensor that is not copied")
    asked = reductions(method, merged[0]) if merged else []
    job = replace(
        make_job(
            method, works, inputs, asked, options.memory_bytes, options.threads or usable_threads(), options.device
        ),
        allow_nonfinite=options.allow_nonfinite,
        layers=matched.layers,
        precision=recipe.compute_dtype or "float32",
    )
    passes, read = reads(job, merged, asked)
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
        passes=passes,
        bytes_read=read + copied,
        bytes_written=copied + sum(w.size * stored_bytes(w.dtype) for w in merged),
        mask=mask,
    )


def _method_of(recipe: Recipe, found: Gathered) -> Method | None:
    """Return a recipe's method; None, with the fault in `found`, where there is none of that name."""
    try:
        return find_method(recipe.method)
    except ArgumentError as error:
        found.add_errors([error] if "method" not in found.doubtful else [], "the inputs cannot be used")
        return None


def _match(recipe: Recipe, method: Method, headers: Headers, found: Gathered) -> tuple[Matched, Aligned]:
    """Bring the vocabularies together and match the tensors, as far as there are inputs; what does not fit goes into `found`."""
    what = f"merge {method.name}: the inputs do not fit each other"
    aligned = Aligned(tuple(c for c in headers.inputs if c))
    is_plain = recipe.vocabulary is None and "vocabulary" not in found.doubtful
    is_aligned = is_plain
    if headers.is_whole and "vocabulary" not in found.doubtful:
        try:
            aligned = align(recipe, aligned.inputs)
            is_aligned = not aligned.faults
        except WeightsmithError as error:
            found.add_errors([error], what)
            is_aligned = False
    ready = replace(headers, inputs=aligned.inputs) if headers.is_whole else headers
    matched = match_tensors(recipe, method, ready, is_aligned)
    if is_plain:
        _compare_tokens(recipe, headers, aligned)
    matched.notes += aligned.notes
    given = recipe.origin.given
    found.add(
        [*aligned.faults, *matched.faults],
        MismatchError,
        what,
        "List all differences with: weightsmith compare A B; take tensors from the first input unmerged with"
        f" {given('copy', 'PATTERN', several=True)}, leave out tensors that it lacks with"
        f" {given('drop', 'PATTERN', several=True)}",
    )
    found.add(pattern_faults(recipe, headers), MismatchError, what)
    return matched, aligned


def _compare_tokens(recipe: Recipe, headers: Headers, aligned: Aligned) -> None:
    """Report models whose embeddings or heads would be merged, or stacked, with other tokens in their rows."""
    parts = headers.parts
    groups = {part.inputs for part in parts if part.has_start or part.has_end}
    if headers.is_whole:
        groups.add((parts[0].inputs[0], parts[-1].inputs[0]))
    for group in groups:
        opened = [c for c in (headers.inputs[i] for i in dict.fromkeys(group)) if c]
        faults, notes = compare_vocabularies(opened, recipe.copy)
        aligned.faults += [fault for fault in faults if fault not in aligned.faults]
        aligned.notes += notes


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the file system that will hold folder."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
