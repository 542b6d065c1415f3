"""A LoRA adapter from a full fine-tune: the best low-rank form of each task vector (Eckart and Young, 1936)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from weightsmith.adapt.drift import distances, is_same
from weightsmith.adapt.publish import Adapter, Draft, Factor, Factored, LeftOut, Row, publish
from weightsmith.adapt.ranks import RankRule, choose_ranks, largest_ranks, make_rule, stored_size
from weightsmith.adapt.selection import Selection, is_without_head, select
from weightsmith.arguments import Choice, Whole
from weightsmith.budget import Demand, choose_limits, usable_threads
from weightsmith.checkpoint.adapter_write import Target
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.read import fingerprint, open_checkpoint
from weightsmith.device import find_device
from weightsmith.distance import reporter, tensors_beside
from weightsmith.engine.stream import Job, Stream, Worker
from weightsmith.engine.whole import numbers
from weightsmith.errors import ArgumentError, MismatchError, NonFiniteError, raise_all, shown
from weightsmith.plan import Options
from weightsmith.recipe import DTYPES
from weightsmith.run import Progress, check_place
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.select import random_key
from weightsmith.tensor.spectral import ALGORITHMS, leading, sketched, wide
from weightsmith.tensor.truncation import distance_to_product, singular_values

VERB = "extract-lora"
ABOUT = "The difference of a finetuned model from its base was written as a LoRA adapter, cut to low rank,"


@dataclass(frozen=True)
class Extraction:
    """What will be extracted, from headers alone.

    Attributes:
        base: The base.
        finetuned: The model trained from it.
        beside: The finetuned model's tensors, with the names that share storage.
        selection: What becomes of each tensor.
        rule: How much is kept.
        only: Globs of weights to extract.
        save_rest: Whether other tensors are saved as a whole.
        dtype: Stored dtype of the factors, a safetensors name.
        algorithm: "exact" or "randomized".
        seed: Of the randomized form.
        job: What the engine needs.
        ranks: The largest rank that each target can get.
        nbytes: Bytes written at the most, for the factors.
        notes: What the user should know.
    """

    base: Checkpoint
    finetuned: Checkpoint
    beside: Mapping[str, Entry]
    selection: Selection
    rule: RankRule
    only: tuple[str, ...]
    save_rest: bool
    dtype: str
    algorithm: str
    seed: int
    job: Job
    ranks: Mapping[Target, int]
    nbytes: int
    notes: tuple[str, ...]

    def pair(self, name: str) -> tuple[Entry, Entry]:
        """Return a tensor of the base and of the finetuned model."""
        return self.base.tensors[name], self.beside[name]

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "base": self.base.reference,
            "model": self.finetuned.reference,
            "targets": [
                {"name": t.name, "shape": list(t.shape), "stored": t.kind, "largest_rank": rank}
                for t, rank in self.ranks.items()
            ],
            "others": list(self.selection.others + self.selection.blobs),
            "savable_modules": list(self.selection.savable),
            "not_comparable": dict(self.selection.missing),
            "largest_bytes": self.nbytes,
            "peak_bytes": self.job.limits.peak_bytes,
            "threads": self.job.limits.threads,
            "notes": list(self.notes),
        }


def extract_lora(
    model: str | Path,
    *,
    base: str | Path,
    out: str | Path,
    rank: int | None = None,
    energy: float | None = None,
    budget: str | int | None = None,
    only: Sequence[str] = (),
    save_rest: bool = False,
    dtype: str = "float32",
    algorithm: str = "exact",
    seed: int = 0,
    options: Options | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Adapter:
    """Write the difference of a finetuned model from its base as a LoRA adapter that PEFT loads.

    With tau = finetuned - base = U S V^T of one weight and k its rank:

        B = U_k sqrt(S_k),  A = sqrt(S_k) V_k^T,  base + B @ A is as near to finetuned as rank k allows

    Alpha equals the rank everywhere (rank_pattern and alpha_pattern where ranks differ), so the scale is 1.

    Args:
        model: The finetuned model: a file, folder, `model+adapter` or hub id.
        base: What it was trained from.
        out: The new folder.
        rank: The same k for all weights, at most min(rows, columns).
        energy: Or: the smallest k for which the squared singular values kept are this share of all, for each weight.
        budget: Or: bytes of all factors, such as "200MB": triplets of all weights are taken by value^2 / (rows + columns),
            the largest first, while they fit; a weight may get none.
        only: Globs of weights to extract. Default: all of two axes that are no embedding, head or norm. Those of more axes
            are seen as (first, all others): convolutions without groups, as PEFT has them.
        save_rest: Write other tensors that changed as modules_to_save, where PEFT can load them. All that remain are
            listed as not represented, with their norms.
        dtype: Of the factors.
        algorithm: "exact", or with `rank` "randomized": see the method delta_svd for its error.
        seed: Of the randomized form.
        options: Memory, threads, device and the like.
        force: Replace an older output, once the new one is complete.
        progress: Called with (stage, done, in all).

    Raises:
        ArgumentError, CheckpointError, MismatchError, NonFiniteError, ResourceError: See `errors`; nothing is published.

    Whether a weight is stored [in, out], as Conv1D of GPT-2, is told by its bias; see `plan`. Names of modules are those
    of the base's tensors: load the adapter on the class of model that the base was saved from. One adapter cannot hold
    what shares its storage with another tensor.
    Cost: a symmetric eigenproblem of size min(rows, columns) in float64 per weight, and one more without vectors unless
    the rank is given; memory for 2 copies of the largest weight and 6 of that eigenproblem's
    matrix in float64, per thread.

    The same on the command line: weightsmith extract-lora --base B --model FT --rank 16 --out OUT
    """
    options = options or Options()
    plan = plan_extraction(
        model,
        base=base,
        rule=make_rule(VERB, rank, energy, budget),
        only=only,
        save_rest=save_rest,
        dtype=dtype,
        algorithm=algorithm,
        seed=seed,
        options=options,
    )
    return execute_extraction(plan, Path(out), force=force, progress=progress)


def plan_extraction(
    model: str | Path,
    *,
    base: str | Path,
    rule: RankRule,
    only: Sequence[str] = (),
    save_rest: bool = False,
    dtype: str = "float32",
    algorithm: str = "exact",
    seed: int = 0,
    options: Options,
) -> Extraction:
    """Open both models and say what will be done; see `extract_lora`."""
    stored = DTYPES[Choice(tuple(DTYPES)).check(dtype, "dtype", VERB)]
    Choice(ALGORITHMS).check(algorithm, "algorithm", VERB)
    Whole(0).check(seed, "seed", VERB)
    if isinstance(only, str):
        raise ArgumentError(f"{VERB}: only", expected="a list", got=f"'{shown(only)}'", do="Put it in [ ]")
    if algorithm == "randomized" and rule.rank is None:
        raise ArgumentError(f"{VERB}: algorithm randomized", expected="a rank", got="energy or budget")
    first, second = (open_checkpoint(x, follow_symlinks=options.follow_symlinks) for x in (base, model))
    beside = tensors_beside(second, first)
    faults: list[str] = []
    selection = select(first, beside, only, save_rest, faults)
    if faults:
        what = f"{VERB}: '{shown(second.reference)}' against '{shown(first.reference)}'"
        raise_all(faults, MismatchError, what, "List all differences with: weightsmith compare BASE MODEL")
    ranks = largest_ranks(rule, selection.targets, stored)
    nbytes = stored_size(ranks, stored) if rule.budget is None else min(rule.budget, stored_size(ranks, stored))
    job = _job(first, second, selection.targets, options)
    notes = dict.fromkeys((*first.notes, *second.notes, *_notes(first, selection, rule)))
    return Extraction(
        base=first,
        finetuned=second,
        beside=beside,
        selection=selection,
        rule=rule,
        only=tuple(only),
        save_rest=save_rest,
        dtype=stored,
        algorithm=algorithm,
        seed=seed,
        job=job,
        ranks=ranks,
        nbytes=nbytes,
        notes=tuple(notes),
    )


def _job(first: Checkpoint, second: Checkpoint, targets: Sequence[Target], options: Options) -> Job:
    wide_numbers = any(e.dtype == "F64" for c in (first, second) for e in c.tensors.values())
    lows = [e.low_rank for e in second.tensors.values() if e.low_rank is not None]
    demand = Demand(
        inputs=2,
        entries=len(first.tensors) + len(second.tensors),
        itemsize=8 if wide_numbers else 4,
        factor_bytes=max((4 * (p.down.size + p.up.size) for p in lows), default=0),
        matrix_bytes=max(_working_bytes(*t.matrix) for t in targets),
        on_device=options.device != "cpu",
    )
    limits = choose_limits(demand, options.memory_bytes, options.threads or usable_threads())
    kind = "float64" if wide_numbers else "float32"
    return Job(None, 0, kind, limits, find_device(options.device))


def _working_bytes(rows: int, columns: int) -> int:
    """Return what one thread holds: the task vector, its best factors and their workspace, in float64."""
    small = min(rows, columns)
    return 8 * (2 * rows * columns + 6 * small * small)


def _notes(base: Checkpoint, selection: Selection, rule: RankRule) -> list[str]:
    notes = []
    turned = [t.name for t in selection.targets if t.kind == "transposed"]
    if turned:
        told = f"{len(turned)} weights, such as '{shown(turned[0])}', are stored [in, out], by the size of their biases"
        notes.append(f"{told}: the adapter says fan_in_fan_out")
    convolutions = [t.name for t in selection.targets if t.kind == "convolution"]
    if convolutions:
        notes.append(
            f"PEFT loads factors of convolutions without groups alone: {', '.join(map(shown, convolutions[:5]))}"
        )
    if is_without_head(base):
        notes.append("the base is stored without its head, so modules have no prefix: load the adapter with AutoModel")
    full = sum(t.matrix[0] * t.matrix[1] for t in selection.targets)
    if rule.rank is not None and sum(t.cost * min(rule.rank, *t.matrix) for t in selection.targets) >= full:
        notes.append("factors of this rank take as many bytes as the weights themselves")
    return notes


def execute_extraction(
    plan: Extraction, out: Path, *, force: bool = False, progress: Progress | None = None
) -> Adapter:
    """Run a plan into `out`; see `extract_lora`."""
    began = time.perf_counter()
    inputs = (plan.base, plan.finetuned)
    check_place(out, inputs, plan.nbytes, force=force)
    before = [fingerprint(c) for c in inputs]
    selection = plan.selection
    size = sum(t.nbytes for t in selection.targets)
    moved = _measure(plan, progress)
    with Stream(plan.job, 2) as stream, threadpool_limits(1, "blas"):
        targets = [t for t in selection.targets if moved[t.name]]
        if not targets:
            raise MismatchError(
                f"{VERB}: '{shown(plan.finetuned.reference)}'",
                expected=f"weights that differ from '{shown(plan.base.reference)}'",
                got=f"{len(selection.targets)} equal ones: the adapter would change no tensor",
            )
        ranks = choose_ranks(
            plan.rule, targets, plan.dtype, stream, _spectrum(plan, stream.tile), reporter("decompose", size, progress)
        )
        empty = [Row(t.name, 0, moved[t.name], moved[t.name]) for t in targets if not ranks[t]]
        ranks = {t: rank for t, rank in ranks.items() if rank}
        saved = _saved(plan, moved)
        draft = Draft(
            VERB,
            ABOUT,
            _parameters(plan),
            plan.base,
            inputs,
            before,
            ranks,
            plan.dtype,
            saved,
            empty,
            _left_out(plan, moved, saved),
            [moved[n] for n in saved],
            _result_notes(plan, empty),
            began,
        )
        check_place(out, inputs, draft.nbytes, force=force)
        report = reporter("extract", size + sum(e.nbytes for e in saved.values()), progress)
        return publish(draft, out, stream, _factor(plan, stream.tile), report)


def _measure(plan: Extraction, progress: Progress | None) -> dict[str, float]:
    """Return by how much each tensor moved; those without arithmetic infinitely, where a byte differs.

    Raises:
        NonFiniteError: Some hold NaN or infinity; all are listed.
    """
    selection = plan.selection
    names = [*(t.name for t in selection.targets), *selection.others]
    found = distances({n: plan.pair(n) for n in names}, plan.job, progress)
    faults = [
        f"'{shown(n)}': {d.nonfinite_a} of {d.elements} numbers in the base, {d.nonfinite_b} in the finetuned model"
        for n, d in found.items()
        if d.nonfinite_a or d.nonfinite_b
    ]
    if faults:
        raise_all(faults, NonFiniteError, f"{VERB}: NaN or infinity", "Repair the inputs")
    moved = {n: d.norm_difference for n, d in found.items()}
    return {**moved, **{n: 0.0 if is_same(*plan.pair(n)) else math.inf for n in selection.blobs}}


def _task_vector(plan: Extraction, tile: int, worker: Worker, target: Target) -> Array:
    """Return finetuned - base as a matrix, float64, on the device."""
    base, finetuned = (numbers(worker, tile, e) for e in plan.pair(target.name))
    np.subtract(finetuned, base, out=finetuned)
    return wide(worker.device.move(finetuned.reshape(target.matrix)))


def _spectrum(plan: Extraction, tile: int) -> Callable[[Worker, Target], Array]:
    def spectrum(worker: Worker, target: Target) -> Array:
        with worker.device.active():
            return worker.device.back(singular_values(_task_vector(plan, tile, worker, target)))

    return spectrum


def _factor(plan: Extraction, tile: int) -> Factor:
    def factor(worker: Worker, target: Target, rank: int) -> Factored:
        device = worker.device
        with device.active():
            matrix = _task_vector(plan, tile, worker, target)
            if plan.algorithm == "exact":
                found = leading(matrix, rank)
            else:
                found = sketched(matrix, rank, random_key(plan.seed, 0, target.name))
            left, values, right = (
                device.back(x) for x in (found.left[:, :rank], found.values[:rank], found.right[:rank])
            )
            norm = float((matrix * matrix).sum()) ** 0.5
        root = np.sqrt(values)

        def distance(left: Array, right: Array) -> float:
            with device.active():
                return distance_to_product(matrix, device.move(left), device.move(right))

        return Factored(left * root, root[:, None] * right, norm, distance)

    return factor


def _saved(plan: Extraction, moved: Mapping[str, float]) -> dict[str, Entry]:
    """Return the tensors of all modules, to be replaced as a whole, of which one moved."""
    modules = plan.selection.savable.values()
    return {n: replace(plan.beside[n], name=n) for names in modules if any(moved[n] for n in names) for n in names}


def _left_out(plan: Extraction, moved: Mapping[str, float], saved: Mapping[str, Entry]) -> list[LeftOut]:
    selection = plan.selection
    others = [LeftOut(n, selection.reasons[n], moved[n]) for n in selection.others if moved[n] and n not in saved]
    blobs = [
        LeftOut(n, f"{plan.base.tensors[n].dtype} has no arithmetic here", None) for n in selection.blobs if moved[n]
    ]
    return [*others, *blobs, *(LeftOut(n, why, None) for n, why in selection.missing.items())]


def _result_notes(plan: Extraction, empty: Sequence[Row]) -> list[str]:
    if not empty:
        return list(plan.notes)
    return [*plan.notes, f"the budget holds nothing of {len(empty)} weights, such as '{shown(empty[0].name)}'"]


def _parameters(plan: Extraction) -> dict[str, Any]:
    rule = {"rank": plan.rule.rank, "energy": plan.rule.energy, "budget": plan.rule.budget}
    return {
        "base": plan.base.reference,
        "model": plan.finetuned.reference,
        **{k: v for k, v in rule.items() if v is not None},
        "only": list(plan.only),
        "save_rest": plan.save_rest,
        "dtype": next(name for name, stored in DTYPES.items() if stored == plan.dtype),
        "algorithm": plan.algorithm,
        "seed": plan.seed,
    }
