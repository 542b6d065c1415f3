"""Differences between two checkpoints: names, shapes, dtypes, and how far the values lie apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Entry
from weightsmith.checkpoint.names import layer_of
from weightsmith.checkpoint.read import check_unchanged, fingerprint, open_checkpoint
from weightsmith.display import Pictured
from weightsmith.distance import (
    Distance,
    add_distances,
    are_numbers,
    gather,
    make_distance,
    measure_pair,
    reading_job,
    reporter,
    tensors_beside,
    tie_note,
)
from weightsmith.engine.stream import Stream, Work, Worker
from weightsmith.plan import Options
from weightsmith.run import Progress

COPIED_BYTES = 1 << 20


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
class Comparison(Pictured):
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
            worker.files.entry_into(entry, start, row.data)
        return name, int(np.count_nonzero(both[0] != both[1])), both.nbytes

    for name, differing, done in stream.in_order(items, count):
        found[name] += differing
        report(done)
    return found
