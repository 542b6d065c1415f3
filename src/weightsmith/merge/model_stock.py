"""Model Stock (Jang et al., 2024, arXiv:2403.19522)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np

from weightsmith.arguments import Choice, Flag
from weightsmith.method import Statistics, Sums, Tile, method
from weightsmith.tensor.arrays import Array, like, namespace
from weightsmith.tensor.gram import Host, add_sum, norms, row_gram, symmetric
from weightsmith.tensor.rounding import rounded
from weightsmith.tensor.vector import gram

SINGULAR = 1e-6  # a denominator below it counts as 0
TINY = float(np.finfo(np.float64).tiny)  # so that a length of 0 has cosine 0
PEER_TINY = 1e-6  # mergekit's


def _prepare(*, clamp: bool, scope: str) -> Statistics:
    if scope == "row":  # given whole, so that their inner products need no pass of their own
        return None
    seen: set[str] = set()  # the precision, which only tiles tell

    def inner(base: Array, task_vectors: Array, tile: Tile) -> Array:
        seen.add(tile.precision)
        return _products(task_vectors, tile.precision, gram)

    products = yield Sums(inner)
    return _shares(products, clamp, *seen)


def _products(task_vectors: Array, precision: str, inner: Callable[[Array], Host]) -> Host:
    """Return inner products, by `gram` or `row_gram`; in a narrow precision of rounded vectors, and sums of rounded products."""
    v = rounded(task_vectors, precision)
    products = inner(v)
    if precision != "float32":
        pairs = [(s, t) for s in range(len(v)) for t in range(s, len(v))]
        for place, (s, t) in enumerate(pairs):
            if s != t:
                both = namespace(v).stack([rounded(v[s] * v[t], precision), namespace(v).ones_like(v[s])])
                products[:, place] = inner(both)[:, 1]
    return products


def _shares(products: Host, clamp: bool, precision: str) -> Host:
    """Return t, the share of the way from base to mean, from inner products (..., T (T + 1) / 2): (..., 1)."""

    def r(values: Host) -> Host:
        return np.asarray(rounded(np.asarray(values), precision))

    with np.errstate(over="ignore", invalid="ignore"):  # refused where the result is stored
        grams = symmetric(products)
        count = grams.shape[-1]
        first, second = np.triu_indices(count, 1)
        lengths = r(norms(grams))
        both = np.maximum(r(lengths[..., first] * lengths[..., second]), TINY if precision == "float32" else PEER_TINY)
        cosines = np.clip(r(r(grams[..., first, second]) / both), -1.0, 1.0)
        cosine = r(cosines.mean(-1, keepdims=True))
        bottom = r(1 + r((count - 1) * cosine))
        shares = np.divide(r(count * cosine), bottom, out=np.zeros_like(bottom), where=np.abs(bottom) >= SINGULAR)
        return r(np.minimum(np.maximum(shares, 0.0), 1.0) if clamp else shares)


def _step_by_step(base: Array, task_vectors: Array, share: Array, precision: str) -> Array:
    """Return t * mean + (1 - t) * base, each step rounded, as mergekit does. base: (..., n); share: (..., 1)."""
    total = rounded(base + task_vectors[0], precision)
    for vector in task_vectors[1:]:
        total = rounded(total + rounded(base + vector, precision), precision)
    mean = rounded(total / len(task_vectors), precision)
    rest = rounded(base * rounded(1 - share, precision), precision)
    return rounded(rounded(mean * share, precision) + rest, precision)


@method(prepare=_prepare, scope="parameter", least=2)
def model_stock(
    base: Array,
    task_vectors: Array,
    *,
    clamp: Flag = True,
    scope: Annotated[str, Choice(("tensor", "row"))] = "tensor",
    tile: Tile,
) -> Array:
    """Go from the base towards the mean of several runs on one task, as far as their task vectors point the same way.

    With c the mean cosine of the angles between all pairs of task vectors, in the scope:

        t      = T c / (1 + (T - 1) c)                                   in [0, 1] by default; 0 where the divisor is 0
        result = base + t * (1 / T) * sum_t tau_t

    Args:
        base: The base model's tensor, (n,).
        task_vectors: finetuned - base, (T, n), T >= 2, of several runs on the same task.
        clamp: Keep t in [0, 1]: without it task vectors that point apart (c < 0) move the base backward, without bound.
        scope: Over what the cosines run: each tensor, or each row (the last axis), mergekit's filter_wise.
        tile: Carries t.

    Returns:
        (n,), dtype of base.

    Differs from the paper: t is clamped unless told otherwise, and any T is taken; a task vector of zeros has cosine 0 with
    all others. mergekit does not clamp, and divides by at least 1e-6 where lengths are multiplied, which shortens tiny ones; in
    its dialect's narrow dtypes each step is rounded as there.
    Cost: two passes over T + 1 models, one for rows; memory for a tile.

    Command:
        weightsmith merge model_stock --base B --model A1 --model A2 --out OUT

    Example:
        >>> import numpy as np
        >>> taus = [np.array([1.0, 0.0]), np.array([0.6, 0.8])]
        >>> model_stock(np.zeros(2), taus).round(4).tolist()
        [0.6, 0.3]
    """
    if scope == "row":
        products = _products(task_vectors, tile.precision, lambda vectors: row_gram(vectors, tile.row_length))
        share = like(_shares(products, clamp, tile.precision), base)
    else:
        share = like(tile.statistics, base)
    if tile.precision != "float32":
        rows = (len(share), -1)
        vectors = task_vectors.reshape(-1, *base.reshape(rows).shape)
        return _step_by_step(base.reshape(rows), vectors, share, tile.precision).reshape(-1)
    return add_sum(base, task_vectors, share.reshape(-1) / len(task_vectors))
