"""Run functions on matrices for another process: one job per line on standard input, one answer per line back.

Both sides of the comparison in `matrices.py` use this, each in its own environment, so that the tensors, the clock and
the number of threads are the same. Only numpy is needed.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Problem:
    """The task vectors of one tensor.

    Attributes:
        task_vectors: (T, rows, columns).
        factors: Left (T, rows, rank) and right (T, rank, columns), where the task vectors are adapters.
        options: For the method.
    """

    task_vectors: np.ndarray[Any, Any]
    factors: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None
    options: dict[str, Any]


# What does the work: a method's name, the problems and whether to solve them side by side -> a result for each.
Solve = Callable[[str, Sequence[Problem], bool], list[Any]]


def load(tensor: dict[str, Any], dtype: str) -> Problem:
    """Read one tensor's task vectors into memory."""
    given = tensor.get("factors")
    factors = tuple(np.load(path).astype(dtype) for path in given) if given else None
    return Problem(np.load(tensor["task_vectors"]).astype(dtype), factors, tensor["options"])


def answer(job: dict[str, Any], solve: Solve) -> dict[str, float]:
    """Do one job and return what it took; loading and storing are not counted."""
    problems = [load(tensor, job["dtype"]) for tensor in job["tensors"]]
    wall, cpu = time.perf_counter(), time.process_time()
    results = solve(job["work"], problems, job["side_by_side"])
    took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    for path, result in zip(job["results"], results, strict=False):
        np.save(path, np.asarray(result))
    return took


def serve(solve: Solve, more: Callable[[], dict[str, float]] = dict) -> None:
    """Answer jobs until the input ends.

    Args:
        solve: What does the work.
        more: Called before and after each job; gives further figures to answer with, forgotten at each call.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the libraries print is not an answer
    for line in sys.stdin:
        more()
        found = answer(json.loads(line), solve)
        out.write(json.dumps({**found, **more()}) + "\n")
        out.flush()
