"""What each tensor of each task could be stored as, what that loses and takes, and the choice under a budget.

Every setting is tried on the tensor's own frames: encoded, counted, rebuilt, rounded to the stored dtype and compared with the
finetuned numbers. Of a tensor of more than SAMPLE frames as many are tried, evenly spread; sizes then have three standard
errors added, so that the whole stays within its budget. Low ranks are found in a sketch of the whole matrix, whose error is at
least that of the exact decomposition with which they are stored; in matrices of LARGE elements or more only where a part
of PART rows and columns has most of its squares in few directions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from weightsmith.bundle.allocation import Allocation, Options, least_error, least_size, task_weights
from weightsmith.checkpoint.entry import Entry
from weightsmith.checkpoint.names import kind_of
from weightsmith.checkpoint.packed import element_bytes, frame_count, read_words
from weightsmith.compress.bitdelta import bitdelta
from weightsmith.compress.compeft import compeft
from weightsmith.compress.lossless import lossless
from weightsmith.compress.low_rank import low_rank, scaled
from weightsmith.compress.rounded import rounded
from weightsmith.encoding import PACKED_DTYPES, Encoding
from weightsmith.engine.stream import Worker
from weightsmith.engine.whole import numbers
from weightsmith.errors import ArgumentError
from weightsmith.matrices import as_matrix
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import decode, encode, stored_bytes
from weightsmith.tensor.frames import FRAME, add_rounded, add_signs, add_ternary, encode_frame
from weightsmith.tensor.spectral import Factors, sketched, wide
from weightsmith.tensor.truncation import singular_values

SAMPLE = 8  # frames of a tensor on which settings are tried
OVERHEAD, LETTER = 520, 6  # bytes of a tensor in headers and manifests, stored or not; and for each letter of its name
TASK = 1_400  # bytes of a task's own manifest beside that
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
STEPS = (0.25, 0.5, 0.75, 1.0, 1.5)
RANKS = (2, 8, 32, 64)
LARGE = 1 << 20  # elements of a matrix whose low ranks are tried only where a part of it promises them
PART, PROMISE = 256, 0.8  # rows and columns of that part; share of its squares that RANKS[-1] triplets must hold


@dataclass(frozen=True)
class Setting:
    """One way to store a tensor of a task; without an encoding nothing is stored, and the tensor is the base's."""

    encoding: Encoding | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """All parameters of the encoding, checked."""
        return {} if self.encoding is None else self.encoding.check(self.given, 1)

    @property
    def label(self) -> str:
        """The encoding and what was given, in words."""
        if self.encoding is None:
            return "nothing"
        return " ".join([self.encoding.name, *(f"{n}={v}" for n, v in self.given.items() if n != "scope")])


NOTHING, EXACT = Setting(), Setting(lossless)
FRAMED = (
    *(Setting(compeft, {"density": d, "scope": "tensor"}) for d in DENSITIES),
    Setting(bitdelta),
    *(Setting(rounded, {"step": s, "scope": "tensor"}) for s in STEPS),
)


@dataclass(frozen=True)
class Measured:
    """What one tensor of one task could be stored as.

    Attributes:
        settings: The possible settings.
        errors: Squared distance from the finetuned tensor, of each.
        sizes: Bytes, of each, with what headers and manifests say of the tensor.
        norm: Squared distance of the finetuned tensor from the base.
    """

    settings: tuple[Setting, ...]
    errors: tuple[float, ...]
    sizes: tuple[int, ...]
    norm: float


