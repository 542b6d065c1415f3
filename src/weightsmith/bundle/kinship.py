"""Whether a model seems to come from the base, by samples; what an encoding keeps of another one is worth nothing."""

from __future__ import annotations

import math

import numpy as np

from weightsmith.bundle.planning import Packing
from weightsmith.checkpoint.entry import Checkpoint
from weightsmith.engine.stream import Stream
from weightsmith.errors import MismatchError, shown
from weightsmith.tensor.frames import FRAME

SAMPLED_TENSORS = 64
SAMPLED_ELEMENTS = 4096


def check_kinship(packing: Packing, task: str, model: Checkpoint) -> None:
    """Refuse a model that lies further away from the base than the base is long, in samples of the largest tensors.

    Where everything is stored without loss, or `force_base` is set, nothing is asked.

    Raises:
        MismatchError: It does.
    """
    encoded = [e for e in model.tensors.values() if packing.is_encoded(e)]
    if packing.options.force_base:
        return
    squares = np.zeros(2)
    with Stream(packing.job(None, 2), 2, FRAME) as stream, stream.worker() as worker:
        for entry in sorted(encoded, key=lambda e: -e.size)[:SAMPLED_TENSORS]:
            origin = packing.origin(entry)
            if origin is None:
                continue
            start = entry.size // 2 // SAMPLED_ELEMENTS * SAMPLED_ELEMENTS
            stop = min(start + SAMPLED_ELEMENTS, entry.size)
            values = np.empty((2, stop - start), np.float32)
            for row, one in zip(values, (origin, entry), strict=True):
                worker.read(one, start, stop, row)
            wide = values.astype(np.float64)
            squares += np.square(wide[0]).sum(), np.square(wide[1] - wide[0]).sum()
    if squares[1] >= squares[0] > 0:
        raise MismatchError(
            f"task '{task}': model '{shown(model.reference)}' does not seem to be trained from the base",
            expected="a task vector shorter than the base",
            got=f"one {math.sqrt(squares[1] / squares[0]):.2f} times as long, in samples",
            do="Name the right base, or pass --force-base",
        )
