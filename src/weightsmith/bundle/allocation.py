"""Which setting each tensor of each task gets under a common budget, after L-GreCo (Markov et al., 2022, arXiv:2210.17357).

An *item* is one tensor of one task; its *options* each have an error and a size, and one must be taken. Errors add up, as
squared distances do.

The paper's dynamic programme cuts the budget into 10,000 buckets and rounds every option up to whole ones, which wastes half
a bucket per item. Here the programme keeps the exact sums, and only those that can still become the best: the relaxed
problem (each item may mix two neighboring options of its lower convex hull) gives a first choice, a price per unit of
the budget, and a lower bound; an option whose loss against that price exceeds what the first choice leaves to be gained cannot be
part of a better one. What remains are few items, whose sums are formed one item after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from weightsmith.errors import ArgumentError

Array = np.ndarray[Any, np.dtype[Any]]
STATES = 2_000  # sums kept side by side
TOLERANCE = 1e-5  # share of the relaxed bound that the best choice need not be looked for any more
SLACK = 1e-9  # share of a limit on errors that rounding may exceed it by


@dataclass(frozen=True)
class Options:
    """What can be done with one item.

    Attributes:
        errors: (k,) what each option loses, at least 0.
        sizes: (k,) bytes of each option.
    """

    errors: Array
    sizes: Array


@dataclass(frozen=True)
class Allocation:
    """One option for each item.

    Attributes:
        chosen: Index of each item's option.
        error: Sum of the chosen options' errors.
        size: Sum of their sizes, bytes.
        bound: No choice has a smaller error (or size, where that is what is made small).
    """

    chosen: tuple[int, ...]
    error: float
    size: int
    bound: float


def least_error(items: Sequence[Options], budget: int, fixed: int = 0) -> Allocation:
    """Return the choice with the smallest sum of errors whose size is at most `budget` bytes.

    It is the best there is, or within TOLERANCE of `bound`; where more than STATES sums compete, `bound` tells how far it can
    be off.

    Args:
        items: One per tensor and task.
        budget: Bytes.
        fixed: Bytes of it that are spent on whatever is chosen.

    Raises:
        ArgumentError: Even the smallest choice is larger than the budget.

    Example:
        >>> item = Options(np.array([4.0, 1.0, 0.0]), np.array([1, 2, 5]))
        >>> least_error([item, item], 4).chosen, least_error([item, item], 7).error
        ((1, 1), 1.0)
    """
    solved = cheapest([o.errors for o in items], [o.sizes for o in items], budget - fixed)
    if solved is None:
        least = fixed + sum(int(o.sizes.min()) for o in items)
        raise ArgumentError(
            "pack: the budget is too small", expected=f"at least {least} bytes for the tasks' parts", got=f"{budget}"
        )
    return _summed(items, solved.chosen, solved.bound)


def least_size(items: Sequence[Options], tasks: Sequence[int], limits: Sequence[float]) -> Allocation:
    """Return the smallest choice in which each task's errors add up to at most its limit.

    Args:
        items: One per tensor and task.
        tasks: Of each item, the index of its task.
        limits: Of each task, the largest sum of errors.

    Raises:
        ArgumentError: A task's smallest possible error exceeds its limit.

    Example:
        >>> item = Options(np.array([4.0, 1.0, 0.0]), np.array([1, 2, 5]))
        >>> least_size([item, item], [0, 1], [1.0, 0.5]).chosen
        (1, 2)
    """
    chosen, bound = [0] * len(items), 0.0
    for task, limit in enumerate(limits):
        mine = [i for i, t in enumerate(tasks) if t == task]
        solved = cheapest([items[i].sizes for i in mine], [items[i].errors for i in mine], limit * (1 + SLACK))
        if solved is None:
            least = math.fsum(float(items[i].errors.min()) for i in mine)
            raise ArgumentError(
                f"pack: the error of task {task + 1} cannot be as small as asked",
                expected=f"at least {least:.3g}",
                got=f"{limit:.3g}",
            )
        for i, k in zip(mine, solved.chosen, strict=True):
            chosen[i] = k
        bound += solved.bound
    return _summed(items, chosen, bound)


def _summed(items: Sequence[Options], chosen: Sequence[int], bound: float) -> Allocation:
    error = math.fsum(float(o.errors[k]) for o, k in zip(items, chosen, strict=True))
    size = sum(int(o.sizes[k]) for o, k in zip(items, chosen, strict=True))
    return Allocation(tuple(chosen), error, size, bound)


@dataclass(frozen=True)
class Solved:
    """One option for each item, and what the relaxed problem bounds the sum of costs by."""

    chosen: list[int]
    bound: float


def cheapest(costs: Sequence[Array], weights: Sequence[Array], limit: float) -> Solved | None:
    """Return one option for each item with the smallest sum of costs whose weights add up to at most `limit`.

    None where even the lightest options together weigh more.
    """
    hulls = [_hull(c, w) for c, w in zip(costs, weights, strict=True)]
    chosen = [h[0] for h in hulls]
    left = limit - math.fsum(float(w[k]) for w, k in zip(weights, chosen, strict=True))
    if left < 0:
        return None
    steps = [
        Step((c[a] - c[b]) / (w[b] - w[a]), i, a, b, float(w[b] - w[a]))
        for i, (c, w, h) in enumerate(zip(costs, weights, hulls, strict=True))
        for a, b in pairwise(h)
    ]
    steps.sort(key=lambda step: -step.gain)
    place = 0
    while place < len(steps) and steps[place].weight <= left:
        chosen[steps[place].item], left = steps[place].after, left - steps[place].weight
        place += 1
    spent = math.fsum(float(c[k]) for c, k in zip(costs, chosen, strict=True))
    if place == len(steps):
        return Solved(chosen, spent)
    price = float(steps[place].gain)
    filled, rest, gap = list(chosen), left, price * left
    for step in steps[place:]:
        if step.weight <= rest and filled[step.item] == step.before:
            filled[step.item], rest = step.after, rest - step.weight
            gap -= step.gain * step.weight
    bound = spent - price * left
    if gap > TOLERANCE * bound:
        filled = _improved(costs, weights, chosen, filled, left, price, gap, TOLERANCE * bound)
    return Solved(filled, bound)


class Step(NamedTuple):
    """A step along an item's hull: how much cost it saves per weight, between which options, and what it weighs."""

    gain: float
    item: int
    before: int
    after: int
    weight: float


