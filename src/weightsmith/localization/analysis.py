"""`localize`, from arguments to the result: reductions, one pass that measures, and what is asked for beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightsmith.checkpoint.masks import of_tasks
from weightsmith.checkpoint.read import check_unchanged, fingerprint, open_checkpoint
from weightsmith.distance import reporter
from weightsmith.engine.stream import Stream
from weightsmith.errors import ArgumentError
from weightsmith.localization.measuring import measure
from weightsmith.localization.reading import Reading, Report, Statistics, matched, reduced
from weightsmith.localization.request import DEFAULT_TRIM, TALL, Request, prepare
from weightsmith.localization.result import Localization
from weightsmith.localization.scoring import Behavior, Choice, Score, behave, search
from weightsmith.localization.whole import HELD_MATRICES, decompose
from weightsmith.localization.writing import Prints, scratch_beside, write_masks
from weightsmith.localize import magnitude
from weightsmith.localize.localizer import Localizer
from weightsmith.plan import Options
from weightsmith.produce import reduce_all
from weightsmith.record import describe
from weightsmith.run import Progress

GRID = (0.2, 0.3, 0.4, 0.5, 0.6)


def localize(
    base: str | Path,
    models: Mapping[str, str | Path] | Sequence[str | Path],
    *,
    by: str = TALL,
    selection: Mapping[str, Any] | None = None,
    statistics: Sequence[str | Path] = (),
    given: Sequence[str | Path] = (),
    method: str = "task_arithmetic",
    parameters: Mapping[str, Any] | None = None,
    merged: str | Path | None = None,
    lambdas: float | Sequence[float] | None = None,
    validation: str | Path | Mapping[str, Mapping[Any, float]] | None = None,
    trim: float | None = DEFAULT_TRIM,
    spectra: bool = False,
    masks: str | Path | None = None,
    force: bool = False,
    copy: Sequence[str] = (),
    drop: Sequence[str] = (),
    options: Options | None = None,
    score: Score | None = None,
    grid: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> Localization:
    """Say where tasks lie in the weights: masks, how they agree and overlap, where signs clash, what interferes.

    With tau the merged vector and tau_t the task vectors, the masks of TALL-masks are m_t = [ |tau_t| > lambda_t |tau - tau_t| ];
    weights that no mask selects are catastrophic, those of one mask selfish, others general. What the merged vector gets wrong
    for task t is |tau - tau_t| / |tau_t|; what stays wrong behind the mask, |m_t tau - tau_t| / |tau_t|, is erased.

    Args:
        base: The model that all others were trained from.
        models: T models, one per task: a mapping of task to model, or a list of models or of TASK=MODEL; a task without a name is
            called as the last part of its model's reference.
        by: What makes the masks: "tall_masks", or a localizer: "magnitude", "principal", "fisher", "sensitivity".
        selection: The localizer's parameters, such as {"density": 0.1}.
        statistics: For "fisher" and "sensitivity": T checkpoints with the model's names, in the order of the models.
        given: T stored masks in place of `by`.
        method: The elementwise merge whose vector is masked; its lambda_ is 1 unless given. By default the sum of task vectors.
        parameters: The method's parameters.
        merged: A merged model in place of `method`, however it was made.
        lambdas: One number, or one per task; 0.4 by default.
        validation: In place of lambdas, known scores: {task: {lambda: score}}, or a JSON file of that; the best is taken.
        trim: Density to which task vectors are trimmed for the second count of sign conflicts, over the model; None for none.
        spectra: Also look at whole matrices: singular values, alignment, interference, the health of convolutions.
        masks: A new folder to write the masks to, one folder per task.
        force: Replace an older one.
        copy: Globs of tensors that are left out.
        drop: Globs of tensors that only models have, left out.
        options: Memory and threads.
        score: Called with (folder of a checkpoint, task's name), larger is better, on validation data: each task is rebuilt
            through its mask and scored. Chooses among `grid` unless lambdas are given, and adds the scores to the result.
            Candidates are written beside the masks, or to the folder for temporary files (TMPDIR), one at a time, and removed.
        grid: Lambdas that the score chooses among, the first of equal ones; 0.2 .. 0.6 by default.
        progress: Called with (stage, bytes done, bytes in all).

    Returns:
        See `Localization`; `to_json()` gives plain data.

    Raises:
        ArgumentError, CheckpointError, MismatchError, NonFiniteError, ResourceError: See `errors`; no mask is published.

    Cost: one pass over T + 1 models; two more to find the thresholds of trimmed vectors, and what the method or the masks need;
    one to write masks. Memory for tiles, and a few thousand numbers per tensor.

    The same on the command line: weightsmith localize --base B --model A1 --model A2
    """
    request = prepare(
        base,
        models,
        by=by,
        selection=selection,
        statistics=statistics,
        given=given,
        method=method,
        parameters=parameters,
        merged=merged,
        lambdas=lambdas,
        validation=validation,
        trim=trim,
        spectra=spectra,
        masks=masks,
        force=force,
        copy=copy,
        drop=drop,
        options=options,
    )
    searches = score is not None and lambdas is None and validation is None and request.by == TALL
    if grid is not None and not searches:
        raise ArgumentError("localize: grid", expected="a score, and no lambdas beside it", got="a grid alone")
    return execute(request, score=score, grid=(grid or GRID) if searches else None, progress=progress)


def execute(
    request: Request,
    *,
    score: Score | None = None,
    grid: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> Localization:
    """Run what `prepare` checked."""
    before = [fingerprint(c) for c in request.opened]

    def stage(name: str, passes: int = 1) -> Report:
        return reporter(name, passes * request.nbytes, progress)

    reading, trimmed = _reductions(request, stage("thresholds", 2))
    out, is_whole = request.out, reading.is_whole
    if out is not None and is_whole:
        _write(request, reading, out, before, stage("masks"))
        masks = [open_checkpoint(out / task) for task in request.tasks]
        reading = replace(reading, given=of_tasks(masks, [w.name for w in reading.works]))
    choices, behaviors = request.choices, None
    if score is not None:
        reading, choices, behaviors = _scored(request, reading, score, grid)
    parts, pairs = measure(reading, trimmed, stage("measure"))
    spectra, convolutions = decompose(reading, request.options, stage("spectra")) if request.spectra else (None, None)
    if out is not None and not is_whole:
        _write(request, reading, out, before, stage("masks"))
    for kept in before:
        check_unchanged(kept)
    plan = request.plan
    return Localization(
        base=plan.inputs[0].reference,
        models=tuple(c.reference for c in plan.inputs[1:]),
        tasks=request.tasks,
        by=request.by,
        method=None if request.merged is not None else plan.method.name,
        merged=None if request.merged is None else request.merged.reference,
        parameters=request.parameters(),
        lambdas=reading.lambdas,
        trim=request.trim,
        passes=reading.passes + 1 + (out is not None) + 2 * request.spectra,
        tensors=tuple(parts),
        pairs=pairs,
        inputs=tuple(describe(*pair) for pair in zip(request.opened, before, strict=True)),
        not_compared={w.name: w.reason for w in plan.copied} | {d.name: d.reason for d in plan.dropped},
        notes=plan.notes,
        spectra=spectra,
        convolutions=convolutions,
        choices=choices,
        behaviors=behaviors,
        masks=out,
    )


def _scored(
    request: Request, reading: Reading, score: Score, grid: Sequence[float] | None
) -> tuple[Reading, tuple[Choice, ...] | None, tuple[Behavior, ...]]:
    """Choose lambdas where there is a grid, and score every task behind its mask."""
    choices, known = request.choices, None
    with scratch_beside(request.out) as scratch:
        if grid is not None:
            choices = tuple(search(reading, request.tasks, grid, score, scratch))
            known = [c.score for c in choices]
            reading = replace(reading, lambdas=tuple(c.lambda_ for c in choices))
        return reading, choices, tuple(behave(reading, request.tasks, score, scratch, known))


def _write(request: Request, reading: Reading, out: Path, before: Prints, report: Report) -> None:
    """Write the masks, with a record of how they were made."""
    asked = {"by": request.by, "lambdas": reading.lambdas, "parameters": request.parameters()}
    command = "\n".join(["edit: localize", *(f"{key}: {value}" for key, value in asked.items())])
    asked |= {"edit": "localize", "method": "localize", "recipe": command}
    write_masks(reading, request.tasks, out, before, asked, report)


def _reductions(request: Request, report: Report) -> tuple[Reading, Statistics | None]:
    """Find what the method, the masks and the trimmed vectors need first."""
    plan, works = request.plan, request.plan.merged
    is_whole = request.localizer is not None and request.localizer[0].reach == "matrix"
    held = 8 * HELD_MATRICES + len(request.tasks)  # bytes for each element of a whole matrix: numbers, and every mask
    job = request.job(held * max(w.size for w in works) if is_whole else 0)
    passes = 0
    found: Statistics = {}
    if request.merged is None:
        # By the tiles of this job: a tensor of several tiles must have been seen whole before.
        with Stream(plan.job, len(plan.inputs), job.limits.tile) as stream:
            found = reduce_all(plan, stream, report)
        passes += max(plan.passes - 1, int(bool(found)))
    trimmed = None
    if request.trim is not None:
        trimmed = reduced(plan, job, magnitude, works, {"density": request.trim, "scope": "model"}, report)
        passes += 2
    localizer: tuple[Localizer, dict[str, Any], Statistics] | None = None
    if request.localizer is not None and is_whole:
        localizer = *request.localizer, {}
    elif request.localizer is not None:
        chosen, parameters = request.localizer
        entries = works
        if not chosen.has_base:
            tables = [matched(c, works, "statistics") for c in request.statistics]
            entries = [replace(w, inputs=tuple(t[w.name] for t in tables)) for w in works]
        localizer = chosen, parameters, reduced(plan, job, chosen, entries, parameters, report)
        passes += 2
    names = [w.name for w in works]
    reading = Reading(
        plan=plan,
        job=job,
        method=plan.method,
        found=found,
        merged=None if request.merged is None else matched(request.merged, works, "merged model"),
        lambdas=request.lambdas,
        localizer=localizer,
        statistics={n: [c.tensors[n] for c in request.statistics] for n in names} if request.statistics else {},
        given=of_tasks(request.given, names) if request.given else None,
        passes=passes,
    )
    return reading, trimmed
