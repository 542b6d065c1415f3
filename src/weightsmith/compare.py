"""Differences between two checkpoints: names, shapes, dtypes, and how far the values lie apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.budget import Demand, choose_limits, machine_limit, usable_threads
from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.names import layer_of, tied_pair
from weightsmith.checkpoint.read import check_unchanged, fingerprint, open_checkpoint
from weightsmith.device import Device
from weightsmith.errors import shown
from weightsmith.plan import Options
from weightsmith.run import Progress
from weightsmith.stream import Job, Stream, Work, Worker
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.vector import pair_sums

# Block sums held per tensor before they are added up; counted from the tensor's start, so no result depends on it.
HELD_BLOCKS = 1 << 16
COPIED_BYTES = 1 << 20

# What one tile gives: block sums (blocks, k), counts (m,), and the largest of some things (p,).
Measured = tuple[Array, Array, Array]


@dataclass(frozen=True, slots=True)
class Distance:
    """How far the numbers of b lie from those of a, over one tensor or several.

    Entries that are NaN or infinite in either are left out of the sums.

    Attributes:
        elements: Number of entries.
        differing: Entries that differ in their bits, once widened to a common dtype (so 0 and -0 differ).
        equal: Entries that are finite and equal in value.
        finite: Entries that are finite in both.
        nonfinite_a: NaN or infinite entries of a.
        nonfinite_b: The same of b.
        max_difference: Largest |a - b|.
        sums: Of |a - b|, (a - b)^2, a^2, b^2 and a b, in float64.
    """

    elements: int = 0
    differing: int = 0
    equal: int = 0
    finite: int = 0
    nonfinite_a: int = 0
    nonfinite_b: int = 0
    max_difference: float = 0.0
    sums: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)

    @property
    def mean_difference(self) -> float:
        """Mean |a - b|; 0 where there is no entry."""
        return self.sums[0] / self.finite if self.finite else 0.0

    @property
    def norm_difference(self) -> float:
        """Length of b - a."""
        return math.sqrt(self.sums[1])

    @property
    def norm_a(self) -> float:
        """Length of a."""
        return math.sqrt(self.sums[2])

    @property
    def norm_b(self) -> float:
        """Length of b."""
        return math.sqrt(self.sums[3])

    @property
    def relative(self) -> float:
        """Length of b - a over that of a; infinite where only a is zero."""
        if self.norm_difference == 0:
            return 0.0
        return self.norm_difference / self.norm_a if self.norm_a else math.inf

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between a and b; None where one of them is zero."""
        squares = self.sums[2] * self.sums[3]
        lengths = math.sqrt(squares) if 0 < squares < math.inf else self.norm_a * self.norm_b
        return min(1.0, max(-1.0, self.sums[4] / lengths)) if lengths else None

    def summary(self) -> dict[str, Any]:
        """Return the figures as plain data; null where JSON has no number."""
        names = ("max_difference", "mean_difference", "norm_a", "norm_b", "norm_difference", "relative", "cosine")
        figures = {name: plain_number(getattr(self, name)) for name in names}
        counts = {"differing": self.differing, "nonfinite_a": self.nonfinite_a, "nonfinite_b": self.nonfinite_b}
        return {**figures, **counts}


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor that both checkpoints have.

    Attributes:
        name: Its name.
        shapes: In A and in B.
        dtypes: In A and in B.
        distance: How far the values lie apart; None where they are not numbers to compute with, or shapes differ.
        differing_bytes: For tensors of other dtypes, which are compared byte for byte; else None.
    """

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[str, str]
    distance: Distance | None = None
    differing_bytes: int | None = None

    @property
    def has_other_shape(self) -> bool:
        """Whether the shapes differ."""
        return self.shapes[0] != self.shapes[1]

    @property
    def has_other_dtype(self) -> bool:
        """Whether the dtypes differ."""
        return self.dtypes[0] != self.dtypes[1]

    @property
    def has_other_values(self) -> bool:
        """Whether stored values were compared and differ."""
        return bool(self.distance and self.distance.differing) or bool(self.differing_bytes)

    @property
    def is_identical(self) -> bool:
        """Whether shape, dtype and every bit agree."""
        return not (self.has_other_shape or self.has_other_dtype or self.has_other_values)

    def summary(self) -> dict[str, Any]:
        """Return the row as plain data."""
        found: dict[str, Any] = {"name": self.name, "identical": self.is_identical}
        for side, shape, dtype in zip("ab", self.shapes, self.dtypes, strict=True):
            found |= {f"shape_{side}": list(shape), f"dtype_{side}": dtype}
        if self.differing_bytes is not None:
            found["differing_bytes"] = self.differing_bytes
        return found if self.distance is None else {**found, **self.distance.summary()}


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        a: The first reference.
        b: The second.
        only_a: Names that only A has.
        only_b: Names that only B has.
        rows: One per tensor that both have, in A's order.
        total: How far the values lie apart over all tensors that were computed with.
        notes: What the user should know.
    """

    a: str
    b: str
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    rows: tuple[Row, ...]
    total: Distance
    notes: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether any name, shape, dtype or stored value differs."""
        return bool(self.only_a or self.only_b) or not all(r.is_identical for r in self.rows)

    def verdict(self) -> str:
        """Return one line that says whether, and in what, the two differ."""
        if not self.differs:
            return f"identical: {len(self.rows)} tensors"
        counts = {
            "values": sum(r.has_other_values for r in self.rows),
            "shape": sum(r.has_other_shape for r in self.rows),
            "dtype": sum(r.has_other_dtype for r in self.rows),
        }
        parts = [f"{n} of {len(self.rows)} common tensors in {what}" for what, n in counts.items() if n]
        parts += [f"{len(n)} only in {x}" for n, x in ((self.only_a, "A"), (self.only_b, "B")) if n]
        return "different: " + ", ".join(parts)

    def summary(self) -> dict[str, Any]:
        """Return the comparison as plain data, for --json."""
        return {
            "a": self.a,
            "b": self.b,
            "differs": self.differs,
            "verdict": self.verdict(),
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "total": {"elements": self.total.elements, **self.total.summary()},
            "tensors": [r.summary() for r in self.rows],
            "notes": list(self.notes),
        }


def compare(
    a: str | Path, b: str | Path, *, options: Options | None = None, progress: Progress | None = None
) -> Comparison:
    """Compare two checkpoints tensor by tensor; each is read once, in bounded memory.

    Values are compared where the shapes agree: as numbers, in float64, where both dtypes are BF16, F16, F32 or F64;
    else byte for byte, where the dtypes agree. NaN of the same bits count as equal. The figures are the same for any
    number of threads.

    Args:
        a: A file, folder, `model+adapter` or hub id.
        b: Another; relative figures are relative to `a`.
        options: Memory and threads.
        progress: Called with (stage, bytes done, bytes in all).

    Raises:
        ArgumentError: A reference names nothing.
        CheckpointError: A file is damaged, or changes while it is read.
        ResourceError: The memory budget is too small.

    The same on the command line: weightsmith compare A B
    """
    options = options or Options()
    opened = [open_checkpoint(x, follow_symlinks=options.follow_symlinks) for x in (a, b)]
    before = [fingerprint(c) for c in opened]
    first, second = tensors_beside(opened[0], opened[1]), tensors_beside(opened[1], opened[0])
    pairs = {name: (entry, second[name]) for name, entry in first.items() if name in second}
    numbers = [Work(n, x.shape, x.dtype, (x, y), layer_of(n)) for n, (x, y) in pairs.items() if are_numbers(x, y)]
    others = {n: p for n, p in pairs.items() if _are_bytes(*p)}
    job = reading_job(numbers, opened, options)
    nbytes = sum(e.nbytes for w in numbers for e in w.inputs) + sum(2 * x.nbytes for x, _ in others.values())
    report = reporter("compare", nbytes, progress)
    with Stream(job, 2) as stream:
        distances = {w.name: Distance() for w in numbers if not w.size}
        for work, sums, counts, largest in gather(stream, numbers, lambda x: measure_pair(*x), report):
            distances[work.name] = make_distance(work.size, sums, counts, largest[0])
        differing = _count_bytes(stream, others, report)
    for prints in before:
        check_unchanged(prints)
    rows = tuple(
        Row(n, (x.shape, y.shape), (x.dtype, y.dtype), distances.get(n), differing.get(n))
        for n, (x, y) in pairs.items()
    )
    return Comparison(
        a=opened[0].reference,
        b=opened[1].reference,
        only_a=tuple(n for n in first if n not in second),
        only_b=tuple(n for n in second if n not in first),
        rows=rows,
        total=add_distances([r.distance for r in rows if r.distance is not None]),
        notes=tuple(dict.fromkeys(note for c in opened for note in (*c.notes, *tie_note(c)))),
    )


def reading_job(works: Sequence[Work], checkpoints: Sequence[Checkpoint], options: Options) -> Job:
    """Return the job that reads these works as numbers, on the host, whatever they hold."""
    wide = any(e.dtype == "F64" for w in works for e in w.inputs)
    lows = [e.low_rank for w in works for e in w.inputs if e.low_rank is not None]
    demand = Demand(
        inputs=len(checkpoints),
        entries=sum(len(c.tensors) for c in checkpoints),
        itemsize=8 if wide else 4,
        factor_bytes=max((4 * (p.down.size + p.up.size) for p in lows), default=0),
    )
    memory = min(options.memory_bytes, machine_limit() or options.memory_bytes)
    limits = choose_limits(demand, memory, options.threads or usable_threads())
    return Job(None, 0, "float64" if wide else "float32", limits, Device(), allow_nonfinite=True)


def gather(
    stream: Stream, works: Sequence[Work], measure: Callable[[Array], Measured], report: Callable[[int], None]
) -> Iterator[tuple[Work, list[float], list[int], list[float]]]:
    """Yield each work that has elements with what measure(inputs (T, n)) of its tiles adds up to, exactly rounded."""
    held: list[Array] = []
    folded: list[list[float]] = []
    counts: Array = 0
    largest: Array = 0.0
    for piece, found in stream.each(works, lambda _, inputs, __: measure(inputs)):
        held += [sums for sums, _, _ in found]
        counts = counts + sum(c for _, c, _ in found)
        largest = np.maximum(largest, np.max([top for _, _, top in found], axis=0))
        while sum(map(len, held)) > HELD_BLOCKS:
            blocks = np.concatenate(held)
            folded.append(_column_sums(blocks[:HELD_BLOCKS]))
            held = [blocks[HELD_BLOCKS:]]
        report(sum((piece.stop - piece.start) * e.nbytes // e.size for e in piece.work.inputs))
        if piece.stop == piece.work.size:
            rest = _column_sums(np.concatenate(held))
            yield piece.work, _column_sums(np.array([*folded, rest])), counts.tolist(), largest.tolist()
            held, folded, counts, largest = [], [], 0, 0.0


def make_distance(elements: int, sums: Sequence[float], counts: Sequence[int], largest: float) -> Distance:
    """Return what `measure_pair` of all tiles adds up to as a distance."""
    differing, equal, finite, nonfinite_a, nonfinite_b = counts
    return Distance(elements, differing, equal, finite, nonfinite_a, nonfinite_b, largest, tuple(sums))


def add_distances(distances: Sequence[Distance]) -> Distance:
    """Return the distance over all these tensors together."""
    if not distances:
        return Distance()
    counts = [sum(c) for c in zip(*map(_counts, distances), strict=True)]
    sums = [add_exactly(s) for s in zip(*(d.sums for d in distances), strict=True)]
    return make_distance(sum(d.elements for d in distances), sums, counts, max(d.max_difference for d in distances))


def _counts(d: Distance) -> tuple[int, ...]:
    return d.differing, d.equal, d.finite, d.nonfinite_a, d.nonfinite_b


def add_exactly(values: Sequence[float]) -> float:
    """Return the correctly rounded sum; infinity where it does not fit."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return math.inf


