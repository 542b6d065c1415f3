"""WUDI merging, without undesired interference between layers' inputs (Cheng et al., 2025, arXiv:2503.08099)."""

from __future__ import annotations

from typing import Annotated

from weightsmith.arguments import Choice, Count, NonNegative, Number
from weightsmith.method import Given, Matrices, Need, Tile, method
from weightsmith.tensor.arrays import Array, cast, namespace
from weightsmith.tensor.spectral import Adam, add_matrix, add_mean, eigen, inverted, wide

SOLVERS = ("iterative", "closed")
NULL = 1e-5  # directions of the inputs weaker than this, relative to the strongest, are left out by the closed form
EPSILON = 1e-8  # gradients this much smaller than the right side count as none


def need(given: Given) -> Need:
    """Return what it holds, as measured, and reads; C is a square of the columns."""
    square, count = given.columns / given.rows, len(given.ranks)
    if given.parameters["solver"] == "closed":
        return Need(max(7.5, 4 + 6.5 * square), (1,) * count)
    return Need(max(10 + square, 5.5 + 3.2 * square), (1,) * count)


@method(reach="matrix", vectors=add_mean, matrices=need)
def wudi(
    base: Array,
    task_vectors: Matrices,
    *,
    solver: Annotated[str, Choice(SOLVERS)] = "iterative",
    steps: Count = 300,
    rate: NonNegative = 0.02,
    lambda_: Number = 1.0,
    tile: Tile,
) -> Array:
    """Merge so that no task's inputs, seen in its task vector's rows, are answered otherwise than by that task.

    With C = sum_t tau_t^T tau_t / |tau_t|^2 and R = sum_t tau_t tau_t^T tau_t / |tau_t|^2 the minimizer X of
    sum_t |(X - tau_t) tau_t^T|^2 / |tau_t|^2 solves X C = R:

        result = base + lambda * X,    X = R C^+ (closed), or Adam's iterate from sum_t tau_t (iterative)

    The two are different methods: stopping early keeps part of the sum, and often does better.
    Vectors (one axis): base + lambda * mean of the task vectors.

    Args:
        base: The base model's matrix, (m, n); tensors of more axes as (first, all others).
        task_vectors: finetuned - base, T times (m, n); those that are zero do not count.
        solver: iterative as in the paper; closed leaves out directions whose eigenvalue of C is below 1e-10 of the largest.
        steps: Of Adam, with decay 0.9 and 0.999; unused by closed.
        rate: Adam's learning rate relative to the root mean square entry of all task vectors; 0.02 is about the paper's 1e-5.
        lambda_: Scale; the paper has none.
        tile: Unused.

    Returns:
        (m, n), dtype of base.

    Differs from the paper: the learning rate follows the size of the task vectors, where the paper's is in units of the
    weights; Adam's epsilon is 1e-8 of the right side's size.
    Cost: 2 T products, then an eigenproblem of size n in float64 (closed) or a product per step in float32 (iterative);
    memory for about 4 matrices and 4 of size n by n. Same bytes on one machine; elsewhere to rounding.

    Command:
        weightsmith merge wudi --base B --model A1 --model A2 --solver closed --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.array([[3.0, 0.0]]), np.array([[1.0, 2.0]])]
        >>> wudi(np.zeros((1, 2)), taus, solver="closed").round(6).tolist()
        [[3.0, 1.0]]
    """
    first = wide(task_vectors[0])
    xp = namespace(first)
    added, right, inputs = xp.zeros_like(first), xp.zeros_like(first), 0.0 * first[:1].T @ first[:1]
    squares = 0.0
    for index in range(len(task_vectors)):
        tau = first if index == 0 else wide(task_vectors[index])
        square = float(xp.linalg.norm(tau)) ** 2
        if square:
            gram = tau.T @ tau
            gram /= square
            inputs += gram
            right += tau @ gram
            added += tau
            squares += square
    if not squares:
        return base
    if solver == "closed":
        values, vectors = eigen(inputs)
        return add_matrix(base, ((right @ vectors) * inverted(values, NULL) ** 2) @ vectors.T, lambda_)
    size = (squares / (len(task_vectors) * base.shape[0] * base.shape[1])) ** 0.5  # all below is in this unit
    dtype = str(base.dtype).removeprefix("torch.")
    start = cast((added @ inputs - right) / size, dtype)
    scale = float(xp.linalg.norm(right)) / size / (base.shape[0] * base.shape[1]) ** 0.5
    inputs, moved = cast(inputs, dtype), xp.zeros_like(start)
    adam = Adam(moved, rate, EPSILON * scale)
    for _ in range(steps):
        gradient = moved @ inputs
        gradient += start
        adam.step(gradient)
    return add_matrix(base, added + moved * size, lambda_)
