"""What the merges beyond the first ones should give: as plain as `oracle.py`, on which it builds.

Each formula takes base and models as float32 arrays of one tensor. Those with a scope of the whole model take
whole checkpoints first and return a formula; they hold a whole model in memory, so they are for small ones.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from oracle import (
    Bools,
    Doubles,
    Expected,
    Floats,
    Tensors,
    differences,
    elect,
    expectation,
    largest_first,
    on_edge,
    wide,
)

Formula = Callable[[Floats, Sequence[Floats]], Expected]

CLOSE = 1e-5  # a float32 result nearer than this to a bound, relative to it, may lie on either side
DIVERGENCE_NOISE = 1e-16  # of a divergence formed here in float64 from numbers near 1


def _moved(base: Floats, models: Sequence[Floats], step: Doubles, left: Bools | None = None) -> Expected:
    """Return base plus a step; where the task vectors are larger than the base, they bound the rounding."""
    return expectation(wide(base) + step, [base, *models], left)


def stacked(base: Floats, models: Sequence[Floats]) -> Doubles:
    """Return the task vectors, (T, n)."""
    return np.stack([wide(vector) for vector in differences(base, models)])


def copied(model: Floats) -> Expected:
    """The model as it is."""
    return expectation(wide(model), [model])


def magmax(base: Floats, models: Sequence[Floats], factor: float) -> Expected:
    """Base plus a factor times the entry of largest magnitude, the last one when equal."""
    taus = stacked(base, models)
    picked = taus[0]
    for tau in taus[1:]:
        picked = np.where(np.abs(tau) >= np.abs(picked), tau, picked)
    return _moved(base, models, factor * picked)


def rebase(base: Floats, models: Sequence[Floats]) -> Expected:
    """Base plus what the second and later models changed in the first."""
    step = sum(wide(model) - wide(models[0]) for model in models[1:])
    return _moved(base, models, np.asarray(step))


def robust_signatures(base: Floats, models: Sequence[Floats], factor: float) -> Expected:
    """Base plus the part of robust training's change that is orthogonal to that of clean training."""
    start, clean, robust = (wide(model) for model in models)
    clean, robust = clean - start, robust - start
    length = float(clean @ clean)
    share = float(robust @ clean) / length if length > 0 else 0.0
    return _moved(base, models, factor * (robust - share * clean))


def _unified(taus: Doubles) -> tuple[Doubles, Doubles, Bools]:
    """EMR's vector, its signs (minus where the sum is zero), and where rounding decides the sign of a sum."""
    total = taus.sum(0)
    signs = np.where(total > 0, 1.0, -1.0)
    largest = np.where(np.sign(taus) == signs, np.abs(taus), 0.0).max(0)
    close = (np.abs(total) <= 1e-6 * np.abs(taus).sum(0)) & (total != 0)
    return signs * largest, signs, close


def emr(base: Tensors, models: Sequence[Tensors], task: int) -> Formula:
    """EMR's rebuilt task (from 1), its factor from sums over the whole model."""
    wanted = masked = 0.0
    for name in base.places:
        taus = stacked(base.values(name), [model.values(name) for model in models])
        unified, signs, _ = _unified(taus)
        own = taus[task - 1]
        wanted += float(np.abs(own).sum())
        masked += float(np.abs(unified[np.sign(own) == signs]).sum())

    def formula(base: Floats, models: Sequence[Floats]) -> Expected:
        taus = stacked(base, models)
        unified, signs, close = _unified(taus)
        step = np.where(np.sign(taus[task - 1]) == signs, wanted / masked * unified, 0.0)
        return _moved(base, models, step, close)

    return formula


def _flat(base: Tensors, models: Sequence[Tensors]) -> Doubles:
    """Return the task vectors of whole models, tensors one after the other."""
    return np.stack(
        [np.concatenate([wide(model.values(n)) - wide(base.values(n)) for n in base.places]) for model in models]
    )


def _at(flat: Doubles | Bools, base: Tensors) -> dict[str, slice]:
    """Return where each tensor lies in `_flat`."""
    ends = list(itertools.accumulate((place[2] for place in base.places.values()), initial=0))
    return {name: slice(*pair) for name, pair in zip(base.places, itertools.pairwise(ends), strict=True)}