@dataclass(frozen=True)
class Choice:
    """A setting for each tensor of each task.

    Attributes:
        settings: Task to tensor to setting.
        sizes: Task to bytes, as measured beforehand.
        fidelity: Task to 1 - |rebuilt - finetuned|^2 / |finetuned - base|^2, as measured beforehand; 1 where task equals base.
        bound: No choice has a smaller sum of weighted errors (with a budget) or a smaller size (with a fidelity).
    """

    settings: Mapping[str, Mapping[str, Setting]]
    sizes: Mapping[str, int]
    fidelity: Mapping[str, float]
    bound: float

    @property
    def size(self) -> int:
        """Bytes of all tasks."""
        return sum(self.sizes.values())

    def counts(self) -> dict[str, int]:
        """Return how many tensors got each setting, the most frequent first; ranks are counted as one."""
        names = Counter(s.label.partition(" rank=")[0] for t in self.settings.values() for s in t.values())
        return dict(names.most_common())


def measure(worker: Worker, origin: Entry | None, entry: Entry) -> Measured:
    """Return what a tensor of a task could be stored as, from one pass over its frames (over all of a matrix).

    Args:
        worker: Reads both; its tile is at least FRAME.
        origin: The base's tensor; None where there is none of this shape.
        entry: The task's.

    Cost: every setting on at most SAMPLE frames; where low ranks are tried, about 12 products with 74 columns, and memory for
    about 4 matrices in float64.
    """
    stated = OVERHEAD + LETTER * len(entry.name)
    count = entry.nbytes // element_bytes(entry.dtype)
    starts = _sampled(frame_count(count))
    cuts = [(s * FRAME, min((s + 1) * FRAME, count)) for s in starts]
    words = [_words(worker, origin, entry, *cut) for cut in cuts]
    whole = len(starts) == frame_count(count)
    if origin is not None and whole and all(np.array_equal(a, b) for a, b in words):
        return Measured((NOTHING,), (0.0,), (stated,), 0.0)
    sample = _Sample(cuts, count)
    exact = sample.size([len(encode_frame("difference", {"finetuned": a, "base": b}, {})) for a, b in words])
    if origin is None or not {entry.dtype, origin.dtype} <= set(PACKED_DTYPES):
        return Measured((EXACT,), (0.0,), (stated + exact,), 0.0)
    base, task = (np.concatenate([_numbers(worker, e, *cut) for cut in cuts]) for e in (origin, entry))
    norm = sample.share * float(np.square(task - base, dtype=np.float64).sum())
    if not math.isfinite(norm):  # NaN or infinity, let pass
        return Measured((EXACT,), (0.0,), (stated + exact,), 0.0)
    found = [(NOTHING, sample.error(base, task, entry.dtype), 0), (EXACT, 0.0, exact)]
    for setting in FRAMED:
        if setting.encoding is not None and setting.encoding.is_taken(entry.name, entry.shape, entry.dtype):
            found.append((setting, *sample.tried(setting, base, task, entry.dtype)))
    fits = low_rank.is_taken(entry.name, entry.shape, entry.dtype) and kind_of(entry.name) not in ("embedding", "head")
    if fits and (entry.size < LARGE or _promises_low_rank(worker, origin, entry)):
        found += _low_ranks(worker, origin, entry, sample, base, task)
    return Measured(tuple(f[0] for f in found), tuple(f[1] for f in found), tuple(stated + f[2] for f in found), norm)


