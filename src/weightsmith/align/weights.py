"""Weight matching (Git Re-Basin, Ainsworth et al., 2022, arXiv:2209.04836; analysis: arXiv:2402.04051)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from weightsmith.align.groups import Group, Place, tensors_of
from weightsmith.checkpoint.entry import Entry
from weightsmith.tensor.arrays import Array
from weightsmith.tensor.permute import add_products, best_order, permuted, unfold

TOLERANCE = 1e-12

Orders = dict[str, Array]  # group to permutation: unit i of the result is unit order[i] of the model
Load = Callable[[Entry], Array]


@dataclass(frozen=True)
class Pair:
    """The tensors of reference and model, read whole when they are needed."""

    reference: Load
    model: Load


def match_weights(
    groups: Sequence[Group], pair: Pair, *, seed: int, sweeps: int, threads: int, report: Callable[[str], None]
) -> tuple[Orders, int]:
    """Return the permutation of every group, and how many sweeps were made; see `align`."""
    orders: Orders = {g.name: np.arange(g.units) for g in groups}
    tensors = tensors_of(groups)
    near = {g.name: {other for p in g.places for _, other in tensors[p.entry.name]} for g in groups}
    stale = set(orders)  # groups whose neighbors changed since they were last matched
    rng = np.random.default_rng(seed)
    made = 0
    with single_threaded(threads) as pool:
        while stale and made < sweeps:
            made += 1
            for index in rng.permutation(len(groups)):
                group = groups[index]
                if group.name not in stale:
                    continue
                stale.discard(group.name)
                report(group.name)
                new = _matched(group, orders, pair, tensors, pool)
                if new is not None:
                    orders[group.name] = new
                    stale |= near[group.name] - {group.name}
                    if _is_square(group):
                        stale.add(group.name)
    return orders, made


@contextmanager
def single_threaded(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads that multiply matrices alone, so that no bit depends on how many there are."""
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads, thread_name_prefix="weightsmith") as pool:
        yield pool


def _matched(
    group: Group,
    orders: Orders,
    pair: Pair,
    tensors: Mapping[str, list[tuple[Place, str]]],
    pool: ThreadPoolExecutor,
) -> Array | None:
    """Return a better permutation of one group, all others held; None where there is none."""
    scores = np.zeros((group.units, group.units))
    for place in group.places:
        others = [(p, g) for p, g in tensors[place.entry.name] if p.where.axis != place.where.axis]
        second = unfold(apply(pair.model(place.entry), others, orders), place.where)
        add_products(scores, unfold(pair.reference(place.entry), place.where), second, pool)
    now, units = orders[group.name], np.arange(group.units)
    new = best_order(scores)
    old_value, new_value = float(scores[units, now].sum()), float(scores[units, new].sum())
    if _is_square(group):  # the scores of one axis hold the other axis at its old order: ask the products themselves
        old_value, new_value = (_product(group, {**orders, group.name: o}, pair, tensors) for o in (now, new))
    return new if new_value > old_value + TOLERANCE * max(1.0, abs(old_value)) else None


def _is_square(group: Group) -> bool:
    """Tell whether some tensor has two axes in this group, so that its product is not linear in the permutation."""
    names = [p.entry.name for p in group.places]
    return len(set(names)) < len(names)


def _product(group: Group, orders: Orders, pair: Pair, tensors: Mapping[str, list[tuple[Place, str]]]) -> float:
    total = 0.0
    for entry in {p.entry.name: p.entry for p in group.places}.values():
        first, second = pair.reference(entry), apply(pair.model(entry), tensors[entry.name], orders)
        rows = (x.reshape(len(x), -1) for x in (first, second))
        total += sum(float(a.astype(np.float64) @ b.astype(np.float64)) for a, b in zip(*rows, strict=True))
    return total


def apply(array: Array, places: Sequence[tuple[Place, str]], orders: Mapping[str, Array]) -> Array:
    """Return a tensor, as numbers or as stored words, with the axes at these places permuted."""
    for place, group in places:
        order = orders[group]
        if not np.array_equal(order, np.arange(len(order))):
            array = permuted(array, place.where, order)
    return array