def _placed(flat: Doubles, left: Bools, base: Tensors, models: Sequence[Tensors]) -> dict[str, Expected]:
    """Return the expectation of each tensor from a step over the whole model."""
    return {
        name: _moved(base.values(name), [model.values(name) for model in models], flat[at], left[at])
        for name, at in _at(flat, base).items()
    }


def pcb(base: Tensors, models: Sequence[Tensors], density: float, clip: float) -> dict[str, Expected]:
    """PCB-Merging, variant language, with bounds over the whole model."""
    taus = _flat(base, models)
    count, size = taus.shape
    cut = int(clip * size)
    together = taus.sum(0)
    above, below = np.zeros(size), np.zeros(size)
    left = np.zeros(size, np.bool_)
    for tau in taus:
        magnitude = np.abs(tau)
        ordered = np.partition(magnitude, [cut, size - 1 - cut])
        low, high = ordered[cut], ordered[size - 1 - cut]
        clipped = np.clip(magnitude, low, high)
        balance = np.exp(count * ((clipped - low) / (high - low)) ** 2) * np.tanh(tau * together)
        place = size - max(1, round(density * size))
        bound = np.partition(balance, place)[place]
        score = (np.maximum(balance, bound) - bound) / (balance.max() - bound)
        above += score * np.sign(tau) * clipped
        below += score
        left |= np.abs(balance - bound) <= CLOSE * bound
    return _placed(above / np.maximum(below, 1e-12), left, base, models)


def lt_sft(thresholds: Sequence[np.float32]) -> Formula:
    """Sum of task vectors reduced to what lies above given thresholds; entries equal to one are left open."""

    def formula(base: Floats, models: Sequence[Floats]) -> Expected:
        step, edge = np.zeros(base.shape), np.zeros(base.shape, np.bool_)
        for vector, threshold in zip(differences(base, models), thresholds, strict=True):
            edge |= (np.abs(vector) == threshold) & (vector != 0)
            step += np.where(np.abs(vector) > threshold, vector, np.float32(0))
        return _moved(base, models, step, edge)

    return formula


def flag(base: Tensors, models: Sequence[Tensors], iterations: int = 10) -> Formula:
    """Flag aggregator of rank 1 over the whole model, in coordinates of the space the task vectors span."""
    gram = np.zeros((len(models), len(models)))
    for name in base.places:
        taus = stacked(base.values(name), [model.values(name) for model in models])
        gram += taus @ taus.T
    lengths = np.sqrt(np.diag(gram))
    coordinates = np.linalg.cholesky(gram / np.outer(lengths, lengths)).T  # a column for each unit vector
    weights = np.ones(len(models))
    for _ in range(iterations):
        direction = np.linalg.svd(coordinates * weights)[0][:, 0]
        reached = (direction @ coordinates) ** 2
        weights = (np.maximum(1 - reached, 0.0) + 1e-7) ** -0.25
    aggregate = np.median(lengths) * direction * (direction @ coordinates).mean()
    factors = np.linalg.solve(coordinates, aggregate) / lengths
    return lambda base, models: _moved(base, models, factors @ stacked(base, models))


def model_stock(base: Floats, models: Sequence[Floats]) -> Expected:
    """The way from base to mean that the mean cosine of the task vectors tells, not clamped."""
    taus = stacked(base, models)
    count = len(taus)
    cosine = float(np.mean([_cosine(a, b) for a, b in itertools.combinations(taus, 2)]))
    share = count * cosine / (1 + (count - 1) * cosine)
    return _moved(base, models, share * taus.mean(0))


def karcher(models: Sequence[Floats], most: int = 10, least: float = 1e-5) -> Expected:
    """Karcher mean of directions, times the mean length, by steps along the sphere on whole vectors."""
    vectors = [wide(model) for model in models]
    lengths = [float(np.linalg.norm(vector)) for vector in vectors]
    directions = [vector / length for vector, length in zip(vectors, lengths, strict=True)]
    mean = np.sum(directions, axis=0)
    mean /= np.linalg.norm(mean)
    for _ in range(most):
        step = np.zeros(mean.shape)
        for direction in directions:
            cosine = min(1.0, max(-1.0, float(direction @ mean)))
            angle = math.acos(cosine)
            if angle > 0:
                step += angle / math.sin(angle) * (direction - cosine * mean) / len(directions)
        size = float(np.linalg.norm(step))
        if size < least:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
        mean /= np.linalg.norm(mean)
    return expectation(mean * np.mean(lengths), models)


