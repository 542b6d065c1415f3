"""Call weightsmith's matrix methods in memory for `matrices.py`, with the time in decompositions accounted for."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import matrix_profile
from matrix_serve import Problem, serve

THREADS = int(os.environ["OMP_NUM_THREADS"])


def call(method: Any, problem: Problem) -> Any:
    """Return the method's result on a base of zeros."""
    from weightsmith.matrices import Matrices
    from weightsmith.method import Tile

    base = np.zeros(problem.task_vectors.shape[1:], problem.task_vectors.dtype)
    if problem.factors is None:
        return method(base, list(problem.task_vectors), **problem.options)
    left, right = problem.factors
    inputs = Matrices(len(left), base.shape, lambda t: left[t] @ right[t], lambda t: (left[t], right[t]))
    checked = method.check(problem.options, len(left))
    return method.apply_matrix(base, inputs, checked, Tile(shape=base.shape)).reshape(base.shape)


def solve(work: str, problems: Sequence[Problem], side_by_side: bool) -> list[Any]:
    """Return the result for each matrix.

    One after the other, the library's plain call, all threads in BLAS; or side by side as the engine does, one thread each.
    """
    from weightsmith.plan.headers import find_method

    method = find_method(work)
    if not side_by_side:
        return [call(method, problem) for problem in problems]
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda problem: call(method, problem), problems))


if __name__ == "__main__":
    matrix_profile.install()
    serve(solve, matrix_profile.take)
