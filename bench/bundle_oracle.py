"""What a task of a bundle should hold, written as plainly as numpy allows and sharing no code with weightsmith.

Base and models are bfloat16. A tensor is formed in float32, operation by operation as the formula says, and rounded once: the
stored bits must be just these. Where several entries equal the bound of what is kept, either value is right for them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oracle import Bools, Floats, Tensors, sample, widen

Bits = NDArray[np.uint16]
# tensor's name -> its bits, and the other bits that are as right in some entries (None: there are none)
Oracle = Callable[[str], tuple[Bits, Bits | None]]

BLOCK = 1 << 22  # entries looked at at a time, where the whole model counts
SMALL = 50_000_000  # parameters; below, every tensor is compared
MASK_LAMBDA, KEPT_TERNARY, KEPT_SPARSE = 0.4, 0.2, 0.05  # the encodings' defaults
SCALE_SLACK = 1e-6  # relative; scales are sums of as many numbers as a model has


def narrow(values: Floats) -> Bits:
    """Round float32 numbers to bfloat16 bits, ties to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return np.asarray((bits + 0x7FFF + (bits >> 16 & 1)) >> 16, np.uint16)


class Bundled:
    """Base, models and the scales that a bundle states for the task that is looked at."""

    def __init__(self, base: Tensors, models: Sequence[Tensors], task: int, scales: dict[str, float]):
        self.base, self.models, self.own, self.scales = base, list(models), models[task], scales

    def vector(self, name: str) -> Floats:
        """Return the task vector of one tensor."""
        return np.asarray(self.own.values(name) - self.base.values(name), np.float32)

    def vectors(self, name: str) -> list[Floats]:
        """Return all task vectors of one tensor."""
        base = self.base.values(name)
        return [np.asarray(model.values(name) - base, np.float32) for model in self.models]

    def changed(self, name: str, step: Floats) -> Bits:
        """Return the bits of base + step."""
        return narrow(np.asarray(self.base.values(name) + step, np.float32))

    def blocks(self, models: Sequence[Tensors]) -> Iterator[list[Floats]]:
        """Go through all tensors, a block at a time: the task vectors of some models."""
        for name, (path, offset, count, _) in self.base.places.items():
            for start in range(0, count, BLOCK):
                size = min(BLOCK, count - start)
                base = widen(np.fromfile(path, np.uint16, size, offset=offset + 2 * start))
                vectors = []
                for model in models:
                    other, place, _, _ = model.places[name]
                    bits = np.fromfile(other, np.uint16, size, offset=place + 2 * start)
                    vectors.append(np.asarray(widen(bits) - base, np.float32))
                yield vectors

    def scale(self, name: str, wanted: float) -> np.float32:
        """Return the stated scale, once it is what was wanted; none is stated where nothing is added."""
        stated = self.scales.get(name, wanted)
        if not math.isclose(stated, wanted, rel_tol=SCALE_SLACK):
            raise ValueError(f"{name}: the bundle states the scale {stated}, expected {wanted}")
        return np.float32(stated)


def bound_of(bundled: Bundled, density: float) -> tuple[np.float32, int]:
    """Return the magnitude of the last entry kept of the whole model, and how many are kept."""
    total = sum(place[2] for place in bundled.base.places.values())
    wanted = max(1, round(density * total))
    high, low = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64)
    for (own,) in bundled.blocks([bundled.own]):
        high += np.bincount(np.abs(own).view(np.uint32) >> 16, minlength=1 << 16)
    above = np.cumsum(high[::-1])[::-1]  # entries whose upper digit is at least this one
    digit = int(np.flatnonzero(above >= wanted)[-1])
    rest = wanted - int(above[digit] - high[digit])
    for (own,) in bundled.blocks([bundled.own]):
        bits = np.abs(own).view(np.uint32)
        low += np.bincount(bits[bits >> 16 == digit] & 0xFFFF, minlength=1 << 16)
    last = int(np.flatnonzero(np.cumsum(low[::-1])[::-1] >= rest)[-1])
    return np.array([digit << 16 | last], np.uint32).view(np.float32)[0], wanted


def _either(bundled: Bundled, name: str, step: Floats, edge: Bools) -> tuple[Bits, Bits | None]:
    kept = bundled.changed(name, step)
    return kept, np.where(edge, bundled.base.bits(name), kept)


def tall_masks(bundled: Bundled) -> Oracle:
    """Base plus the entries of the sum that the task needs."""

    def formula(name: str) -> tuple[Bits, Bits | None]:
        own, total = bundled.vector(name), np.float32(0)
        for vector in bundled.vectors(name):
            total = np.asarray(total + vector, np.float32)
        needed = np.abs(own) > np.abs(total - own) * np.float32(MASK_LAMBDA)
        return bundled.changed(name, np.where(needed, total, np.float32(0))), None

    return formula


