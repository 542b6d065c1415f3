"""How far tensors of two checkpoints lie apart, read before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from weightsmith.checkpoint.entry import Entry
from weightsmith.checkpoint.read import Files
from weightsmith.distance import Distance, gather, make_distance, measure_pair, reporter
from weightsmith.engine.stream import Job, Stream, Work
from weightsmith.run import Progress

_READ_BYTES = 1 << 22


def distances(pairs: Mapping[str, tuple[Entry, Entry]], job: Job, progress: Progress | None) -> dict[str, Distance]:
    """Return how far the second tensor of each pair lies from the first; both have one shape, and numbers."""
    works = [Work(key, first.shape, first.dtype, (first, second)) for key, (first, second) in pairs.items()]
    report = reporter("measure", sum(e.nbytes for w in works for e in w.inputs), progress)
    found = {w.name: Distance() for w in works if not w.size}
    with Stream(replace(job, allow_nonfinite=True), 2) as stream:
        for work, sums, counts, largest in gather(stream, works, lambda x: measure_pair(*x), report):
            found[work.name] = make_distance(work.size, sums, counts, largest[0])
    return found


def is_same(first: Entry, second: Entry) -> bool:
    """Tell whether two stored tensors of one dtype and shape hold the same bytes."""
    with Files() as files:
        for start in range(0, first.nbytes, _READ_BYTES):
            a, b = (bytearray(min(_READ_BYTES, first.nbytes - start)) for _ in range(2))
            files.entry_into(first, start, memoryview(a))
            files.entry_into(second, start, memoryview(b))
            if a != b:
                return False
    return True
