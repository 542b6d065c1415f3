"""PCB-Merging: parameter competition balancing (Du et al., 2024, arXiv:2410.02396)."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from weightsmith.arguments import Choice, Coefficients, Number, Proportion, Real
from weightsmith.method import KthLargest, Statistics, Tile, method
from weightsmith.tensor.arrays import Array, namespace
from weightsmith.tensor.competition import competition, scored_mean
from weightsmith.tensor.vector import add_scaled

CLIPS = {"language": 1e-4, "vision": 0.01}  # by variant, as in the authors' scripts


def _prepare(*, variant: str, clip: float | None, density: float) -> Statistics:
    share = CLIPS[variant] if clip is None else clip

    def magnitude(base: Array, task_vectors: Array, tile: Tile) -> Array:
        return namespace(task_vectors).abs(task_vectors)

    low, high = yield KthLargest(
        lambda size: [size - int(share * size), 1 + int(share * size)], magnitude, located=False
    )
    lowest, highest = low.value[:, 0], high.value[:, 0]

    def balance(base: Array, task_vectors: Array, tile: Tile) -> Array:
        return competition(task_vectors, lowest, highest, variant == "vision")

    bound, top = yield KthLargest(lambda size: [max(1, round(density * size)), 1], balance, located=False)
    return np.stack([lowest, highest, bound.value[:, 0], top.value[:, 0]])


@method(prepare=_prepare, scope="parameter")
def pcb(
    base: Array,
    task_vectors: Array,
    *,
    variant: Annotated[str, Choice(tuple(CLIPS))] = "language",
    density: Proportion = 0.1,
    clip: Annotated[float | None, Real(0, 0.5, open_high=True)] = None,
    coefficients: Coefficients = None,
    lambda_: Number = 1.0,
    scope: Annotated[str, Choice(("model", "tensor"))] = "model",
    tile: Tile,
) -> Array:
    """Weigh task vectors, entry by entry, by how important the entry is to its task and how well the tasks agree on it.

    With N the entries of the scope and a_t = |tau_t| clipped at both ends: to its (N - floor(q N))-th largest from below and
    its (1 + floor(q N))-th largest from above; x_t = a_t moved and scaled to [0, 1] over the scope:

        b_t    = exp(T x_t^2) * tanh(tau_t * sum_j tau_j)                             variant language
        b_t    = exp(T x_t^2) * tanh(tau_t * sum_j sign(tau_j) x_j)                   variant vision
        k_t    = the round(density * N)-th largest b_t, at least the first
        s_t    = (max(b_t, k_t) - k_t) / (max b_t - k_t)                              over the scope; 0 where b_t is constant
        result = base + lambda * sum_t s_t c_t sign(tau_t) a_t / max(sum_t s_t, 1e-12)

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n).
        variant: Which of the authors' scripts to follow: they differ in the sum inside tanh and in q.
        density: Share of entries that may win per task, r in the paper; the vision script takes 0.05, others 0.05 .. 0.2.
        clip: q, the share clipped at each end; by default 0.0001 (language) or 0.01 (vision).
        coefficients: c_t, one per model; 1 each by default, 1.2 in the vision script, searched in 0.8 .. 1.3 elsewhere.
        lambda_: Scale of the merged task vector.
        scope: What N refers to: the whole model, as in the paper, or each tensor.
        tile: Carries the four bounds per task.

    Returns:
        (n,), dtype of base.

    Differs from the paper: ranks are counted alike at both ends (its code rounds the upper one down), and the threshold is
    exactly round(density * N)-th; no evolutionary search. b_t is formed in float64 and ranked in float32 (or float64 input's).
    Cost: mostly three passes over T + 1 models, up to seven where guesses fail; 65,536 counters per task and bound, and a tile.

    Command:
        weightsmith merge pcb --base B --model A1 --model A2 --density 0.1 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.array([4.0, 1.0, -0.5, 0.0]), np.array([2.0, -1.0, -3.0, 1.0])]
        >>> pcb(np.zeros(4), taus, density=0.5).round(2).tolist()
        [4.0, 0.0, -3.0, 0.0]
    """
    limits = tile.statistics
    balance = competition(task_vectors, limits[0], limits[1], variant == "vision")
    factors = [1.0] * len(task_vectors) if coefficients is None else coefficients
    return add_scaled(base, scored_mean(task_vectors, balance, limits, factors), lambda_)