def _hull(costs: Array, weights: Array) -> list[int]:
    """Return the options of the lower convex hull, from the lightest to the cheapest."""
    hull: list[int] = []
    for k in np.lexsort((costs, weights)).tolist():
        if hull and costs[k] >= costs[hull[-1]]:
            continue
        while len(hull) > 1 and (costs[hull[-2]] - costs[hull[-1]]) * (weights[k] - weights[hull[-1]]) <= (
            costs[hull[-1]] - costs[k]
        ) * (weights[hull[-1]] - weights[hull[-2]]):
            hull.pop()
        hull.append(k)
    return hull


def _improved(
    costs: Sequence[Array],
    weights: Sequence[Array],
    relaxed: Sequence[int],
    known: list[int],
    left: float,
    price: float,
    gap: float,
    enough: float,
) -> list[int]:
    """Return the best choice: sums of changes to the relaxed one, item after item, those that cannot become best dropped.

    A change of an option has a weight dw and a loss r = dcost + price * dw >= 0. With all changes the sum of costs is the bound +
    sum(r) + price * (left - sum(dw)), so sum(r) must stay below `gap`, by which the best choice known exceeds the bound.
    """
    changes = _changes(costs, weights, relaxed, price, gap)
    reach = np.array([[min(0.0, dw.min()), max(0.0, dw.max())] for _, _, dw, _ in changes]).reshape(-1, 2)
    later = np.concatenate([np.cumsum(reach[::-1], 0)[::-1], np.zeros((1, 2))])
    weight, loss, history = np.zeros(1), np.zeros(1), []
    best = (-1, 0)
    for stage, (_, _, dw, r) in enumerate(changes):
        if r.min() >= gap or gap <= enough:
            break
        all_weight = np.concatenate([weight, *(weight + d for d in dw)])
        all_loss = np.concatenate([loss, *(loss + x for x in r)])
        short = np.maximum(0, left - all_weight - later[stage + 1, 1])
        kept = np.flatnonzero((all_loss + price * short < gap) & (all_weight + later[stage + 1, 0] <= left))
        kept = _undominated(kept, all_weight, all_loss, price)
        taken, source = np.divmod(kept, len(weight))
        history.append((taken.astype(np.int16), source.astype(np.int32)))
        weight, loss = all_weight[kept], all_loss[kept]
        if not len(kept):
            break
        value = np.where(weight <= left, loss + price * (left - weight), np.inf)
        if value.min() < gap:
            gap, best = float(value.min()), (stage, int(value.argmin()))
    chosen, (stage, state) = list(known if best[0] < 0 else relaxed), best
    for stage in range(best[0], -1, -1):
        taken, source = history[stage]
        if taken[state]:
            chosen[changes[stage][0]] = int(changes[stage][1][taken[state] - 1])
        state = int(source[state])
    return chosen


