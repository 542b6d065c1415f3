"""What a run will read and hold, and how its work is cut so that it fits in memory: by headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from weightsmith.budget import TOKEN_BYTES, Demand, choose_limits, machine_limit
from weightsmith.checkpoint.entry import Checkpoint
from weightsmith.checkpoint.names import layer_count
from weightsmith.device import find_device
from weightsmith.engine.reductions import is_reduced_first, passes_of, ranks_of
from weightsmith.engine.stream import Job, Work
from weightsmith.engine.whole import input_bytes, matrix_bytes
from weightsmith.method import KthLargest, Method, Reduction, Statistics, Tile, reduce_in_memory
from weightsmith.tensor.coding import stored_bytes


def reductions(method: Method, work: Work) -> list[Reduction]:
    """Return the reductions that the method will ask for, found by a dry run on one zero."""
    asked: list[Reduction] = []

    def listen() -> Statistics:
        statistics = method.statistics(work.parameters or {})
        answer: Any = None
        try:
            while statistics is not None:
                request = statistics.send(answer)
                asked.append(request)
                answer = yield request
        except StopIteration as done:
            return done.value

    others = np.zeros((len(work.inputs) - method.has_base, 1), np.float32)
    reduce_in_memory(listen(), np.zeros(1, np.float32), others, Tile(shape=(1,)))
    return asked


def _ranked_size(method: Method, merged: Sequence[Work], asked: Sequence[Reduction]) -> int:
    """Return the size of the largest scope in which k-th values may be found in one pass; 0 for none."""
    scopes = [(method.reduction_scope(w.parameters or {}), w.size) for w in merged]
    over_model = sum(n for s, n in scopes if s == "model") if any(isinstance(r, KthLargest) for r in asked) else 0
    return max([over_model, *(n for s, n in scopes if s == "tensor")])


def make_job(
    method: Method,
    works: Sequence[Work],
    inputs: Sequence[Checkpoint],
    asked: Sequence[Reduction],
    memory_bytes: int,
    threads: int,
    device_name: str,
) -> Job:
    """Return the job: how the works are cut so that what they need fits in memory_bytes, if need be on fewer threads."""
    merged = [w for w in works if w.parameters is not None]
    wide = any(e.dtype == "F64" for w in merged for e in w.inputs)
    by_row = [w for w in merged if method.takes_rows(w.parameters or {})]
    adapters = [[e.low_rank for e in w.inputs if e.low_rank is not None] for w in merged]
    demand = Demand(
        inputs=len(inputs),
        entries=sum(len(c.tensors) for c in inputs),
        itemsize=8 if wide else 4,
        ranks=max((ranks_of(r, len(merged[0].inputs) - method.has_base) for r in asked), default=0),
        ranked=_ranked_size(method, merged, asked),
        row=max((w.shape[-1] if w.shape else 1 for w in by_row), default=0),
        factor_bytes=max((sum(4 * (p.down.size + p.up.size) for p in pairs) for pairs in adapters), default=0),
        matrix_bytes=max((matrix_bytes(method, w, wide) for w in merged), default=0),
        takes_turns=True,
        token_bytes=TOKEN_BYTES * len(inputs) * max((e.shape[0] for w in works for e in w.inputs if e.rows), default=0),
        on_device=device_name != "cpu",
    )
    device = find_device(device_name)
    limits = choose_limits(demand, memory_bytes, threads)
    ceiling = machine_limit()
    if ceiling is not None and limits.peak_bytes > ceiling:
        limits = choose_limits(demand, ceiling, threads, "the memory limit of this process (container or ulimit -v)")
    return Job(
        method,
        layer_count(inputs[0].tensors),
        "float64" if wide else "float32",
        limits,
        device,
    )


def reads(job: Job, merged: Sequence[Work], asked: Sequence[Reduction]) -> tuple[int, int]:
    """Return how often tensors are read at the most, whole matrices within the method not counted, and the bytes read in all."""
    method = job.chosen
    scope = method.reduction_scope(merged[0].parameters or {}) if merged else None
    passes, total, over_model = 1, 0, sum(w.size for w in merged)
    for work in merged:
        first, size = 0, over_model if scope == "model" else work.size
        if is_reduced_first(method, work, job.limits.tile):
            first = sum(passes_of(r, scope, size, job.compute_dtype) for r in asked)
        passes = max(passes, 1 + first)
        total += input_bytes(method, work) + first * sum(work.size * stored_bytes(e.dtype) for e in work.inputs)
    return passes, total
