"""What whole matrices tell: spectra of task vectors, their alignment and interference, and the health of convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from weightsmith.budget import Demand, choose_limits, machine_limit, usable_threads
from weightsmith.checkpoint.names import kind_of, layer_of
from weightsmith.engine.stream import Piece, Stream, Work, Worker
from weightsmith.engine.whole import check_finite, numbers
from weightsmith.localization.part import Real
from weightsmith.localization.reading import Reading, Report
from weightsmith.plan import Options
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.filters import FilterHealth, filter_health, is_convolution
from weightsmith.tensor.spectra import alignment, dominant, effective_rank, singular_interference, stable_rank
from weightsmith.tensor.spectral import Factors, leading, wide

WITHOUT = "Leave it out: --copy NAME"  # what a decomposition cannot take
LARGEST_SIDE = 8_192  # of a matrix's smaller side; the eigenproblem of a larger one takes minutes
SHOWN_VALUES = 32
HELD_MATRICES = 8  # float64 matrices of the largest tensor's size that one thread holds


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of one matrix's task vectors, and how these lie to each other.

    Attributes:
        name: The tensor's name.
        shape: (rows, columns).
        places: Which singular values are kept, counted from 0, largest first.
        values: Those of each task vector over its largest, (T, n); 0 for a task vector of zeros.
        merged: The same of the merged vector, (n,).
        effective_ranks: exp(entropy) of each task vector's singular values, then of the merged one's, (T + 1,).
        stable_ranks: Squared length over the largest squared singular value, likewise.
        alignment: Length of each task vector within the leading left space of the merged vector, over its length; None for zeros.
        alignment_rank: Size of that space: the least that leaves out at most 5 % of the merged vector's length.
        interference: Singular task interference; each task gives min(rows, columns) / T triplets, at least one.
    """

    name: str
    shape: tuple[int, ...]
    places: tuple[int, ...]
    values: Real
    merged: Real
    effective_ranks: Real
    stable_ranks: Real
    alignment: tuple[float | None, ...]
    alignment_rank: int
    interference: float

    def summary(self) -> dict[str, Any]:
        """Return the spectrum as plain data; `values` is the mean over the tasks that moved this matrix."""
        moved = self.values[self.values[:, 0] > 0]
        return {
            "name": self.name,
            "layer": layer_of(self.name),
            "kind": kind_of(self.name),
            "shape": list(self.shape),
            "effective_rank": self.effective_ranks[:-1].tolist(),
            "stable_rank": self.stable_ranks[:-1].tolist(),
            "effective_rank_merged": float(self.effective_ranks[-1]),
            "stable_rank_merged": float(self.stable_ranks[-1]),
            "values": (moved.mean(0) if len(moved) else self.values[0]).tolist(),
            "values_merged": self.merged.tolist(),
            "positions": [i / min(self.shape) for i in self.places],
            "alignment": list(self.alignment),
            "alignment_rank": self.alignment_rank,
            "interference": self.interference,
        }


@dataclass(frozen=True)
class Convolution:
    """The health of one convolution's filters, in the base and then in each model."""

    name: str
    shape: tuple[int, ...]
    models: tuple[FilterHealth, ...]

    def summary(self, tasks: Sequence[str]) -> dict[str, Any]:
        """Return the figures as plain data."""
        rows = [{"model": n, **m._asdict()} for n, m in zip(["base", *tasks], self.models, strict=True)]
        return {"name": self.name, "layer": layer_of(self.name), "shape": list(self.shape), "models": rows}


def is_spectral(work: Work) -> bool:
    """Tell whether a tensor's spectra are taken: a matrix whose smaller side is not too large."""
    return len(work.shape) == 2 and 1 < min(work.shape) <= LARGEST_SIDE


def decompose(
    reading: Reading, options: Options, report: Report
) -> tuple[tuple[Spectrum, ...], tuple[Convolution, ...]]:
    """Read all matrices and convolutions whole, one at a time per thread."""
    works = [w for w in reading.works if is_spectral(w) or is_convolution(w.shape)]
    largest = max((math.prod(w.shape) for w in works), default=0)
    demand = Demand(
        inputs=2 * len(reading.plan.inputs),
        entries=sum(len(c.tensors) for c in reading.plan.inputs),
        itemsize=8 if reading.job.compute_dtype == "float64" else 4,
        matrix_bytes=8 * HELD_MATRICES * largest,
    )
    memory = min(options.memory_bytes, machine_limit() or options.memory_bytes)
    limits = choose_limits(demand, memory, options.threads or usable_threads())
    limits = replace(
        reading.job.limits, threads=limits.threads, window=limits.window
    )  # tiles stay as the rest has them
    reading = replace(reading, job=replace(reading.job, limits=limits))
    # Each matrix is decomposed by one thread, so that the bytes do not depend on how many there are.
    with threadpool_limits(1, "blas"), reading.stream() as stream:
        found = list(_each(reading, stream, works, report))
    return tuple(f for f in found if isinstance(f, Spectrum)), tuple(f for f in found if isinstance(f, Convolution))


def _each(reading: Reading, stream: Stream, works: Sequence[Work], report: Report) -> Iterator[Spectrum | Convolution]:
    def run(worker: Worker, work: Work) -> Spectrum | Convolution:
        if is_spectral(work):
            return _spectrum(reading, stream, worker, work)
        health = [filter_health(numbers(worker, stream.tile, e)) for e in work.inputs]
        return Convolution(work.name, work.shape, tuple(health))

    for work, found in zip(works, stream.in_order(works, run), strict=True):
        yield found
        report(sum(e.nbytes for e in work.inputs))


def _spectrum(reading: Reading, stream: Stream, worker: Worker, work: Work) -> Spectrum:
    rank = min(work.shape)
    kept = max(1, rank // reading.tasks)
    vector_of_merged = _merged_matrix(reading, stream, worker, work)
    check_finite(vector_of_merged, work.name, WITHOUT)
    merged = leading(wide(vector_of_merged), rank)
    size = dominant(merged.values)
    space = merged.left[:, :size]
    base = numbers(worker, stream.tile, work.inputs[0])
    values, parts, aligned = [merged.values], [], []
    for entry in work.inputs[1:]:
        vector = wide(numbers(worker, stream.tile, entry) - base)
        check_finite(vector, work.name, WITHOUT)
        aligned.append(alignment(space, vector))
        factors = leading(vector, rank)
        values.append(factors.values)
        parts.append(Factors(factors.left[:, :kept].copy(), factors.values[:kept], factors.right[:kept].copy()))
    values.append(values.pop(0))
    places = [i * rank // min(rank, SHOWN_VALUES) for i in range(min(rank, SHOWN_VALUES))]
    shown = np.stack([v[places] / v[0] if v[0] > 0 else np.zeros(len(places)) for v in values])
    return Spectrum(
        work.name,
        work.shape,
        tuple(places),
        shown[:-1],
        shown[-1],
        np.array([effective_rank(v) for v in values]),
        np.array([stable_rank(v) for v in values]),
        tuple(aligned),
        size,
        singular_interference(parts),
    )


def _merged_matrix(reading: Reading, stream: Stream, worker: Worker, work: Work) -> Array:
    out = np.empty(work.size, reading.job.compute_dtype)
    for loaded in reading.tiles(stream, worker, [Piece(work, 0, work.size)]):
        out[loaded.piece.start : loaded.piece.stop] = loaded.merged
    return out.reshape(work.shape)
