"""The loss barrier on the straight line between two networks (linear mode connectivity)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from weightsmith.align.publish import whole_job
from weightsmith.checkpoint.entry import Checkpoint
from weightsmith.checkpoint.read import open_checkpoint, read_array
from weightsmith.distance import are_numbers, tensors_beside
from weightsmith.engine.stream import Stream
from weightsmith.engine.whole import numbers
from weightsmith.errors import ArgumentError, MismatchError, raise_all, shown
from weightsmith.plan import Options
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.coding import INTEGERS

Weights: TypeAlias = dict[
    str, Array
]  # tensor name to numpy array, float32 (float64 where any is stored so), or integers
Loss: TypeAlias = Callable[[Weights], float]


@dataclass(frozen=True)
class Barrier:
    """Losses along the line (1 - share) a + share b.

    Attributes:
        height: The largest excess of the loss over the straight line between the losses of the ends; never below 0.
        at: The share where it is.
        shares: From 0 to 1, equally spaced.
        losses: At each share.
    """

    height: float
    at: float
    shares: tuple[float, ...]
    losses: tuple[float, ...]

    def summary(self) -> dict[str, Any]:
        """Return the barrier as plain data."""
        return {"height": self.height, "at": self.at, "shares": list(self.shares), "losses": list(self.losses)}


def barrier(a: str | Path, b: str | Path, loss: Loss, *, points: int = 25, options: Options | None = None) -> Barrier:
    """Measure the loss barrier between two networks of one shape.

    With L the loss and s in {0, 1/(points - 1), ..., 1}:

        barrier = max over s of [ L((1 - s) a + s b) - ((1 - s) L(a) + s L(b)) ]

    Args:
        a: A file, folder, `model+adapter` or hub id.
        b: Another, with the same tensors.
        loss: Called with a dictionary of tensor name to numpy array; returns a number, such as the mean loss on test data.
            `{n: torch.from_numpy(w) for n, w in weights.items()}` is a state dict. Arrays are its own to change;
            integers, such as counters, are those of a.
        points: How many points of the line, ends included, at least 2.
        options: Threads and symbolic links.

    Raises:
        ArgumentError: The loss is not a finite number.
        MismatchError: The two differ in names or shapes.

    Differs from the paper: nothing; running statistics of BatchNorm are interpolated too and should be re-estimated by the
    loss function if it is to measure the repaired network.
    Cost: `points` calls of the loss; memory for three networks.
    """
    if points < 2:
        raise ArgumentError("barrier: points", expected="at least 2", got=str(points))
    options = options or Options()
    opened = [open_checkpoint(x, follow_symlinks=options.follow_symlinks) for x in (a, b)]
    first, second = _read(opened, options)
    shares = tuple(i / (points - 1) for i in range(points))
    losses = []
    for share in shares:
        value = float(loss({n: _between(w, second.get(n), share) for n, w in first.items()}))
        if not math.isfinite(value):
            raise ArgumentError(
                f"barrier: the loss at {share:.3f} of the way", expected="a finite number", got=f"{value}"
            )
        losses.append(value)
    excess = [x - ((1 - s) * losses[0] + s * losses[-1]) for s, x in zip(shares, losses, strict=True)]
    excess[0] = excess[-1] = 0.0
    at = excess.index(max(excess))
    return Barrier(excess[at], shares[at], shares, tuple(losses))


def _between(first: Array, second: Array | None, share: float) -> Array:
    if second is None or share == 0:
        return first.copy()
    kind = first.dtype.type
    return second.copy() if share == 1 else kind(1 - share) * first + kind(share) * second


def _read(opened: list[Checkpoint], options: Options) -> list[Weights]:
    beside = tensors_beside(opened[1], opened[0])
    faults = [f"only in '{shown(opened[1].reference)}': '{shown(n)}'" for n in beside if n not in opened[0].tensors]
    for name, entry in opened[0].tensors.items():
        other = beside.get(name)
        if other is None:
            faults.append(f"only in '{shown(opened[0].reference)}': '{shown(name)}'")
        elif entry.shape != other.shape:
            faults.append(f"'{shown(name)}' has shapes {entry.shape} and {other.shape}")
    if faults:
        raise_all(
            faults, MismatchError, "barrier: the two networks differ", "Compare them with: weightsmith compare A B"
        )
    read: list[Weights] = [{}, {}]
    with Stream(whole_job(opened, options), 2) as stream, stream.worker() as worker:
        for name, entry in opened[0].tensors.items():
            if are_numbers(entry, beside[name]):
                for weights, found in zip(read, (entry, beside[name]), strict=True):
                    weights[name] = numbers(worker, stream.tile, found)
            elif entry.dtype in INTEGERS:
                read[0][name] = np.frombuffer(read_array(entry), INTEGERS[entry.dtype]).reshape(entry.shape)
    return read