@dataclass(frozen=True)
class _Sample:
    """Where the frames lie that settings are tried on, in a tensor of so many elements."""

    cuts: Sequence[tuple[int, int]]
    count: int

    @property
    def share(self) -> float:
        """The tensor's elements by those of the sample."""
        return self.count / max(1, sum(b - a for a, b in self.cuts))

    def size(self, lengths: Sequence[int]) -> int:
        """Return the bytes of a framed piece whose frames on the sample have these lengths."""
        frames = frame_count(self.count)
        spread = 0.0
        if len(lengths) < frames:
            missing = 1 - len(lengths) / frames
            spread = 3 * frames * math.sqrt(float(np.var(lengths, ddof=1)) * missing / len(lengths))
        return math.ceil(self.share * sum(lengths) + spread) + 4 * frames

    def error(self, rebuilt: Array, task: Array, dtype: str) -> float:
        """Return the squared distance of numbers, once they are rounded to the stored dtype."""
        raw = np.empty(rebuilt.size * stored_bytes(dtype), np.uint8)
        encode(rebuilt, dtype, raw)
        near = np.empty_like(rebuilt)
        decode(raw, dtype, near)
        return self.share * float(np.square(near - task, dtype=np.float64).sum())

    def tried(self, setting: Setting, base: Array, task: Array, dtype: str) -> tuple[float, int]:
        """Return error and size of a setting whose form is framed."""
        assert setting.encoding is not None
        form, out, lengths, place = setting.encoding.form, base.copy(), [], 0
        part = setting.encoding(task - base, **setting.given)
        for start, stop in self.cuts:
            piece = slice(place, place + stop - start)
            data = encode_frame(form, {n: a[piece] for n, a in part.arrays.items()}, part.settings)
            _ADD[form](out[piece], data, part.settings)
            lengths.append(len(data))
            place = piece.stop
        return self.error(out, task, dtype), self.size(lengths)


_ADD: Mapping[str, Callable[[Array, bytes, Mapping[str, Any]], None]] = {
    "ternary": lambda out, data, settings: add_ternary(out, data, settings["scale"]),
    "sign": lambda out, data, settings: add_signs(out, data, np.array([settings["scale"]], np.float32)),
    "rounded": lambda out, data, settings: add_rounded(out, data, settings["scale"]),
}


def _low_ranks(
    worker: Worker, origin: Entry, entry: Entry, sample: _Sample, base: Array, task: Array
) -> list[tuple[Setting, float, int]]:
    """Return the ranks that take less room than the matrix, with error and size."""
    rows, columns = as_matrix(entry.shape)
    matrix = (numbers(worker, FRAME, entry) - numbers(worker, FRAME, origin)).reshape(rows, columns)
    if not np.isfinite(matrix).all():
        return []
    factors = sketched(wide(matrix), min(rows, columns, RANKS[-1]), 0)
    there = int((factors.values > 0).sum())
    found = []
    for rank in sorted({min(k, there) for k in RANKS if k * (rows + columns) < rows * columns} - {0}):
        cut = Factors(factors.left[:, :rank], factors.values[:rank], factors.right[:rank])
        left, right, scale = scaled(cut)
        near = [x.astype(np.float16).astype(np.float32) for x in (left, right)]
        out, place = base.copy(), 0
        for start, stop in sample.cuts:
            first, last = start // columns, -(-stop // columns)
            product = (near[0][first:last] @ near[1]).reshape(-1)[start - first * columns : stop - first * columns]
            out[place : place + stop - start] += np.float32(scale) * product
            place += stop - start
        setting = Setting(low_rank, {"rank": rank})
        found.append((setting, sample.error(out, task, entry.dtype), 2 * rank * (rows + columns)))
    return found


def _promises_low_rank(worker: Worker, origin: Entry, entry: Entry) -> bool:
    """Tell whether PART evenly spread rows and columns of a task vector hold most of their squares in few directions."""
    rows, columns = as_matrix(entry.shape)
    picked = [np.linspace(0, n - 1, min(n, PART)).astype(int) for n in (rows, columns)]
    base, task = (
        np.stack([_row(worker, e, int(r) * columns, columns)[picked[1]] for r in picked[0]]) for e in (origin, entry)
    )
    if not np.isfinite(task - base).all():
        return False
    squares = singular_values(wide(task - base)) ** 2
    return bool(squares[: RANKS[-1]].sum() >= PROMISE * squares.sum() > 0)


def _row(worker: Worker, entry: Entry, start: int, columns: int) -> Array:
    cuts = [(a, min(a + FRAME, start + columns)) for a in range(start, start + columns, FRAME)]
    return np.concatenate([_numbers(worker, entry, *cut) for cut in cuts])


