"""Align a network to a reference by permuting its hidden units (Ainsworth et al., 2022, arXiv:2209.04836)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.align.barrier import Barrier, Loss, barrier
from weightsmith.align.groups import Group, Groups, resolve, summary_of, tensors_of
from weightsmith.align.publish import (
    Change,
    Edit,
    check_memory,
    load_groups,
    publish,
    statistics_note,
    whole_job,
    written_bytes,
)
from weightsmith.align.weights import Orders, Pair, apply, match_weights
from weightsmith.budget import usable_threads
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.read import fingerprint, open_checkpoint
from weightsmith.distance import (
    Distance,
    add_distances,
    add_exactly,
    are_numbers,
    make_distance,
    measure_pair,
    plain_number,
    reporter,
)
from weightsmith.engine.stream import Stream, Worker
from weightsmith.engine.whole import encoded, numbers, raw_words
from weightsmith.errors import ArgumentError, MismatchError, raise_all, shown
from weightsmith.plan import Options
from weightsmith.run import Progress, check_place
from weightsmith.tensor.arrays import Array

MAX_SWEEPS = 100
MAX_SEED = 2**63 - 1
ABOUT = "Hidden units were permuted to match another network, without a change to what is computed,"


@dataclass(frozen=True)
class GroupMatch:
    """One group: how many units it has, the share that changed places, and the cosine of its tensors before and after."""

    name: str
    units: int
    moved: float
    cosine_before: float | None
    cosine_after: float | None


@dataclass(frozen=True)
class AlignmentPlan:
    """What `align` will do, from headers alone.

    Attributes:
        reference: What the model is aligned to.
        model: What is permuted.
        groups: The model's groups.
        beside: The reference's tensors of the same names.
        peak_bytes: Anonymous memory expected at the most.
        notes: What the user should know.
    """

    reference: Checkpoint
    model: Checkpoint
    groups: tuple[Group, ...]
    beside: Mapping[str, Entry]
    peak_bytes: int
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "reference": self.reference.reference,
            "model": self.model.reference,
            "groups": {g.name: {"units": g.units, "axes": len(g.places), "counted": g.counted} for g in self.groups},
            "tensors": len(tensors_of(self.groups)),
            "peak_memory_bytes": self.peak_bytes,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Alignment:
    """What `align` did.

    Attributes:
        out: The published folder.
        record: The content of its edit.json.
        seconds: Wall time.
        sweeps: Passes over the groups until none changed.
        groups: What happened to each group.
        before: How far model and reference lay apart, over all tensors that both have.
        after: How far they lie apart now.
        singular_deviation: Largest change of a singular value, over the tensor's largest; None where not measured.
        barrier_before: With a loss: the barrier between reference and model.
        barrier_after: With a loss: the barrier between reference and output.
        orders: By group, the permutation: unit i of the output is unit order[i] of the model.
    """

    out: Path
    record: dict[str, Any]
    seconds: float
    sweeps: int
    groups: tuple[GroupMatch, ...]
    before: Distance
    after: Distance
    singular_deviation: float | None
    barrier_before: Barrier | None
    barrier_after: Barrier | None
    orders: Orders

    def summary(self) -> dict[str, Any]:
        """Return the alignment as plain data, for --json."""
        barriers = {"before": self.barrier_before, "after": self.barrier_after}
        return {
            "out": str(self.out),
            "seconds": round(self.seconds, 3),
            "sweeps": self.sweeps,
            **_figures(self.before, self.after, self.groups),
            "singular_deviation": self.singular_deviation,
            "barrier": {k: b.summary() for k, b in barriers.items() if b is not None},
        }


def align(
    reference: str | Path,
    model: str | Path,
    *,
    groups: Groups | str | Path,
    out: str | Path,
    seed: int = 0,
    max_sweeps: int = MAX_SWEEPS,
    singular_values: bool = False,
    loss: Loss | None = None,
    options: Options | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Alignment:
    """Permute a model's hidden units so that its weights lie closest to a reference's; what it computes stays the same.

    With a, b the tensors of reference and model, and P one permutation per group, it climbs on

        sum over tensors of <a, P(b)>

    one group at a time, in an order drawn from the seed: all other groups held, the scores S[i, j] of unit i of a and
    unit j of P(b) are inner products over all axes of the group, and the best permutation is a linear assignment. It is
    taken if the sum rises. Sweeps end when no group changes; the result is a local optimum and depends on the seed.
    Several models: align each to the first; then merge them, with `weightsmith merge linear` for one.

    Args:
        reference: A file, folder, `model+adapter` or hub id; not changed.
        model: What is permuted, of the same shapes in all groups.
        groups: Which axes move together: Groups, or the path of a groups file.
        out: The new folder; it appears complete or not at all.
        seed: Of the order in which groups are visited.
        max_sweeps: At most so many passes over the groups.
        singular_values: Also compare the singular values of every permuted matrix before and after (two SVDs each).
        loss: With it, the loss barrier to the reference is measured before and after, see `barrier`.
        options: Threads and symbolic links.
        force: Replace an older output, once the new one is complete.
        progress: Called with (stage, bytes done, bytes in all).

    Raises:
        ArgumentError, CheckpointError, MismatchError, NonFiniteError, ResourceError: See `errors`; nothing is published.

    Differs from the paper: a group that holds both axes of one tensor is judged by the true sum, since the assignment is
    only a linear guess there; the tolerance of 1e-12 is relative; groups whose neighbors did not change are skipped.
    Cost: per sweep and group of u units, 2 u times its elements in multiplications and one assignment, O(u^3) at worst;
    memory for 4 copies of the largest tensor and 3 matrices (u, u) of float64. Each tensor is read once per axis and sweep.

    The same on the command line: weightsmith align REFERENCE MODEL --groups GROUPS --out OUT
    """
    if not 0 <= seed <= MAX_SEED or max_sweeps < 1:
        raise ArgumentError(
            "align", expected="a seed of at least 0 and at least 1 sweep", got=f"{seed} and {max_sweeps}"
        )
    options = options or Options()
    plan = plan_alignment(reference, model, groups=groups, options=options)
    return execute_alignment(
        plan,
        Path(out),
        seed=seed,
        max_sweeps=max_sweeps,
        singular_values=singular_values,
        loss=loss,
        options=options,
        force=force,
        progress=progress,
    )


def plan_alignment(
    reference: str | Path, model: str | Path, *, groups: Groups | str | Path, options: Options | None = None
) -> AlignmentPlan:
    """Open both models, fit the groups to them, and say what will be done; see `align`."""
    options = options or Options()
    first, second = (open_checkpoint(x, follow_symlinks=options.follow_symlinks) for x in (reference, model))
    resolved = resolve(load_groups(groups), second, "align")
    beside = {
        n: first.tensors[first.aliases.get(n, n)] for n in second.tensors if first.aliases.get(n, n) in first.tensors
    }
    faults = []
    for name, places in tensors_of(resolved).items():
        entry, other = places[0][0].entry, beside.get(name)
        if other is None:
            faults.append(f"'{shown(first.reference)}' has no tensor '{shown(name)}'")
        elif not are_numbers(entry, other):
            told = f"{other.dtype} {other.shape} in the reference and {entry.dtype} {entry.shape} in the model"
            faults.append(f"'{shown(name)}' is {told}")
    if faults:
        raise_all(faults, MismatchError, f"align: '{shown(second.reference)}' does not fit the reference")
    wide = any(e.dtype == "F64" for c in (first, second) for e in c.tensors.values())
    largest = max(places[0][0].entry.size for places in tensors_of(resolved).values())
    peak = check_memory("align", largest * (8 if wide else 4), max(g.units for g in resolved), 3)
    notes = tuple(dict.fromkeys([*statistics_note(resolved), *first.notes, *second.notes]))
    return AlignmentPlan(first, second, resolved, beside, peak, notes)


def execute_alignment(
    plan: AlignmentPlan,
    out: Path,
    *,
    seed: int,
    max_sweeps: int = MAX_SWEEPS,
    singular_values: bool = False,
    loss: Loss | None = None,
    options: Options,
    force: bool = False,
    progress: Progress | None = None,
) -> Alignment:
    """Run a plan into `out`; see `align`."""
    began = time.perf_counter()
    opened = (plan.model, plan.reference)
    nbytes = written_bytes(plan.model, {})
    check_place(out, opened, nbytes, force=force)
    before = [fingerprint(c) for c in opened]
    threads = options.threads or usable_threads()
    barrier_before = None if loss is None else barrier(*_references(plan), loss, options=options)
    with Stream(whole_job(opened, options), 2) as stream, stream.worker() as worker:
        pair = Pair(
            lambda e: numbers(worker, stream.tile, plan.beside[e.name]), lambda e: numbers(worker, stream.tile, e)
        )
        steps = reporter("match", max_sweeps * len(plan.groups), progress)
        orders, sweeps = match_weights(
            plan.groups, pair, seed=seed, sweeps=max_sweeps, threads=threads, report=lambda _: steps(1)
        )
        distances, deviation = _measure(plan, pair, orders, singular_values)
        matches = tuple(_group_match(g, orders[g.name], distances) for g in plan.groups)
        far, near = (add_distances([d[i] for d in distances.values()]) for i in (0, 1))
        details = {
            "groups": summary_of(plan.groups),
            "permutations": {name: " ".join(map(str, order)) for name, order in orders.items()},
            "analysis": {"sweeps": sweeps, **_figures(far, near, matches), "singular_deviation": deviation},
        }
        asked = {"reference": opened[1].reference, "model": opened[0].reference, "seed": seed, "max_sweeps": max_sweeps}
        edit = Edit("align", ABOUT, opened, before, asked, details, plan.notes)
        changes = _changes(plan, orders, worker, stream.tile)
        record = publish(edit, changes, out, stream, reporter("write", nbytes, progress))
    after = None if loss is None else barrier(plan.reference.reference, out, loss, options=options)
    seconds = time.perf_counter() - began
    return Alignment(out, record, seconds, sweeps, matches, far, near, deviation, barrier_before, after, orders)


def _references(plan: AlignmentPlan) -> tuple[str, str]:
    return plan.reference.reference, plan.model.reference


def _changes(plan: AlignmentPlan, orders: Orders, worker: Worker, tile: int) -> dict[str, Change]:
    """Return how each tensor of the groups is made: its stored words permuted, or its numbers where an adapter is added."""

    def change(name: str, places: Sequence[tuple[Any, str]]) -> Change:
        entry = plan.model.tensors[name]

        def make() -> Array:
            if entry.low_rank is None:
                return np.ascontiguousarray(apply(raw_words(worker, entry), places, orders)).reshape(-1).view(np.uint8)
            return encoded(worker, entry, np.ascontiguousarray(apply(numbers(worker, tile, entry), places, orders)))

        return Change(entry.shape, make)

    return {name: change(name, places) for name, places in tensors_of(plan.groups).items()}


def _measure(
    plan: AlignmentPlan, pair: Pair, orders: Orders, singular_values: bool
) -> tuple[dict[str, tuple[Distance, Distance]], float | None]:
    """Return, by tensor, how far reference and model lie apart before and after; and how far singular values moved."""
    places = tensors_of(plan.groups)
    found: dict[str, tuple[Distance, Distance]] = {}
    deviation = 0.0
    for name, entry in plan.model.tensors.items():
        if name not in plan.beside or not are_numbers(entry, plan.beside[name]) or not entry.size:
            continue
        first, second = pair.reference(entry), pair.model(entry)
        far = _distance(first, second)
        if name not in places:
            found[name] = far, far
            continue
        moved = np.ascontiguousarray(apply(second, places[name], orders))
        found[name] = far, _distance(first, moved)
        if singular_values and entry.shape[1:]:
            old, new = (
                np.linalg.svd(x.reshape(len(x), -1).astype(np.float64), compute_uv=False) for x in (second, moved)
            )
            deviation = max(deviation, float(np.abs(old - new).max() / max(old[0], np.finfo(np.float64).tiny)))
    return found, deviation if singular_values else None


def _distance(first: Array, second: Array) -> Distance:
    sums, counts, largest = measure_pair(first.reshape(-1), second.reshape(-1))
    return make_distance(first.size, [add_exactly(c) for c in sums.T.tolist()], counts.tolist(), float(largest[0]))


def _group_match(group: Group, order: Array, distances: Mapping[str, tuple[Distance, Distance]]) -> GroupMatch:
    names = dict.fromkeys(p.entry.name for p in group.places)
    before, after = (add_distances([distances[n][i] for n in names]) for i in (0, 1))
    moved = float(np.mean(order != np.arange(group.units)))
    return GroupMatch(group.name, group.units, moved, before.cosine, after.cosine)


def _figures(before: Distance, after: Distance, groups: Sequence[GroupMatch]) -> dict[str, Any]:
    return {
        "distance_before": plain_number(before.norm_difference),
        "distance_after": plain_number(after.norm_difference),
        "cosine_before": before.cosine,
        "cosine_after": after.cosine,
        "groups": {
            g.name: {
                "units": g.units, "moved": g.moved, "cosine_before": g.cosine_before, "cosine_after": g.cosine_after
            }
            for g in groups
        },
    }  # fmt: skip
