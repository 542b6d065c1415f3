"""Ranks within rows, and the chances of being kept that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from weightsmith.errors import MismatchError
from weightsmith.tensor import compiled
from weightsmith.tensor.arrays import Array, cast, is_compiled, is_torch, like, namespace
from weightsmith.tensor.chance import keep_random
from weightsmith.tensor.gram import Host, row_gram
from weightsmith.tensor.rounding import rounded

Shares: TypeAlias = Sequence[float]


def row_ranks(vectors: Array, length: int) -> Array:
    """Return the rank of each magnitude within its row, from 0 for the smallest; the earlier first when equal.

    Args:
        vectors: (T, rows * length).
        length: Entries of a row.

    Returns:
        (T, rows * length), dtype of vectors.
    """
    rows = namespace(vectors).abs(vectors).reshape(-1, length)
    if is_torch(rows):
        order = rows.argsort(dim=1, stable=True)
        ranks = order.argsort(dim=1)
    else:
        ranks = rows.argsort(axis=1, kind="stable").argsort(axis=1)
    return cast(ranks, str(vectors.dtype).rpartition(".")[2]).reshape(vectors.shape)


def rank_chances(ranks: Array, length: int, densities: Shares, epsilons: Shares, precision: str) -> Array:
    """Return the probability with which DELLA keeps an entry, from its rank in its row of `length`: (T or 1, n) -> (T, n).

    It grows with the rank from density - epsilon to density + epsilon, and is the density in rows of one entry; all or
    none are kept where the density is at least 1, or at most 0.
    """
    if length == 1:
        return namespace(ranks).zeros_like(ranks) + like([[d] for d in densities], ranks)
    last = rounded(like([float(length)], ranks), precision) - 1
    place = rounded(ranks + 1, precision) - 1
    place = rounded(rounded(place, precision) / rounded(last, precision), precision)
    low, width = ([[f(d, e)] for d, e in zip(densities, epsilons, strict=True)] for f in (_low, _width))
    return rounded(rounded(place * like(width, ranks), precision) + like(low, ranks), precision)


def thin_rows(
    vectors: Array,
    length: int,
    densities: Shares,
    epsilons: Shares,
    keys: Sequence[int],
    *,
    start: int,
    inverse: bool,
    precision: str,
) -> Array:
    """Keep each entry with the chance that follows from the rank of its magnitude in its row; zero the rest.

    Args:
        vectors: (T, rows * length), from flat index `start` on; ranked by what they are in the precision.
        length: Entries of a row.
        densities: See `rank_chances`; T numbers.
        epsilons: T numbers.
        keys: See `chance.keep_random`.
        start: Flat index of the first entry.
        inverse: Divide what is kept by its chance.
        precision: See `rounding.rounded`.

    Returns:
        (T, rows * length), a new array.

    Raises:
        MismatchError: The last row is not whole.
    """
    if vectors.shape[1] % length:
        raise MismatchError("ranks within rows", expected=f"whole rows of {length}", got=f"{vectors.shape[1]} entries")
    if is_compiled(vectors) and vectors.dtype == np.float32:
        table = rank_chances(np.arange(length, dtype=np.float32)[None], length, densities, epsilons, precision)
        bits = rounded(vectors, precision).view(np.uint32)
        return compiled.thin_rows(vectors, bits, length, table, np.array(keys, np.uint64), start, inverse)
    ranks = row_ranks(rounded(vectors, precision), length)
    chances = rank_chances(ranks, length, densities, epsilons, precision)
    kept = keep_random(vectors, chances, keys, start)
    return kept / (chances + (chances == 0)) if inverse else kept


def _low(density: float, epsilon: float) -> float:
    return density - epsilon if 0 < density < 1 else min(max(density, 0.0), 1.0)


def _width(density: float, epsilon: float) -> float:
    return 2 * epsilon if 0 < density < 1 else 0.0


def row_absolute_sums(vectors: Array, length: int) -> Host:
    """Return the L1 norm of each row, (T, rows * length) -> (rows, T), float64; whole rows in any tile give the same."""
    if is_compiled(vectors):
        sums: Host = compiled.absolute_row_sums(vectors, length)
        return sums
    xp = namespace(vectors)
    ones = xp.ones_like(vectors[0])
    return np.stack([row_gram(xp.stack([xp.abs(v), ones]), length)[:, 1] for v in vectors], axis=1)