def _sampled(frames: int) -> list[int]:
    """Return which frames are tried: all, or SAMPLE of them evenly spread, the last, which is shorter, not among them."""
    if frames <= SAMPLE:
        return list(range(frames))
    return [round(i * (frames - 2) / (SAMPLE - 1)) for i in range(SAMPLE)]


def _numbers(worker: Worker, entry: Entry, start: int, stop: int) -> Array:
    values = np.empty(stop - start, np.float32)
    worker.read(entry, start, stop, values)
    return values


def _words(worker: Worker, origin: Entry | None, entry: Entry, start: int, stop: int) -> tuple[Array, Array]:
    """Return the stored words of the task and of the base, as `lossless` compares them."""
    width = element_bytes(entry.dtype)
    task, base = (np.empty(stop - start, f"<u{width}") for _ in range(2))
    if entry.low_rank is None:
        worker.files.entry_into(entry, start * width, task.view(np.uint8).data)
    else:
        encode(_numbers(worker, entry, start, stop), entry.dtype, task.view(np.uint8))
    read_words(origin, entry.dtype, start, stop, base, worker.files.entry_into)
    return task, base


def choose(
    measured: Mapping[str, Mapping[str, Measured]],
    *,
    budget: int | None = None,
    min_fidelity: float | None = None,
    drops: Mapping[str, float] | None = None,
    errors: Mapping[str, float] | None = None,
) -> Choice:
    """Return the setting of each tensor of each task: the smallest error within a budget, or the smallest size at a fidelity.

    With a budget the sum over tasks of weight * squared error is made small; the weight of a task is 1 / |task vector|^2, or
    follows from scores, see `allocation.task_weights`. With a fidelity f each task's squared error is at most
    (1 - f) |task vector|^2.

    Args:
        measured: Task to tensor to what it could be stored as.
        budget: Bytes of all tasks' folders, without the configuration and tokenizer files in them.
        min_fidelity: f, from 0 to 1; give this or the budget.
        drops: Score of the finetuned model minus that of a rebuilt one, by task, to weigh tasks under a budget.
        errors: Squared distance of that rebuilt model, by task.

    Raises:
        ArgumentError: Neither or both are given, or the budget is too small.
    """
    if (budget is None) == (min_fidelity is None):
        raise ArgumentError("pack", expected="a budget or a fidelity, and not both")
    if min_fidelity is not None and not 0 <= min_fidelity <= 1:
        raise ArgumentError("pack: min_fidelity", expected="a number in [0, 1]", got=f"{min_fidelity}")
    names = list(measured)
    norms = {t: math.fsum(m.norm for m in measured[t].values()) for t in names}
    known = None if drops is None or errors is None else ([drops[t] for t in names], [errors[t] for t in names])
    weights = task_weights([norms[t] for t in names], *(known or ()))
    cells = [(i, t, n) for i, t in enumerate(names) for n in measured[t]]
    items = [_options(measured[t][n], weights[i] if budget is not None else 1.0) for i, t, n in cells]
    if budget is not None:
        found: Allocation = least_error(items, budget, TASK * len(names))
    else:
        limits = [(1 - (min_fidelity or 0.0)) * norms[t] for t in names]
        found = least_size(items, [i for i, *_ in cells], limits)
    chosen: dict[str, dict[str, Setting]] = {t: {} for t in names}
    sizes, lost = dict.fromkeys(names, TASK), {t: list[float]() for t in names}
    for (_, t, n), k in zip(cells, found.chosen, strict=True):
        cell = measured[t][n]
        chosen[t][n] = cell.settings[k]
        sizes[t] += cell.sizes[k]
        lost[t].append(cell.errors[k])
    fidelity = {t: 1 - math.fsum(lost[t]) / norms[t] if norms[t] > 0 else 1.0 for t in names}
    return Choice(chosen, sizes, fidelity, found.bound)


def _options(cell: Measured, weight: float) -> Options:
    return Options(weight * np.array(cell.errors), np.array(cell.sizes))
