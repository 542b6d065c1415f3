"""What `localize` is asked for: everything opened and checked by headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.arguments import Real
from weightsmith.checkpoint.entry import Checkpoint
from weightsmith.checkpoint.masks import open_mask
from weightsmith.checkpoint.read import open_checkpoint
from weightsmith.engine.stream import Job
from weightsmith.errors import ArgumentError, nearest, shown
from weightsmith.localization.reading import make_job, matched
from weightsmith.localization.result import named_models
from weightsmith.localization.scoring import Choice, read_validation
from weightsmith.localize import LOCALIZERS
from weightsmith.localize.localizer import Localizer
from weightsmith.plan import Options, Plan, make_plan
from weightsmith.plan.headers import find_method
from weightsmith.run import check_place, make_recipe

TALL, GIVEN = "tall_masks", "given"
WAYS = (TALL, *(m.name for m in LOCALIZERS))
DEFAULT_LAMBDA = 0.4
DEFAULT_TRIM = 0.2


@dataclass(frozen=True)
class Request:
    """What is asked for, opened and checked; nothing but headers has been read.

    Attributes:
        plan: Of the merge whose vector is masked.
        tasks: Names of the tasks.
        by: What makes the masks.
        lambdas: Of the TALL-masks.
        choices: How they were chosen by a validation file; None where they were not.
        localizer: What makes other masks, with its parameters.
        merged: A merged model in place of the method.
        statistics: Checkpoints of statistics, one per task.
        given: Stored masks, one per task.
        trim: Density of the trimmed task vectors; None for none.
        spectra: Whether whole matrices are looked at.
        out: Folder of the masks to write.
        options: Memory and threads.
    """

    plan: Plan
    tasks: tuple[str, ...]
    by: str
    lambdas: tuple[float, ...] | None
    choices: tuple[Choice, ...] | None
    localizer: tuple[Localizer, dict[str, Any]] | None
    merged: Checkpoint | None
    statistics: tuple[Checkpoint, ...]
    given: tuple[Checkpoint, ...]
    trim: float | None
    spectra: bool
    out: Path | None
    options: Options

    @property
    def opened(self) -> tuple[Checkpoint, ...]:
        """Every checkpoint that is read."""
        merged = () if self.merged is None else (self.merged,)
        return (*self.plan.inputs, *merged, *self.statistics, *self.given)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors looked at, in base and models."""
        return sum(e.nbytes for w in self.plan.merged for e in w.inputs)

    @property
    def mask_bytes(self) -> int:
        """Bytes of all masks."""
        return len(self.tasks) * sum(w.size for w in self.plan.merged)

    def job(self, matrix_bytes: int = 0) -> Job:
        """Return how tiles are cut; ResourceError where memory is too small."""
        extra = len(self.opened) - len(self.plan.inputs)
        ranks = self.trim is not None or self.localizer is not None
        return make_job(self.plan, extra, ranks, self.options, matrix_bytes)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the method and of the localizer, as plain data."""
        shared, varying = self.plan.parameters
        used = {} if self.merged is not None else {**shared, **dict.fromkeys(varying, "by tensor")}
        own = {} if self.localizer is None else self.localizer[1]
        return {"method": _plain(used), "selection": _plain(own)}

    def summary(self) -> dict[str, Any]:
        """Return what would be done, as plain data."""
        return {
            "inputs": [c.reference for c in self.opened],
            "tasks": list(self.tasks),
            "by": self.by,
            "method": None if self.merged is not None else self.plan.method.name,
            "parameters": self.parameters(),
            "lambdas": None if self.lambdas is None else list(self.lambdas),
            "tensors": len(self.plan.merged),
            "elements": sum(w.size for w in self.plan.merged),
            "not_compared": {w.name: w.reason for w in self.plan.copied},
            "bytes_read_per_pass": self.nbytes,
            "masks": None if self.out is None else [str(self.out / t) for t in self.tasks],
            "mask_bytes": self.mask_bytes if self.out is not None else 0,
            "peak_memory_bytes": self.job().limits.peak_bytes,
        }


def prepare(
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
) -> Request:
    """Open and check what `localize` takes, which says what each means."""
    options = options or Options()
    named = named_models(models)
    names, count = tuple(named), len(named)
    localizer = _localizer(by, selection, bool(given))
    _check_counts(by, localizer, len(statistics), len(given), count)
    if by == "principal" and masks is None:
        do = "Pass masks (--masks OUT)"
        raise ArgumentError("localize: principal", expected="a folder for the masks", got="none", do=do)
    choices = None if validation is None else tuple(read_validation(validation, names))
    chosen_by = GIVEN if given else by
    bounds = _lambdas(lambdas, choices, chosen_by, count)
    if trim is not None:
        trim = Real(0, 1, open_low=True).check(trim, "trim", "localize")
    plan = _plan(method, parameters, merged, options, base=base, models=tuple(named.values()), copy=copy, drop=drop)
    links = {"follow_symlinks": options.follow_symlinks}
    one = None if merged is None else open_checkpoint(merged, **links)
    others = tuple(open_checkpoint(x, **links) for x in statistics)
    for checkpoint in (one, *others):
        if checkpoint is not None:
            matched(checkpoint, plan.merged, "merged model" if checkpoint is one else "statistics")
    shapes = {w.name: w.shape for w in plan.merged}
    stored = tuple(open_mask(x, shapes, "the models", **links) for x in given)
    out = None if masks is None else Path(masks)
    request = Request(
        plan, names, chosen_by, bounds, choices, localizer, one, others, stored, trim, spectra, out, options
    )
    if out is not None:
        check_place(out, request.opened, request.mask_bytes, force=force)
    return request


def _plan(
    method: str, parameters: Mapping[str, Any] | None, merged: str | Path | None, options: Options, **inputs: Any
) -> Plan:
    """Return the plan of the merge whose vector is masked; its scale is 1 unless given."""
    chosen = {**(parameters or {})}
    if merged is not None and (chosen or method != "task_arithmetic"):
        raise ArgumentError("localize", expected="a merged model, or a method and its parameters", got="both")
    if "lambda_" in find_method(method).parameters:
        chosen.setdefault("lambda_", 1.0)
    plan = make_plan(make_recipe(method, **inputs, **chosen), options)
    _check_method(plan)
    return plan


def _check_method(plan: Plan) -> None:
    method = plan.method
    if not method.has_base:
        raise ArgumentError(
            f"localize: method {method.name}", expected="a merge that takes a base", got="one that does not"
        )
    if method.reach != "elementwise" or any(method.takes_rows(w.parameters or {}) for w in plan.merged):
        raise ArgumentError(
            f"localize: method {method.name}",
            expected="a merge that works entry by entry",
            got="one that needs whole rows or matrices",
            do="Run the merge, and pass its result as the merged model",
        )


def _localizer(by: str, selection: Mapping[str, Any] | None, is_given: bool) -> tuple[Localizer, dict[str, Any]] | None:
    """Return the localizer of that name with its parameters; None for TALL-masks and stored masks."""
    if by not in WAYS:
        raise ArgumentError(f"localize: by '{shown(by)}'", expected="one of " + ", ".join(WAYS), do=nearest(by, WAYS))
    if is_given and by != TALL:
        raise ArgumentError("localize", expected="stored masks, or another way to make them", got="both")
    if by == TALL:
        if selection:
            raise ArgumentError(
                "localize: selection", expected="none with tall_masks, which take lambdas", got=shown(selection)
            )
        return None
    found = next(m for m in LOCALIZERS if m.name == by)
    return found, found.checked(selection or {})


def _check_counts(name: str, localizer: Any, statistics: int, given: int, models: int) -> None:
    """Check how many checkpoints of statistics and stored masks there are."""
    takes = localizer is not None and "statistics" in localizer[0].inputs
    if statistics != (models if takes else 0):
        wanted = f"{models}, one per model" if takes else f"none with {name}"
        raise ArgumentError("localize: statistics", expected=wanted, got=str(statistics))
    if given and given != models:
        raise ArgumentError("localize: given masks", expected=f"{models}, one per model", got=str(given))


def _lambdas(
    given: float | Sequence[float] | None, choices: Sequence[Choice] | None, by: str, tasks: int
) -> tuple[float, ...] | None:
    """Return the lambdas of TALL-masks, one per task; None for other masks."""
    if choices is not None and given is not None:
        raise ArgumentError("localize", expected="lambdas or a validation file", got="both")
    if by != TALL:
        if choices is not None or given is not None:
            raise ArgumentError("localize: lambdas", expected="none: they belong to tall_masks", got=f"masks by {by}")
        return None
    if choices is not None:
        return tuple(c.lambda_ for c in choices)
    values = (DEFAULT_LAMBDA,) if given is None else (given,) if isinstance(given, int | float) else tuple(given)
    if len(values) not in (1, tasks):
        raise ArgumentError("localize: lambdas", expected=f"1 or {tasks}, one per task", got=str(len(values)))
    checked = [Real(0).check(v, "lambda", "localize") for v in values]
    return tuple(checked * tasks if len(checked) == 1 else checked)


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {n: list(v) if isinstance(v, tuple) else v for n, v in parameters.items()}
