"""Which experts stay and which join them: rankings and similarities, no names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightsmith.tensor.arrays import Array


def cosines(rows: Array) -> Array:
    """Return the cosine of every two rows, (n, n) float64; 0 where one is zero.

    >>> cosines(np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    wide /= np.where(lengths > 0, lengths, 1.0)
    found: Array = wide @ wide.T
    return found


def counts_kept(frequencies: Sequence[Array], average: int) -> list[int]:
    """Return how many experts each layer keeps: the most used of all layers, `average` per layer, at least one each.

    Frequencies count as shares of their layer. Ties: the higher rank within a layer, then the earlier layer.

    >>> counts_kept([np.array([9.0, 1, 0]), np.array([4.0, 3, 3])], 2)
    [1, 3]
    """
    others = []
    for layer, given in enumerate(frequencies):
        shares = np.sort(given / max(given.sum(), np.finfo(np.float64).tiny))[::-1]
        others += [(-share, rank, layer) for rank, share in enumerate(shares.tolist()) if rank]
    kept = [1] * len(frequencies)
    for _, _, layer in sorted(others)[: (average - 1) * len(frequencies)]:
        kept[layer] += 1
    return kept


def dominant(frequencies: Array, similarity: Array, count: int) -> list[int]:
    """Return the `count` most used experts, most used first; among equals the one least like those before it.

    >>> dominant(np.array([1.0, 5, 1]), np.array([[1, 0.1, 0.9], [0.1, 1, 0], [0.9, 0, 1]]), 2)
    [1, 2]
    """
    chosen: list[int] = []
    for _ in range(count):
        left = [e for e in range(len(frequencies)) if e not in chosen]
        most = max(frequencies[e] for e in left)
        equals = [e for e in left if frequencies[e] == most]
        chosen.append(min(equals, key=lambda e: max((similarity[e, c] for c in chosen), default=0.0)))
    return chosen


def joined(chosen: Sequence[int], similarity: Array) -> list[int]:
    """Return for each expert the chosen one that it joins: itself, or the most similar, the first of equals.

    >>> joined([1, 2], np.array([[1, 0.1, 0.9], [0.1, 1, 0], [0.9, 0, 1]]))
    [2, 1, 2]
    """
    return [e if e in chosen else max(chosen, key=lambda c: similarity[e, c]) for e in range(len(similarity))]


def shares(frequencies: Array, members: Sequence[int]) -> Array:
    """Return the weight of each member in its group, adding up to 1; equal where none was used.

    >>> shares(np.array([3.0, 1, 0, 0]), [0, 1]).tolist(), shares(np.array([3.0, 1, 0, 0]), [2, 3]).tolist()
    ([0.75, 0.25], [0.5, 0.5])
    """
    given = frequencies[list(members)].astype(np.float64)
    total = given.sum()
    return given / total if total > 0 else np.full(len(given), 1 / len(given))