def _elected(vectors: Sequence[Floats]) -> Floats:
    """Return the largest entries of the elected sign, -1 where the sum is zero."""
    total = np.sum([vector.astype(np.float64) for vector in vectors], axis=0)
    sign = np.where(total > 0, 1, -1).astype(np.float32)
    best = np.max([np.maximum(vector * sign, 0) for vector in vectors], axis=0)
    return np.asarray(best * sign, np.float32)


def emr(bundled: Bundled) -> Oracle:
    """Base plus the elected entries whose sign is the task's, times the task's factor."""
    wanted = masked = 0.0
    for own, *vectors in bundled.blocks([bundled.own, *bundled.models]):
        elected = _elected(vectors)
        wanted += float(np.abs(own).sum(dtype=np.float64))
        masked += float(np.abs(elected[own * elected > 0]).sum(dtype=np.float64))

    def formula(name: str) -> tuple[Bits, Bits | None]:
        own, elected = bundled.vector(name), _elected(bundled.vectors(name))
        step = np.where(np.sign(own) * np.sign(elected) > 0, elected * bundled.scale(name, wanted / masked), 0)
        return bundled.changed(name, step.astype(np.float32)), None

    return formula


def compeft(bundled: Bundled) -> Oracle:
    """Base plus the signs of the largest entries of the whole model, times their mean magnitude."""
    bound, count = bound_of(bundled, KEPT_TERNARY)
    total, larger = 0.0, 0
    for (own,) in bundled.blocks([bundled.own]):
        magnitude = np.abs(own)
        total += float(magnitude[magnitude > bound].sum(dtype=np.float64))
        larger += int((magnitude > bound).sum())
    mean = (total + float(bound) * (count - larger)) / count

    def formula(name: str) -> tuple[Bits, Bits | None]:
        own = bundled.vector(name)
        step = np.where(np.abs(own) >= bound, np.sign(own) * bundled.scale(name, mean), 0).astype(np.float32)
        return _either(bundled, name, step, np.abs(own) == bound)

    return formula


def sparse(bundled: Bundled) -> Oracle:
    """Base plus the largest entries of the whole model, rounded to bfloat16."""
    bound, _ = bound_of(bundled, KEPT_SPARSE)

    def formula(name: str) -> tuple[Bits, Bits | None]:
        own = bundled.vector(name)
        step = np.where(np.abs(own) >= bound, widen(narrow(own)), np.float32(0))
        return _either(bundled, name, step, np.abs(own) == bound)

    return formula


def bitdelta(bundled: Bundled) -> Oracle:
    """Base plus or minus the mean magnitude; what is stored without loss is the model itself."""

    def formula(name: str) -> tuple[Bits, Bits | None]:
        if name not in bundled.scales:
            return bundled.own.bits(name), None
        own = bundled.vector(name)
        scale = bundled.scale(name, float(np.abs(own).sum(dtype=np.float64)) / own.size)
        return bundled.changed(name, np.where(own < 0, -scale, scale)), None

    return formula


def lossless(bundled: Bundled) -> Oracle:
    """The model itself."""
    return lambda name: (bundled.own.bits(name), None)


ORACLES: dict[str, Callable[[Bundled], Oracle]] = {
    "tall_masks": tall_masks,
    "emr": emr,
    "compeft": compeft,
    "bitdelta": bitdelta,
    "sparse": sparse,
    "lossless": lossless,
}


def check(encoding: str, data: Path, models: Sequence[str], task: int, scales: dict[str, float], got: Path) -> int:
    """Compare an unpacked task with its oracle; return how many entries were compared.

    All tensors of a small model, or where tasks are stored without loss; else the first and last layer and all norms.

    Raises:
        ValueError: An entry has other bits.
    """
    base, result = Tensors(data / "base"), Tensors(got)
    if {n: base.shape(n) for n in base.places} != {n: result.shape(n) for n in result.places}:
        raise ValueError(f"{encoding}: names or shapes are not those of the base")
    formula = ORACLES[encoding](Bundled(base, [Tensors(data / m) for m in models], task, scales))
    compared = 0
    for name in base.places if encoding == "lossless" else sample(base, SMALL):
        wanted, other = formula(name)
        bits = result.bits(name)
        wrong = bits != wanted
        if other is not None:
            wrong &= bits != other
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ValueError(
                f"{encoding}: {name}: {int(wrong.sum())} of {bits.size} entries are wrong, the first at {at}: "
                f"{widen(bits[at : at + 1])[0]}, expected {widen(wanted[at : at + 1])[0]}"
            )
        compared += bits.size
    return compared