def plain_number(value: float | None) -> float | None:
    """Return the number, or None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def reporter(stage: str, total: int, progress: Progress | None) -> Callable[[int], None]:
    """Return a function that adds up bytes done and passes them on."""
    done = 0

    def report(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(stage, min(done, total), total)

    return report


def measure_pair(first: Array, second: Array) -> Measured:
    """Measure how far second (n,) lies from first (n,); see `make_distance`."""
    sums, counts, largest = pair_sums(first, second)
    return sums, counts, np.array([largest])


def _column_sums(blocks: Array) -> list[float]:
    return [add_exactly(column) for column in blocks.T.tolist()]


def tensors_beside(checkpoint: Checkpoint, other: Checkpoint) -> Mapping[str, Entry]:
    """Return the tensors, with those that share another's storage and that the other checkpoint stores."""
    shared = {
        alias: replace(checkpoint.tensors[kept], name=alias)
        for alias, kept in checkpoint.aliases.items()
        if alias in other.tensors and alias not in checkpoint.tensors and kept in checkpoint.tensors
    }
    return {**checkpoint.tensors, **shared}


def are_numbers(first: Entry, second: Entry) -> bool:
    """Tell whether the two have one shape, and dtypes to compute with."""
    return first.shape == second.shape and all(e.dtype in ARITHMETIC_DTYPES for e in (first, second))