def _cosine(first: Doubles, second: Doubles) -> float:
    """Return the cosine of the angle between two vectors, 0 where one has no length."""
    lengths = math.sqrt(float(first @ first)) * math.sqrt(float(second @ second))
    return min(1.0, max(-1.0, float(first @ second) / lengths)) if lengths > 0 else 0.0


def _arc(first: Doubles, second: Doubles, t: float) -> Doubles:
    """Return the point on the arc between two vectors."""
    angle = math.acos(_cosine(first, second))
    if math.sin(angle) < 1e-8:
        return (1 - t) * first + t * second
    return np.asarray((math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle))


def nuslerp(base: Floats | None, models: Sequence[Floats], t: float) -> Expected:
    """Spherical interpolation of two models or, with a base, of their task vectors."""
    if base is None:
        return expectation(_arc(wide(models[0]), wide(models[1]), t), models)
    return _moved(base, models, _arc(*stacked(base, models), t))


def multislerp(base: Floats | None, models: Sequence[Floats], weights: Sequence[float]) -> Expected:
    """Mergekit's formula: the weighted mean direction, then one step along the mean of tangents there."""
    vectors = np.stack([wide(model) for model in models]) if base is None else stacked(base, models)
    shares = np.array(weights) / sum(weights)
    lengths = np.sqrt((vectors**2).sum(1))
    directions = vectors / (lengths + 1e-8)[:, None]
    mean = shares @ directions
    mean /= np.linalg.norm(mean) or 1.0
    tangent = shares @ (directions - (directions @ mean)[:, None] * mean)
    size = float(np.linalg.norm(tangent)) + 1e-8
    merged = (math.cos(size) * mean + math.sin(size) / size * tangent) * float(shares @ lengths)
    return expectation(merged, models) if base is None else _moved(base, models, merged)


def nearswap(base: Floats, model: Floats, t: float) -> Expected:
    """A share of the other model that falls with the distance."""
    share = np.minimum(1.0, t / np.maximum(np.abs(wide(model) - wide(base)), 1e-6))
    return expectation(share * wide(model) + (1 - share) * wide(base), [base, model])


def ram(base: Floats, models: Sequence[Floats], r: float = 0.0, alpha: float = 0.2) -> Expected:
    """Lone changes, enlarged if r is not 0, and means of changes that several made."""
    taus = stacked(base, models)
    changed = np.abs(taus) > 1e-5
    count = changed.sum(0)
    step = np.where(changed, taus, 0.0).sum(0) / np.maximum(count, 1)
    for tau, own in zip(taus, changed, strict=True):
        shared, alone = int((own & (count > 1)).sum()), int((own & (count == 1)).sum())
        factor = 1 + r * min(alpha, shared / max(alone, 1e-5))
        step = np.where(own & (count == 1), factor * tau, step)
    return _moved(base, models, step)


def agreeing(taus: Doubles, weights: Doubles) -> tuple[Doubles, Doubles, Bools]:
    """Return sums of vectors and of weights over those that agree with the sign of the sum (plus when zero).

    Last come the entries whose sign rounding decides: vectors that cancel almost, and not exactly.
    """
    total = taus.sum(0)
    agrees = np.sign(taus) == np.where(total >= 0, 1.0, -1.0)
    close = (np.abs(total) <= 1e-6 * np.abs(taus).sum(0)) & (total != 0)
    return np.where(agrees, taus, 0.0), np.where(agrees, weights[:, None], 0.0), close


