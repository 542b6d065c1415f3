"""What merges that keep entries at random should give, though nobody here knows their random numbers.

Every entry must be a merge of some of the task vectors, and the shares kept must follow the chances.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from oracle import FLOAT32_SLACK, Doubles, Expected, Floats, expectation, unit, wide
from oracle_more import agreeing, stacked

KEPT = 0.02  # by how much a share kept at random may miss its chance, in tensors of MANY entries
MANY = 100_000
FITTED = 1 << 18  # entries that a fit looks at
FEW = 100  # entries that differ from the base, below which a factor cannot be fitted
UNSURE = 2.0**-13  # by how much a fitted factor may be off


def row_chances(vector: Floats, length: int, density: float, epsilon: float) -> Doubles:
    """Return DELLA's chances, growing with the rank of the magnitude in its row, the earlier first when equal."""
    rows = np.abs(vector).reshape(-1, length)
    ranks = np.empty(rows.shape)
    np.put_along_axis(ranks, np.argsort(rows, axis=1, kind="stable"), np.arange(length, dtype=np.float64)[None], 1)
    return np.asarray(density - epsilon + 2 * epsilon * ranks / (length - 1)).ravel()


def thinned(
    got: Floats, base: Floats, models: Sequence[Floats], chances: Sequence[Doubles], election: bool, rescale: bool
) -> Expected:
    """Check task vectors kept at random, whose draws are unknown: each entry must be a merge of some of them.

    With `election` the merge is the mean over those that agree in sign, else the sum. With `rescale` each kept part
    has a factor that gives it its L1 norm back. It follows from the draws, so it is fitted to the result, and must
    lie near its mean. Without an election, the shares kept must follow the chances.
    """
    taus = stacked(base, models)
    factors = np.ones(len(taus))
    if rescale:
        norms = np.abs(taus).sum(1)
        mean = norms / np.maximum((np.abs(taus) * np.stack(chances)).sum(1), 1e-300)
        factors = _fitted(wide(got)[:FITTED], wide(base)[:FITTED], taus[:, :FITTED], mean, election)
        if base.size >= MANY and np.abs(factors / mean - 1).max() > KEPT:
            raise ValueError(f"restores L1 norms by {factors}, expected about {mean}")
    values, chosen = _nearest_merge(wide(got), wide(base), taus * factors[:, None], election)
    if not election and base.size >= MANY:
        _check_shares(chosen, taus, chances, 4 * unit(np.abs(wide(base))))
    expected = expectation(values, [base, *[tau.astype(np.float32) for tau in taus * factors[:, None]]])
    if not rescale:
        return expected
    vague = taus[(taus != 0).sum(1) < FEW]  # too few entries to tell a factor by
    return replace(expected, scale=expected.scale * (UNSURE / FLOAT32_SLACK), open=expected.open | (vague != 0).any(0))


def _merged(taus: Doubles, kept: Sequence[int], election: bool) -> tuple[Doubles, Doubles]:
    """Return the merge of some task vectors, and the share with which each takes part in it, entry by entry."""
    parts = taus * np.array(kept, np.float64)[:, None]
    if not election:
        return parts.sum(0), np.broadcast_to(np.array(kept, np.float64)[:, None], taus.shape)
    _, weights, _ = agreeing(parts, np.ones(len(taus)))
    weights = weights / np.maximum(weights.sum(0), 1.0)
    return (weights * parts).sum(0), weights


def _nearest_merge(got: Doubles, base: Doubles, taus: Doubles, election: bool) -> tuple[Doubles, Doubles]:
    """Return, entry by entry, the possible value nearest to the result and which vectors were kept, (T, n)."""
    nearest, values, chosen = np.full(got.shape, np.inf), base.copy(), np.zeros(taus.shape)
    for kept in itertools.product((0, 1), repeat=len(taus)):
        value = base + _merged(taus, kept, election)[0]
        gap = np.abs(got - value)
        nearer = gap < nearest
        nearest[nearer], values[nearer] = gap[nearer], value[nearer]
        chosen[:, nearer] = np.array(kept, np.float64)[:, None]
    return values, chosen


def _fitted(got: Doubles, base: Doubles, taus: Doubles, factors: Doubles, election: bool) -> Doubles:
    """Return factors by least squares, each entry weighed by how finely bfloat16 resolves it."""
    scale = 1 / unit(np.maximum(np.abs(got), 1e-12))
    for _ in range(3):
        _, chosen = _nearest_merge(got, base, taus * factors[:, None], election)
        columns = np.zeros(taus.shape)
        for kept in itertools.product((0, 1), repeat=len(taus)):
            here = (chosen == np.array(kept, np.float64)[:, None]).all(0)
            weights = _merged((taus * factors[:, None])[:, here], kept, election)[1]
            columns[:, here] = weights * taus[:, here]
        columns *= scale
        used = (columns != 0).any(1)
        wanted = columns[used] @ ((got - base) * scale)
        factors = factors.copy()
        factors[used] = np.linalg.lstsq(columns[used] @ columns[used].T, wanted, rcond=None)[0]
    return factors


def _check_shares(chosen: Doubles, taus: Doubles, chances: Sequence[Doubles], step: Doubles) -> None:
    """Check the shares kept, of entries with small and with large chances, where all sums can be told apart."""
    sums = [np.array(kept) @ taus for kept in itertools.product((0, 1), repeat=len(taus))]
    clear = np.all([np.abs(a - b) > step for a, b in itertools.combinations(sums, 2)], axis=0)
    for number, chance in enumerate(chances):
        middle = np.median(chance[clear])
        for half in (clear & (chance <= middle), clear & (chance > middle)):
            share, wanted = chosen[number][half].mean(), chance[half].mean()
            if half.sum() >= MANY / 10 and abs(share - wanted) > KEPT:
                raise ValueError(f"keeps {share:.3f} of task vector {number + 1}, expected {wanted:.3f}")
