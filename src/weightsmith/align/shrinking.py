"""Iterative Feature Merging: a narrower network with like units merged (2023, arXiv:2310.06756)."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.align.groups import Group, Groups, Place, resolve, summary_of, tensors_of
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
from weightsmith.align.weights import Load, single_threaded
from weightsmith.budget import usable_threads
from weightsmith.checkpoint.entry import Checkpoint, Entry
from weightsmith.checkpoint.read import fingerprint, open_checkpoint
from weightsmith.distance import reporter
from weightsmith.engine.stream import Stream, Worker
from weightsmith.engine.whole import encoded, numbers
from weightsmith.errors import ArgumentError, MismatchError
from weightsmith.plan import Options
from weightsmith.run import Progress, check_place
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.permute import add_products, merge_closest, merged, unfold

ABOUT = "Hidden units that are nearly alike were merged"

Labels = dict[str, Array]  # group to the new unit of each unit; a group without is not merged


@dataclass(frozen=True)
class GroupWidth:
    """One group: units before and after; `why` says why it was left alone."""

    name: str
    units: int
    surviving: int
    why: str = ""

    @property
    def share(self) -> float:
        """Share of units that survive: low where the group is redundant."""
        return self.surviving / self.units


@dataclass(frozen=True)
class Shrinking:
    """What `shrink` found and, unless it only measured, did.

    Attributes:
        out: The published folder; None where it only measured.
        record: The content of its edit.json.
        seconds: Wall time.
        groups: The width of each group.
        parameters_before: Entries of all tensors.
        parameters_after: The same once like units are merged.
        notes: What the user should know.
    """

    out: Path | None
    record: dict[str, Any]
    seconds: float
    groups: tuple[GroupWidth, ...]
    parameters_before: int
    parameters_after: int
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return the result as plain data, for --json."""
        return {
            "out": None if self.out is None else str(self.out),
            "seconds": round(self.seconds, 3),
            "groups": _widths(self.groups),
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "notes": list(self.notes),
        }


