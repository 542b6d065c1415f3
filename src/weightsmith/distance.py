"""What the looking verbs share: reading two checkpoints side by side, and how far their numbers lie apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weightsmith.budget import Demand, choose_limits, machine_limit, usable_threads
from weightsmith.checkpoint.entry import ARITHMETIC_DTYPES, Checkpoint, Entry
from weightsmith.checkpoint.names import tied_pair
from weightsmith.device import Device
from weightsmith.engine.stream import Job, Stream, Work
from weightsmith.errors import shown
from weightsmith.plan import Options
from weightsmith.run import Progress
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.vector import pair_sums

# Block sums held per tensor before they are added up; counted from the tensor's start, so no result depends on it.
HELD_BLOCKS = 1 << 16

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


def tie_note(checkpoint: Checkpoint) -> list[str]:
    """Say where a head that is not stored is the embedding by the config."""
    pair = tied_pair(checkpoint.tensors) if checkpoint.config.get("tie_word_embeddings") else None
    if pair is None or pair[1] in checkpoint.tensors:
        return []
    return [f"'{shown(checkpoint.reference)}' stores no '{shown(pair[1])}': its config ties it to '{shown(pair[0])}'"]
