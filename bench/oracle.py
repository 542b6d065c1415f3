"""What a merge should give, written as plainly as numpy allows and sharing no code with weightsmith.

Each formula takes the base and the models as float32 arrays of one tensor and returns `Expected`: the
values in float64, the largest operand of each entry (which bounds the rounding of float32 arithmetic), and
the entries whose value the definition leaves open, such as a vote that float32 rounding decides.
"""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Arithmetic in float32 may be off by a few units of its last place, relative to the operands.
FLOAT32_SLACK = 2.0**-21


class Tensors:
    """The bfloat16 tensors of one checkpoint folder, read whole and one at a time."""

    def __init__(self, folder: Path):
        self.places: dict[str, tuple[Path, int, int, tuple[int, ...]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                if entry["dtype"] != "BF16":
                    raise SystemExit(f"{path}: {name} is {entry['dtype']}, expected BF16")
                start, end = entry["data_offsets"]
                self.places[name] = (path, 8 + length + start, (end - start) // 2, tuple(entry["shape"]))

    def bits(self, name: str) -> NDArray[np.uint16]:
        """Return a tensor's bits, flat."""
        path, offset, count, _ = self.places[name]
        return np.fromfile(path, np.uint16, count, offset=offset)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self.places[name][3]

    def values(self, name: str) -> Floats:
        """Return a tensor's values as float32, flat."""
        return widen(self.bits(name))


def widen(bits: NDArray[np.uint16]) -> Floats:
    """Return the float32 numbers that bfloat16 bits stand for."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def unit(values: Doubles) -> Doubles:
    """Return the distance between neighboring bfloat16 numbers (8 significant bits) at each value."""
    _, exponent = np.frexp(values)
    return np.asarray(np.ldexp(1.0, np.maximum(exponent - 8, -133)), np.float64)


@dataclass(frozen=True)
class Expected:
    """The values a tensor should have, before rounding to bfloat16."""

    values: Doubles
    scale: Doubles
    open: Bools  # entries that the definition leaves open


@dataclass
class Agreement:
    """How far results lie from what was expected, gathered over tensors."""

    entries: int = 0
    open: int = 0
    differing: int = 0
    beyond: int = 0
    largest: float = 0.0
    units: float = 0.0

    def add(self, got: NDArray[np.uint16], expected: Expected) -> None:
        """Compare one tensor with its oracle; `beyond` counts entries more than one bfloat16 unit away."""
        result = widen(got).astype(np.float64)
        rounded = nearest(expected.values)
        # the coarser of the two units: next to a power of two the neighbors lie at different distances
        step = unit(np.maximum(np.abs(result), np.abs(rounded)))
        self._gather(result, rounded, step, step + FLOAT32_SLACK * expected.scale, expected.open)

    def _gather(self, result: Doubles, wanted: Doubles, step: Doubles, allowed: Doubles, left: Bools) -> None:
        if not np.isfinite(result).all():
            raise SystemExit("the result holds NaN or infinity")
        gap = np.abs(result - wanted)
        gap[left] = 0.0
        self.entries += gap.size
        self.open += int(left.sum())
        self.differing += int((gap > 0).sum())
        self.beyond += int((gap > allowed).sum())
        if gap.size:
            self.largest = max(self.largest, float(gap.max()))
            self.units = max(self.units, float((gap / np.maximum(step, allowed)).max()))

    def as_dict(self) -> dict[str, float]:
        """Return shares and extremes for JSON."""
        closed = max(1, self.entries - self.open)
        return {
            "entries": self.entries,
            "open_share": self.open / max(1, self.entries),
            "differing_share": self.differing / closed,
            "beyond_one_unit": self.beyond,
            "largest_difference": self.largest,
            "largest_in_allowed_units": self.units,
        }


def nearest(values: Doubles) -> Doubles:
    """Round to the nearest bfloat16 number, ties to even."""
    step = unit(values)
    return np.asarray(np.rint(values / step) * step, np.float64)


def expectation(values: Doubles, operands: Sequence[Floats], left: Bools | None = None) -> Expected:
    """Return values with the operands that bound their rounding, and the entries left open."""
    scale = np.max([np.abs(operand) for operand in operands], axis=0).astype(np.float64)
    return Expected(values, scale, np.zeros(values.shape, np.bool_) if left is None else left)


def wide(array: Floats) -> Doubles:
    """Return float64."""
    return array.astype(np.float64)


def linear(models: Sequence[Floats]) -> Expected:
    """Mean of the models."""
    total = np.zeros(models[0].shape)
    for model in models:
        total += model
    return expectation(total / len(models), models)


def task_arithmetic(base: Floats, models: Sequence[Floats], factor: float) -> Expected:
    """Base plus a factor times the sum of the task vectors."""
    total = np.zeros(base.shape)
    for model in models:
        total += wide(model) - wide(base)
    return expectation(wide(base) + factor * total, [base, *models])


def wise_ft(base: Floats, model: Floats, factor: float) -> Expected:
    """The point between base and model."""
    return expectation((1.0 - factor) * wide(base) + factor * wide(model), [base, model])


def slerp(first: Floats, second: Floats, t: float, nearly: float = 0.9995) -> Expected:
    """Point on the arc between two tensors seen as vectors; on the line when they are nearly parallel."""
    a, b = wide(first), wide(second)
    lengths = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    cosine = float(a @ b) / lengths if lengths > 0 else 1.0
    if abs(cosine) > nearly:
        left, right = 1.0 - t, t
    else:
        angle = math.acos(cosine)
        left, right = math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return expectation(left * a + right * b, [first, second])


def differences(base: Floats, models: Sequence[Floats]) -> list[Floats]:
    """Return the task vectors in float32, the precision in which magnitudes are compared."""
    return [np.asarray(model - base, np.float32) for model in models]


def largest_first(vector: Floats, count: int) -> Bools:
    """Return a mask of exactly `count` entries: largest magnitude first, the earlier one when equal."""
    kept = np.zeros(vector.shape, np.bool_)
    if count <= 0:
        return kept
    magnitude = np.abs(vector)
    threshold = np.partition(magnitude, magnitude.size - count)[magnitude.size - count]
    kept = np.asarray(magnitude > threshold, np.bool_)
    kept[np.flatnonzero(magnitude == threshold)[: count - int(kept.sum())]] = True
    return kept


def on_edge(vector: Floats, count: int) -> Bools:
    """Return the nonzero entries whose magnitude equals the count-th largest: tools keep some of them."""
    if not 0 < count < vector.size:
        return np.zeros(vector.shape, np.bool_)
    magnitude = np.abs(vector)
    threshold = np.partition(magnitude, magnitude.size - count)[magnitude.size - count]
    return np.asarray((magnitude == threshold) & (magnitude > 0), np.bool_)


def elect(base: Floats, trimmed: Sequence[Floats], edge: Bools | None = None) -> Expected:
    """Take the mean of those task vectors whose sign is the sign of their sum, entry by entry.

    Where the sum is zero, the sign is the one that most entries of the tensor elected. Entries whose sum is
    so small that rounding may decide its sign are left open. With `edge`, so are its entries and zero sums.
    """
    total, heaviest = np.zeros(base.shape), np.zeros(base.shape)
    for vector in trimmed:
        total += vector
        heaviest += np.abs(vector)
    close = (np.abs(total) <= 1e-6 * heaviest) & (heaviest > 0)
    left = close & (total != 0) if edge is None else close | edge
    elected = np.sign(total)
    elected[total == 0] = np.sign(elected.sum())
    merged, count = np.zeros(base.shape), np.zeros(base.shape)
    for vector in trimmed:
        agrees = np.sign(vector) * elected > 0
        merged += np.where(agrees, vector, 0.0)
        count += agrees
    return expectation(wide(base) + merged / np.maximum(count, 1.0), [base, *trimmed], left)


def ties(base: Floats, models: Sequence[Floats], density: float, exact: bool = True) -> Expected:
    """TIES with each tensor trimmed on its own.

    `exact` takes the earlier of equal entries, and resolves zero sums; otherwise both are left open.
    """
    vectors = differences(base, models)
    count = max(1, round(density * base.size))
    edge = None if exact else np.any([on_edge(vector, count) for vector in vectors], axis=0)
    return elect(base, [np.where(largest_first(v, count), v, np.float32(0)) for v in vectors], edge)


def model_thresholds(base: Tensors, models: Sequence[Tensors], density: float) -> list[np.float32]:
    """Return, for each model, the magnitude of the last entry kept when the whole model is trimmed at once.

    Holds all magnitudes of one model in memory: for small checkpoints.
    """
    found = []
    for model in models:
        magnitude = np.concatenate([np.abs(model.values(name) - base.values(name)) for name in base.places])
        count = max(1, round(density * magnitude.size))
        magnitude.partition(magnitude.size - count)
        found.append(magnitude[magnitude.size - count])
    return found


def ties_at(base: Floats, models: Sequence[Floats], thresholds: Sequence[np.float32]) -> Expected:
    """TIES with given thresholds; zero sums and entries equal to a threshold are left open."""
    vectors = differences(base, models)
    edge = np.zeros(base.shape, np.bool_)
    trimmed = []
    for vector, threshold in zip(vectors, thresholds, strict=True):
        edge |= (np.abs(vector) == threshold) & (vector != 0)
        trimmed.append(np.where(np.abs(vector) >= threshold, vector, np.float32(0)))
    return elect(base, trimmed, edge)


def breadcrumbs(base: Floats, models: Sequence[Floats], density: float, drop_top: float, factor: float) -> Expected:
    """Drop the largest share of each task vector, keep the `density` that follows, and add up."""
    total = np.zeros(base.shape)
    top = round(drop_top * base.size)
    last = min(base.size, top + max(1, round(density * base.size)))
    for vector in differences(base, models):
        kept = largest_first(vector, last) & ~largest_first(vector, top)
        total += np.where(kept, vector, np.float32(0))
    return expectation(wide(base) + factor * total, [base, *models])


def _needed(vectors: Sequence[Floats], mask_lambda: float) -> tuple[Doubles, list[Bools], Bools]:
    """TALL masks of every task, and the entries where rounding decides one."""
    merged = np.sum([wide(vector) for vector in vectors], axis=0)
    masks, left = [], np.zeros(merged.shape, np.bool_)
    for vector in vectors:
        own, others = np.abs(wide(vector)), mask_lambda * np.abs(merged - vector)
        masks.append(np.asarray(own > others, np.bool_))
        left |= (np.abs(own - others) <= 1e-6 * np.maximum(own, others)) & (own > 0)
    return merged, masks, left


def tall_masks(base: Floats, models: Sequence[Floats], task: int, mask_lambda: float) -> Expected:
    """Base plus the entries of the summed task vectors that one task (from 1) needs."""
    merged, masks, left = _needed(differences(base, models), mask_lambda)
    return expectation(wide(base) + np.where(masks[task - 1], merged, 0.0), [base, *models], left)


def consensus(base: Floats, models: Sequence[Floats], factor: float, mask_lambda: float, agree: int = 2) -> Expected:
    """Base plus a factor times the summed task vectors where at least `agree` tasks need them."""
    merged, masks, left = _needed(differences(base, models), mask_lambda)
    counts = np.sum(masks, axis=0)
    return expectation(wide(base) + factor * np.where(counts >= agree, merged, 0.0), [base, *models], left)


def lines(base: Floats, models: Sequence[Floats], name: str, layers: int, alpha: float, beta: float) -> Expected:
    """Task arithmetic with a factor from alpha, first layer and outside, to alpha + beta, last layer."""
    parts = name.split(".")
    depth = int(parts[parts.index("layers") + 1]) if "layers" in parts else 0
    return task_arithmetic(base, models, alpha + beta * depth / max(1, layers - 1))


def dare(
    got: Floats, base: Floats, models: Sequence[Floats], density: float, mean: bool = False
) -> tuple[Expected, list[float]]:
    """Check DARE, whose random numbers are unknown: each entry is one of the 2**n sums of kept vectors.

    `mean` divides the sums, as DARE with a sign election does. Returns the nearest of them as expectation,
    and the share of entries that each model keeps, taken where the sums can be told apart.
    """
    vectors = [wide(vector) / density for vector in differences(base, models)]
    nearest_gap, chosen, values = np.full(base.shape, np.inf), np.zeros(base.shape, np.int64), wide(base)
    for subset in range(1 << len(vectors)):
        members = [vector for number, vector in enumerate(vectors) if subset >> number & 1]
        total = np.sum(members, axis=0) if members else np.zeros(base.shape)
        total = wide(base) + (total / max(1, len(members)) if mean else total)
        gap = np.abs(wide(got) - total)
        nearer = gap < nearest_gap
        nearest_gap[nearer], chosen[nearer], values[nearer] = gap[nearer], subset, total[nearer]
    clear = _apart(vectors, 4 * unit(np.abs(wide(base))))
    shares = [float((chosen[clear] >> number & 1).mean()) for number in range(len(vectors)) if clear.any()]
    return expectation(values, [base, *[vector.astype(np.float32) for vector in vectors]]), shares


def _apart(vectors: Sequence[Doubles], step: Doubles) -> Bools:
    """Return the entries where all sums of the vectors lie at least a step from each other."""
    count = 1 << len(vectors)
    sums = [
        np.sum([v for number, v in enumerate(vectors) if subset >> number & 1] or [0.0 * step], axis=0)
        for subset in range(count)
    ]
    clear = np.ones(step.shape, np.bool_)
    for first in range(count):
        for second in range(first):
            clear &= np.abs(sums[first] - sums[second]) > step
    return clear


def sample(base: Tensors, limit: int = 50_000_000) -> list[str]:
    """Return the names to compare: all, or in a large checkpoint the first and last layer and all norms."""
    sizes = {name: place[2] for name, place in base.places.items()}
    if sum(sizes.values()) <= limit:
        return list(sizes)
    layers = {int(name.split(".")[2]) for name in sizes if name.startswith("model.layers.")}
    ends = (f"model.layers.{min(layers)}.", f"model.layers.{max(layers)}.")
    return [name for name in sizes if name.startswith(ends) or "norm" in name]