def _are_bytes(first: Entry, second: Entry) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and first.dtype not in ARITHMETIC_DTYPES


def _count_bytes(
    stream: Stream, pairs: Mapping[str, tuple[Entry, Entry]], report: Callable[[int], None]
) -> dict[str, int]:
    """Return by name how many bytes differ."""
    found = dict.fromkeys(pairs, 0)
    items = [(n, start) for n, (x, _) in pairs.items() for start in range(0, x.nbytes, COPIED_BYTES)]

    def count(worker: Worker, item: tuple[str, int]) -> tuple[str, int, int]:
        name, start = item
        entries = pairs[name]
        both = np.empty((2, min(COPIED_BYTES, entries[0].nbytes - start)), np.uint8)
        for row, entry in zip(both, entries, strict=True):
            worker.files.pread_into(entry.file, entry.offset + start, row.data)
        return name, int(np.count_nonzero(both[0] != both[1])), both.nbytes

    for name, differing, done in stream.in_order(items, count):
        found[name] += differing
        report(done)
    return found


def tie_note(checkpoint: Checkpoint) -> list[str]:
    """Say where a head that is not stored is the embedding by the config."""
    pair = tied_pair(checkpoint.tensors) if checkpoint.config.get("tie_word_embeddings") else None
    if pair is None or pair[1] in checkpoint.tensors:
        return []
    return [f"'{shown(checkpoint.reference)}' stores no '{shown(pair[1])}': its config ties it to '{shown(pair[0])}'"]
