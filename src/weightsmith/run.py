"""Run a plan: stream tensors through the method, write the result and its record, publish by one rename."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.chain import plan_step, plan_steps
from weightsmith.checkpoint.entry import Checkpoint
from weightsmith.checkpoint.read import Files, check_unchanged, fingerprint
from weightsmith.checkpoint.write import Output, check_output, lay_out
from weightsmith.dialect import Step, is_dialect, read_steps
from weightsmith.display import Pictured
from weightsmith.engine.stream import Stream, Work
from weightsmith.errors import ArgumentError, Gathered, MismatchError, ResourceError, shown
from weightsmith.merge import METHODS
from weightsmith.plan import Options, Plan, free_bytes, make_plan
from weightsmith.plan.headers import find_method
from weightsmith.plan.settings import known_parameters, per_model, split_settings
from weightsmith.produce import produce, reduce_all
from weightsmith.recipe import DTYPES, Origin, Recipe, Vocabulary, parse_size
from weightsmith.recipe.text import read_recipe
from weightsmith.record import finish
from weightsmith.tensor.coding import stored_bytes

Progress = Callable[[str, int, int], None]  # stage, bytes done, bytes in all

DEFAULT_SHARD_BYTES = 5_000_000_000
STEPS = ".steps-"  # within the name of the folder of results that only later documents use
SAMPLED_TENSORS = 64
SAMPLED_ELEMENTS = 4096


@dataclass(frozen=True)
class Result(Pictured):
    """What a run made.

    Attributes:
        out: The published folder.
        record: The content of its edit.json.
        seconds: Wall time.
        bytes_read: Bytes of input tensors, over all passes.
        bytes_written: Bytes of output tensors.
    """

    out: Path
    record: dict[str, Any]
    seconds: float
    bytes_read: int
    bytes_written: int


def merge(
    method: str | Path | Recipe,
    *,
    out: str | Path,
    base: str | Path | None = None,
    models: Sequence[str | Path] = (),
    coefficients: Sequence[float] | None = None,
    copy: Sequence[str] = (),
    drop: Sequence[str] = (),
    mask: str | Path | None = None,
    dtype: str | None = None,
    tokenizer: str | None = None,
    shard_size: str | int = DEFAULT_SHARD_BYTES,
    options: Options | None = None,
    force: bool = False,
    code: bool = False,
    digest_inputs: bool = False,
    peer_exact: bool = False,
    progress: Progress | None = None,
    **parameters: Any,
) -> Result:
    """Merge models into one and publish it as a checkpoint folder.

    Args:
        method: A method's name, a recipe file (ours, or mergekit's), or a Recipe.
        out: The new folder; it appears complete or not at all.
        base: The model that all others were trained from, where the method takes one.
        models: The models to merge, in order: files, folders, `model+adapter`, hub ids.
        coefficients: One factor per model, for the methods that take them.
        copy: Globs of tensors taken from the first input unmerged.
        drop: Globs of tensors that the first input lacks and that are left out.
        mask: BOOL tensors with the output's names: the merge is inside, the first input's bytes stay outside.
        dtype: Output dtype: float64, float32, float16 or bfloat16; default: as in the first input.
        tokenizer: The output's vocabulary where the models' differ: "base", "union" or one of the models.
        shard_size: Bytes per output file, a number or such as "5GB".
        options: Memory, threads, device and the like; nothing in them changes the result.
        force: Replace an older output, once the new one is complete.
        code: Carry custom code files over as well.
        digest_inputs: Record the SHA-256 of every input file.
        peer_exact: With mergekit's recipes: reproduce its harmless defects; `weightsmith convert-recipe --help` lists them.
        progress: Called with (stage, bytes done, bytes in all).
        **parameters: The method's parameters, such as density=0.2.

    Raises:
        ArgumentError, CheckpointError, MismatchError, NonFiniteError, ResourceError: See `errors`; nothing is published.

    The same on the command line: weightsmith merge ties --base B --model A1 --model A2 --density 0.2 --out OUT
    """
    options, found = options or Options(), Gathered()
    if not isinstance(method, Recipe) and _is_file(method) and is_dialect(method):
        given = (base, models, coefficients, copy, drop, mask, dtype, tokenizer, parameters)
        if any(given) or shard_size != DEFAULT_SHARD_BYTES:
            raise _beside_recipe()
        writing = {"force": force, "code": code, "digest_inputs": digest_inputs, "progress": progress}
        steps = read_steps(method, found)
        return merge_steps(steps, Path(out), options, found, peer_exact=peer_exact, **writing)
    recipe = make_recipe(
        method,
        found=found,
        base=base,
        models=models,
        coefficients=coefficients,
        copy=copy,
        drop=drop,
        mask=mask,
        dtype=dtype,
        tokenizer=tokenizer,
        shard_size=shard_size,
        **parameters,
    )
    return execute(
        make_plan(recipe, options, found),
        Path(out),
        force=force,
        code=code,
        digest_inputs=digest_inputs,
        force_base=options.force_base,
        progress=progress,
    )


def merge_steps(
    steps: Sequence[Step],
    out: Path,
    options: Options,
    found: Gathered | None = None,
    *,
    peer_exact: bool = False,
    **writing: Any,
) -> Result:
    """Merge what the documents of a recipe file in mergekit's dialect say, each in its turn; the last is the result.

    The others' results lie in a folder beside `out` for as long as they are needed. All documents are planned, by headers
    alone, before the first is run. `found` is what was wrong with their text, `writing` what `execute` takes.
    """
    if len(steps) > 1 or (found and found.faults):
        plan_steps(steps, options, found, peer_exact=peer_exact)
    writing["force_base"] = options.force_base
    scratch = out.absolute().parent / f".{out.name}{STEPS}{secrets.token_hex(4)}"
    places: dict[str, str] = {}
    try:
        for step in steps[:-1]:
            place = scratch / str(step.document.name)
            plan = plan_step(step, options, places, peer_exact=peer_exact)
            execute(plan, place, **(writing | {"force": False}))
            places[place.name] = str(place)
        return execute(plan_step(steps[-1], options, places, peer_exact=peer_exact), out, **writing)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_file(method: str | Path) -> bool:
    return isinstance(method, Path) or method.endswith((".yaml", ".yml"))


def _beside_recipe() -> ArgumentError:
    return ArgumentError("a recipe says what to merge", expected="nothing of that beside it", do="Edit the recipe")


def make_recipe(
    method: str | Path | Recipe,
    *,
    base: str | Path | None = None,
    models: Sequence[str | Path] = (),
    coefficients: Sequence[float] | None = None,
    copy: Sequence[str] = (),
    drop: Sequence[str] = (),
    mask: str | Path | None = None,
    dtype: str | None = None,
    tokenizer: str | None = None,
    shard_size: str | int = DEFAULT_SHARD_BYTES,
    origin: Origin | None = None,
    found: Gathered | None = None,
    **parameters: Any,
) -> Recipe:
    """Return the recipe that arguments of `merge` spell; a recipe or its file is returned as it is.

    `origin` tells options of the command line from arguments; `found` receives the faults of a file, see `parse_recipe`.
    """
    if isinstance(method, Recipe) or _is_file(method):
        beside = (base, models, coefficients, copy, drop, mask, dtype, tokenizer, parameters)
        if any(beside) or shard_size != DEFAULT_SHARD_BYTES:
            raise _beside_recipe()
        known = known_parameters(METHODS)
        return method if isinstance(method, Recipe) else read_recipe(method, known=known, found=found)
    origin = origin or Origin()
    if dtype is not None and dtype not in DTYPES:
        raise ArgumentError("dtype", expected="one of " + ", ".join(DTYPES), got=repr(dtype))
    for name, given in (("models", models), ("copy", copy), ("drop", drop)):
        if isinstance(given, str | Path):
            raise ArgumentError(
                f"merge {method}: {name}", expected="a list", got=f"'{shown(given)}'", do="Put it in [ ]"
            )
    references = tuple(str(m) for m in models)
    twice = sorted({m for m in references if references.count(m) > 1} | ({str(base)} & set(references)))
    if twice:
        raise ArgumentError(f"merge {method}: model '{shown(twice[0])}' is given more than once")
    chosen, spelled = find_method(str(method)), origin.spelled
    parameters |= {} if coefficients is None else {"coefficients": coefficients}
    unset = [n for n, v in parameters.items() if v is None and n in chosen.parameters]
    unset = [n for n in unset if chosen.parameters[n].default is None]
    values = {n: v for n, v in parameters.items() if n not in unset}
    return Recipe(
        method=chosen.name,
        models=references,
        base=None if base is None else str(base),
        settings=split_settings(chosen, values, len(references), spelled),
        parameters={n: v for n, v in values.items() if n not in per_model(chosen)},
        copy=tuple(copy),
        drop=tuple(drop),
        mask=None if mask is None else str(mask),
        dtype=None if dtype is None else DTYPES[dtype],
        vocabulary=None if tokenizer is None else Vocabulary(tokenizer),
        shard_bytes=parse_size(shard_size, spelled("shard_size")),
        origin=origin,
    )


def execute(
    plan: Plan,
    out: Path,
    *,
    force: bool = False,
    code: bool = False,
    digest_inputs: bool = False,
    force_base: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Run a plan into `out`; see `merge`."""
    began = time.perf_counter()
    check_target(plan, out, force=force)
    before = [fingerprint(c) for c in plan.opened]
    done = 0

    def report(stage: str, more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(stage, min(done, plan.bytes_read), plan.bytes_read)

    with Stream(plan.job, len(plan.inputs)) as stream:
        _check_tied(plan)
        if plan.method.has_base and not force_base and not plan.recipe.slices:
            _check_base(plan, stream)
        found = reduce_all(plan, stream, lambda more: report("measure", more))
        shards = lay_out(
            [(w.name, w.dtype, w.shape, _stored_size(w)) for w in plan.works],
            plan.recipe.shard_bytes,
            {**_aliases(plan), "format": "pt"},
        )
        with Output(out, shards) as output:
            produce(plan, stream, shards, found, output, lambda more: report("merge", more))
            for prints in before:
                check_unchanged(prints)
            record = finish(plan, output, before, code=code, digest_inputs=digest_inputs)
            output.publish()
    seconds = time.perf_counter() - began
    return Result(out, record, seconds, plan.bytes_read, plan.bytes_written)


def check_target(plan: Plan, out: Path, *, force: bool) -> None:
    """Refuse an output path that cannot be used, or a disk without room; nothing is touched."""
    check_place(out, plan.opened, plan.bytes_written, force=force)


def check_place(out: Path, inputs: Sequence[Checkpoint], nbytes: int, *, force: bool) -> None:
    """Refuse a path for so many bytes made of these inputs; see `check_target`."""
    given = [c.folder or c.files[0] for c in inputs] + [f for c in inputs for f in c.files]
    given += [f.parent for c in inputs for f in c.files[1:]]  # the folders of shards and adapters
    check_output(out, given, force=force)
    free = free_bytes(out.absolute().parent)
    if free < nbytes:
        raise ResourceError(
            f"--out '{shown(out)}'",
            expected=f"{nbytes} bytes of free disk",
            got=f"{free}",
            do="Free space",
        )


def _stored_size(work: Work) -> int:
    return work.inputs[0].nbytes if work.parameters is None else work.size * stored_bytes(work.dtype)


def _aliases(plan: Plan) -> dict[str, str]:
    """Return names that an old .bin stored as views of another tensor, for the header, as safetensors does."""
    if plan.recipe.slices:
        return {}
    names = {w.name for w in plan.works}
    return {alias: kept for alias, kept in plan.inputs[0].aliases.items() if kept in names}


def _check_tied(plan: Plan) -> None:
    """Check that heads dropped for being tied hold the embedding's bytes."""
    given = plan.recipe.origin.given
    for head, embedding in plan.must_equal:
        equal = head.nbytes == embedding.nbytes and head.dtype == embedding.dtype
        with Files() as files:
            for start in range(0, head.nbytes if equal else 0, 1 << 22):
                size = min(1 << 22, head.nbytes - start)
                a, b = bytearray(size), bytearray(size)
                files.entry_into(head, start, memoryview(a))
                files.entry_into(embedding, start, memoryview(b))
                equal = equal and a == b
        if not equal:
            raise MismatchError(
                f"{head.file}: tensor '{shown(head.name)}'",
                expected=f"the bytes of '{embedding.name}', since the first input ties the two",
                got="others",
                do=f"Leave it out with {given('drop', shown(head.name), several=True)}, or untie the first input",
            )


def _check_base(plan: Plan, stream: Stream) -> None:
    """Refuse a base from which the models lie further away than it is long, by samples of the largest tensors."""
    works = sorted(plan.merged, key=lambda w: -w.size)[:SAMPLED_TENSORS]
    lengths = np.zeros(len(plan.inputs))
    with stream.worker() as worker:
        for work in works:
            start = work.size // 2 // SAMPLED_ELEMENTS * SAMPLED_ELEMENTS
            base, others = worker.load(work, start, min(start + SAMPLED_ELEMENTS, work.size))
            offsets = others if "task_vectors" in plan.method.inputs else others - base
            lengths[0] += float(np.square(base, dtype=np.float64).sum())
            lengths[1:] += np.square(offsets, dtype=np.float64).sum(1)
    force = "Options(force_base=True)" if plan.recipe.origin.door == "python" else "--force-base"
    for i, length in enumerate(lengths[1:], 1):
        if length >= lengths[0] > 0:
            raise MismatchError(
                f"merge {plan.method.name}: model '{shown(plan.inputs[i].reference)}' does not seem to be trained from the base",
                expected="a task vector shorter than the base",
                got=f"one {np.sqrt(length / lengths[0]):.2f} times as long, in samples of {len(works)} tensors",
                do=f"Name the right base, or pass {force}",
            )
