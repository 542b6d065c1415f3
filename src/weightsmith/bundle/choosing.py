"""`pack` without an encoding: what each tensor of each task is stored as follows from a budget or a wanted fidelity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from weightsmith.bundle.candidates import EXACT, Choice, Measured, choose, measure
from weightsmith.bundle.planning import Packing, PackPlan, plan_pack
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.names import matches
from weightsmith.engine.stream import Stream, Worker
from weightsmith.errors import ArgumentError
from weightsmith.plan import Options
from weightsmith.recipe import parse_size
from weightsmith.run import Progress
from weightsmith.tensor.frames import FRAME


def plan_choice(
    *,
    base: str | Path,
    models: Mapping[str, str | Path] | Sequence[str | Path],
    budget: str | int | None = None,
    bits_per_weight: float | None = None,
    min_fidelity: float | None = None,
    exact: Sequence[str] = (),
    copy_base: bool = False,
    options: Options | None = None,
    drops: Callable[[PackPlan], Mapping[str, float]] | None = None,
    progress: Progress | None = None,
) -> PackPlan:
    """Try settings on every tensor of every task, and choose one for each: the plan of a bundle.

    Args:
        base: What all models were trained from.
        models: As for `pack`.
        budget: Bytes of all tasks' parts, a number or such as "1.5GB"; or
        bits_per_weight: The same, as bits for each number of each task; or
        min_fidelity: Least 1 - |rebuilt - finetuned|^2 / |finetuned - base|^2 of each task.
        exact: Globs of tensors that are stored without loss.
        copy_base: As for `pack`.
        options: Memory, threads and the like.
        drops: Packs as a first choice says and returns how far each task's score falls; errors are weighed by it then.
        progress: Called with (stage, bytes done, bytes in all).

    Raises:
        ArgumentError: Not one of the three is given, or it cannot be kept.
    """
    if sum(x is not None for x in (budget, bits_per_weight, min_fidelity)) != 1:
        raise ArgumentError(
            "pack without an encoding",
            expected="one of budget, bits_per_weight and min_fidelity",
            do="Name an encoding, or give one of them",
        )
    if drops is not None and min_fidelity is not None:
        raise ArgumentError("pack: score", expected="a budget or bits_per_weight beside it", got="min_fidelity")
    if bits_per_weight is not None and not 0 < bits_per_weight <= 64:
        raise ArgumentError("pack: bits_per_weight", expected="a number in (0, 64]", got=f"{bits_per_weight}")
    if min_fidelity is not None and not 0 <= min_fidelity <= 1:
        raise ArgumentError("pack: min_fidelity", expected="a number in [0, 1]", got=f"{min_fidelity}")
    plan = plan_pack("lossless", base=base, models=models, exact=exact, copy_base=copy_base, options=options)
    measured = _measure(plan, progress)
    room = parse_size(budget, "budget") if budget is not None else None
    if bits_per_weight is not None:
        room = int(bits_per_weight / 8 * sum(e.size for c in plan.tasks.values() for e in c.tensors.values()))
    choice = choose(measured, budget=room, min_fidelity=min_fidelity)
    if drops is not None:
        fallen = drops(replace(plan, packing=replace(plan.packing, choice=choice)))
        norms = {task: math.fsum(m.norm for m in each.values()) for task, each in measured.items()}
        lost = {task: (1 - choice.fidelity[task]) * norm for task, norm in norms.items()}
        choice = choose(measured, budget=room, drops=fallen, errors=lost)
        told = ", ".join(f"{drop:.4g} of '{task}'" for task, drop in fallen.items())
        plan = replace(plan, notes=(*plan.notes, f"scores fell, at a first choice, by {told}"))
    return replace(plan, packing=replace(plan.packing, choice=choice), notes=(*plan.notes, *_notes(choice)))


def _measure(plan: PackPlan, progress: Progress | None) -> dict[str, dict[str, Measured]]:
    """Return what each tensor of each task could be stored as."""
    packing = plan.packing
    items = [(task, e) for task, model in plan.tasks.items() for e in model.tensors.values()]
    found: dict[str, dict[str, Measured]] = {task: {} for task in plan.tasks}
    done, total = 0, sum(e.nbytes for _, e in items)

    def run(worker: Worker, item: tuple[str, Entry]) -> Measured:
        _, entry = item
        tried = measure(worker, packing.origin(entry), entry)
        if not any(matches(glob, entry.name) for glob in packing.exact) or EXACT not in tried.settings:
            return tried
        at = tried.settings.index(EXACT)
        return Measured((EXACT,), (tried.errors[at],), (tried.sizes[at],), tried.norm)

    with Stream(_job(packing, plan.tasks), 3, FRAME) as stream, threadpool_limits(1, "blas"):
        for (task, entry), one in zip(items, stream.in_order(items, run), strict=True):
            found[task][entry.name] = one
            done += entry.nbytes
            if progress is not None:
                progress("try", done, total)
    return found


def _job(packing: Packing, tasks: Mapping[str, Checkpoint]) -> Any:
    empty = Choice({task: {} for task in tasks}, {}, {}, 0.0)  # matrices may be tried
    return replace(packing, choice=empty).job(packing.encoding.packing, 3)


def _notes(choice: Choice) -> list[str]:
    """Say what was chosen, and how near each task is."""
    chosen = [f"{name} for {count}" for name, count in choice.counts().items()]
    lines = [", ".join(chosen[i : i + 4]) for i in range(0, len(chosen), 4)]
    least = min(choice.fidelity, key=lambda task: choice.fidelity[task])
    return [
        *(f"chosen: {line} tensors" for line in lines),
        f"about {choice.size:,} bytes for the tasks' parts",
        f"fidelity, 1 - |rebuilt - finetuned|^2 / |finetuned - base|^2: at least {choice.fidelity[least]:.6f}, of '{least}'",
    ]