def shrink(
    model: str | Path,
    *,
    groups: Groups | str | Path,
    out: str | Path | None = None,
    beta: float = 0.1,
    max_ratio: float = 1.0,
    options: Options | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Shrinking:
    """Merge hidden units that are nearly alike, group after group; how many survive measures redundancy.

    With x_i all weights of at least two axes that belong to unit i of a group, D_ij = |x_i - x_j|^2 and m the largest of
    these at the start: while the smallest D_ij is at most beta * m, units i and j become one. Its incoming weights, bias and
    norm vectors are the mean over the original units it stands for, its outgoing weights their sum:

        f(W_in x) W_out  with  W_in[:, i] = W_in[:, j]   is unchanged by   mean of W_in, sum of W_out

    Args:
        model: A file, folder, `model+adapter` or hub id.
        groups: Which axes move together: Groups, or the path of a groups file. Groups listed as `counted` stay as they are.
        out: The new folder; None only measures.
        beta: Threshold, at least 0; 0 merges exact copies alone. Useful values: 0.01 to 0.3.
        max_ratio: Largest share of a group's units merged away, from 0 to 1; at least one unit stays.
        options: Threads and symbolic links.
        force: Replace an older output, once the new one is complete.
        progress: Called with (stage, bytes done, bytes in all).

    Raises:
        ArgumentError, CheckpointError, MismatchError, NonFiniteError, ResourceError: See `errors`; nothing is published.

    Differs from the paper: its code sums incoming and averages outgoing weights, which is exact only for positively
    homogeneous units without normalization. Exact copies are merged before all others, so that three are found like two.
    Running statistics of BatchNorm are averaged: exact for copies, else to be re-estimated on data.
    Cost: u^2 times a group's elements per unit for distances; memory for 4 copies of the largest tensor and 3 matrices (u, u).

    The same on the command line: weightsmith shrink MODEL --groups GROUPS --out OUT
    """
    if not (math.isfinite(beta) and beta >= 0 and 0 <= max_ratio <= 1):
        raise ArgumentError(
            "shrink", expected="beta of at least 0 and max_ratio from 0 to 1", got=f"{beta} and {max_ratio}"
        )
    began = time.perf_counter()
    options = options or Options()
    opened = open_checkpoint(model, follow_symlinks=options.follow_symlinks)
    resolved = resolve(load_groups(groups), opened, "shrink")
    _check(opened, resolved, None if out is None else Path(out), force)
    before = fingerprint(opened)
    with Stream(whole_job([opened], options), 1) as stream, stream.worker() as worker:

        def load(entry: Entry) -> Array:
            return numbers(worker, stream.tile, entry)

        labels = _find_all(resolved, load, beta, max_ratio, options, progress)
        widths = tuple(_width(g, labels) for g in resolved)
        shapes = _shapes(resolved, labels)
        notes = (*statistics_note(resolved), *opened.notes, *_config_note(widths, bool(opened.config)))
        record: dict[str, Any] = {}
        if out is not None:
            details = {
                "groups": summary_of(resolved),
                "widths": _widths(widths),
                "merged_units": {name: " ".join(map(str, found)) for name, found in labels.items()},
                "shapes": {n: [list(opened.tensors[n].shape), list(s)] for n, s in shapes.items()},
            }
            asked = {"model": opened.reference, "beta": beta, "max_ratio": max_ratio}
            edit = Edit("shrink", ABOUT, [opened], [before], asked, details, notes)
            changes = _changes(opened, resolved, shapes, labels, load, worker)
            record = publish(
                edit, changes, Path(out), stream, reporter("write", written_bytes(opened, shapes), progress)
            )
    sizes = [(e.size, math.prod(shapes.get(n, e.shape))) for n, e in opened.tensors.items()]
    return Shrinking(
        None if out is None else Path(out),
        record,
        time.perf_counter() - began,
        widths,
        sum(a for a, _ in sizes),
        sum(b for _, b in sizes),
        notes,
    )


def _check(opened: Checkpoint, groups: Sequence[Group], out: Path | None, force: bool) -> None:
    """Refuse what cannot be done, before a weight is read."""
    free = [g for g in groups if not g.counted]
    if not free:
        raise MismatchError("shrink: no group may be merged", expected="a group that is not counted", got="none")
    largest = max(p.entry.size for g in groups for p in g.places)
    check_memory("shrink", 8 * largest, max(g.units for g in free), 3)
    if out is not None:
        check_place(out, [opened], written_bytes(opened, {}), force=force)


def _find_all(
    groups: Sequence[Group], load: Load, beta: float, max_ratio: float, options: Options, progress: Progress | None
) -> Labels:
    """Return the new units of every group that may be merged, each found with those before it merged already."""
    labels: Labels = {}
    free = [g for g in groups if not _left_alone(g)]
    steps = reporter("merge", len(free), progress)
    tensors = tensors_of(groups)
    with single_threaded(options.threads or usable_threads()) as pool:
        for group in free:
            most = min(int(max_ratio * group.units), group.units - 1)
            labels[group.name] = merge_closest(*_products(group, tensors, load, labels, pool), beta, most)
            steps(1)
    return labels


def _left_alone(group: Group) -> str:
    """Return why a group is not merged, "" where it is."""
    if group.counted:
        return "counted: an operator depends on how many units there are"
    return "" if any(_is_weight(p) for p in group.places) else "no weights of two axes to compare"


def _is_weight(place: Place) -> bool:
    return len(place.entry.shape) > 1


def _products(
    group: Group,
    tensors: Mapping[str, list[tuple[Place, str]]],
    load: Load,
    labels: Labels,
    pool: Executor,
) -> tuple[Array, Array, Array]:
    """Return what `merge_closest` asks for: inner products of incoming and outgoing weights, and exact copies."""
    incoming, outgoing = (np.zeros((group.units, group.units)) for _ in range(2))
    digests = [hashlib.sha256() for _ in range(group.units)]
    for place in filter(_is_weight, group.places):
        others = [(p, g) for p, g in tensors[place.entry.name] if p.where.axis != place.where.axis]
        rows = unfold(_narrowed(load(place.entry), others, labels), place.where)
        add_products(outgoing if place.reads else incoming, rows, rows, pool)
        for digest, row in zip(digests, rows, strict=True):
            digest.update((row + 0.0).tobytes())  # -0 is 0
    first: dict[bytes, int] = {}
    copies = [first.setdefault(digest.digest(), i) for i, digest in enumerate(digests)]
    return incoming, outgoing, np.array(copies)


def _narrowed(array: Array, places: Sequence[tuple[Place, str]], labels: Mapping[str, Array]) -> Array:
    """Return a tensor with the units of these places merged: outgoing weights summed, all others averaged."""
    for place, group in places:
        found = labels.get(group)
        if found is not None and found.max() + 1 < len(found):
            array = merged(array, place.where, found, summed=place.reads)
    return array


def _changes(
    opened: Checkpoint,
    groups: Sequence[Group],
    shapes: Mapping[str, tuple[int, ...]],
    labels: Mapping[str, Array],
    load: Load,
    worker: Worker,
) -> dict[str, Change]:
    """Return how each tensor that becomes smaller is made."""
    places = tensors_of(groups)

    def change(name: str) -> Change:
        entry = opened.tensors[name]
        return Change(
            shapes[name],
            lambda: encoded(worker, entry, np.ascontiguousarray(_narrowed(load(entry), places[name], labels))),
        )

    return {name: change(name) for name in shapes}


def _shapes(groups: Sequence[Group], labels: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Return the new shapes of the tensors that become smaller."""
    found = {}
    for name, places in tensors_of(groups).items():
        shape = places[0][0].entry.shape
        for place, group in places:
            if group in labels:
                shape = place.where.resized(shape, int(labels[group].max()) + 1)
        if shape != places[0][0].entry.shape:
            found[name] = shape
    return found


def _width(group: Group, labels: Mapping[str, Array]) -> GroupWidth:
    found = labels.get(group.name)
    return GroupWidth(
        group.name, group.units, group.units if found is None else int(found.max()) + 1, _left_alone(group)
    )


def _widths(widths: Sequence[GroupWidth]) -> dict[str, Any]:
    return {
        w.name: {"units": w.units, "surviving": w.surviving, "share": w.share, **({"why": w.why} if w.why else {})}
        for w in widths
    }


def _config_note(widths: Sequence[GroupWidth], has_config: bool) -> list[str]:
    if not has_config or all(w.surviving == w.units for w in widths):
        return []
    return ["config.json is carried over as it is: where it states a width that changed, set it by hand before loading"]