def _undominated(kept: Array, weight: Array, loss: Array, price: float) -> Array:
    """Return the sums, lightest first, than which none lighter costs as little; of more than STATES those that lose least."""
    if not len(kept):
        return kept
    kept = kept[np.lexsort((loss[kept], weight[kept]))]
    cost = loss[kept] - price * weight[kept]
    kept = kept[np.concatenate([[True], cost[1:] < np.minimum.accumulate(cost)[:-1]])]
    return kept if len(kept) <= STATES else np.sort(kept[np.argpartition(loss[kept], STATES)[:STATES]])


def _changes(
    costs: Sequence[Array], weights: Sequence[Array], relaxed: Sequence[int], price: float, gap: float
) -> list[tuple[int, Array, Array, Array]]:
    """Return (item, options, dw, r) of the options whose loss r is below the gap, the item with the smallest loss first."""
    found = []
    for i, k in enumerate(relaxed):
        dw = np.asarray(weights[i] - weights[i][k], np.float64)
        r = np.maximum(0.0, costs[i] - costs[i][k] + price * dw)
        options = np.flatnonzero((r < gap) & (dw != 0))
        if len(options):
            found.append((i, options, dw[options], r[options]))
    found.sort(key=lambda c: float(c[3].min()))
    return found


def task_weights(
    norms: Sequence[float], drops: Sequence[float] | None = None, errors: Sequence[float] = ()
) -> list[float]:
    """Return by what each task's errors are multiplied before they are added to those of the others.

    Without scores 1 / |tau_t|^2, so that the sum is that of the tasks' infidelities. With them, scores of the finetuned models
    and of models rebuilt from some trial bundle, drop_t / error_t: the drop in score is taken to grow in proportion to
    the error, so the sum is the expected drop of all tasks. A drop counts as at least a tenth of the mean drop, so that
    no task is given up for a score that happened to hold; where none dropped, the weights are those without scores.

    Args:
        norms: |tau_t|^2, the squared distance between finetuned and base; a task that equals base gets the weight 1.
        drops: Score of the finetuned model minus score of the rebuilt one, per task.
        errors: Squared distance of that rebuilt model from the finetuned one, per task.

    >>> task_weights([4.0, 2.0]), task_weights([4.0, 2.0], [0.1, 0.0], [2.0, 1.0])
    ([0.25, 0.5], [0.05, 0.005])
    """
    plain = [1 / n if n > 0 else 1.0 for n in norms]
    if drops is None or sum(max(d, 0.0) for d in drops) == 0:
        return plain
    least = sum(max(d, 0.0) for d in drops) / len(drops) / 10
    return [max(d, least) / e if e > 0 else p for d, e, p in zip(drops, errors, plain, strict=True)]