def sce(base: Floats, models: Sequence[Floats], topk: float, exact: bool) -> Expected:
    """SCE with mergekit's floors; not exact, entries at the bound are left open."""
    taus = stacked(base, models)
    variance = taus.var(0).astype(np.float32)
    count = int(topk * int((variance > 0).sum()))
    kept = largest_first(variance, count)
    taus = np.where(kept, taus, 0.0)
    energies = (taus**2).mean(1)
    total = float(energies.sum())
    shares = energies / total if total >= 1e-6 else np.full(len(taus), 1 / len(taus))
    parts, weights, close = agreeing(taus, shares)
    left = close if exact else close | _near(variance, count)
    step = (shares[:, None] * parts).sum(0) / np.maximum(weights.sum(0), 1e-6)
    return _moved(base, models, step, left)


def _near(values: Floats, count: int) -> Bools:
    """Return the entries about equal to the count-th largest."""
    if not 0 < count < values.size:
        return np.zeros(values.shape, np.bool_)
    bound = np.partition(values, values.size - count)[values.size - count]
    return np.asarray(np.abs(values - bound) <= CLOSE * bound, np.bool_)


def arcee_fusion(base: Floats, model: Floats, length: int) -> Expected:
    """Entries of the other model that matter more than most.

    The divergence of two rows that are almost the same is the small rest of a sum of large terms: what float64 loses of it
    here is left open, and importances within CLOSE of the bound, since they are ranked in float32.
    """
    rows = [wide(array).reshape(-1, length) for array in (model, base)]
    powers = [np.exp(array - array.max(1, keepdims=True)) for array in rows]
    p, q = (array / array.sum(1, keepdims=True) + 1e-8 for array in powers)
    divergence = (p * np.log(p / q)).sum(1, keepdims=True)
    change = np.abs(rows[0] - rows[1]).ravel()
    score = change * np.repeat(divergence, length)
    places = [int(share * (score.size - 1)) for share in (0.25, 0.5, 0.75)]
    low, middle, high = np.partition(score, places)[places]
    bound = middle + 1.5 * (high - low)
    left = np.abs(score - bound) <= CLOSE * bound + DIVERGENCE_NOISE * change
    return expectation(np.where(score >= bound, wide(model), wide(base)), [base, model], left)


def band(base: Floats, models: Sequence[Floats], density: float, drop_top: float) -> list[Floats]:
    """Return the task vectors without the largest share, and then without all but the share that follows."""
    top, kept = round(drop_top * base.size), max(1, round(density * base.size))
    last = min(base.size, top + kept)
    return [
        np.where(largest_first(vector, last) & ~largest_first(vector, top), vector, np.float32(0))
        for vector in differences(base, models)
    ]


def breadcrumbs_ties(base: Floats, models: Sequence[Floats], density: float, drop_top: float) -> Expected:
    """Model Breadcrumbs with a sign election; a level vote gives the base."""
    vectors = band(base, models, density, drop_top)
    found = elect(base, vectors)
    level = np.sum([wide(vector) for vector in vectors], axis=0) == 0
    return Expected(np.where(level, wide(base), found.values), found.scale, found.open)


def sparse(
    base: Floats, models: Sequence[Floats], density: float, drop_top: float, weights: Sequence[float], exact: bool
) -> Expected:
    """Mergekit's family with sparsity by magnitude, L1 norms restored, an election, and a mean."""
    count, top = int(density * base.size), int(drop_top * base.size)
    taus, left = [], np.zeros(base.shape, np.bool_)
    for vector in differences(base, models):
        bottom = max(0, base.size - count - top)  # as many of the smallest go, and then what is left above the kept
        outer, inner = base.size - bottom, base.size - bottom - count
        kept = np.where(largest_first(vector, outer) & ~largest_first(vector, inner), vector, np.float32(0))
        after = float(np.abs(wide(kept)).sum())
        taus.append(wide(kept) * (float(np.abs(wide(vector)).sum()) / after if after >= 1e-7 else 1.0))
        left |= on_edge(vector, outer) | on_edge(vector, inner)
    shares = np.array(weights)
    parts, divisors, close = agreeing(np.stack(taus) * shares[:, None], shares)
    divisor = divisors.sum(0)
    step = parts.sum(0) / np.where(divisor == 0, 1.0, divisor)
    return _moved(base, models, step, close if exact else close | left)
