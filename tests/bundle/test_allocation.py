"""Allocation of a common budget, against trying everything and against an integer programme."""

import itertools
import math

import numpy as np
import pytest

from weightsmith.bundle.allocation import Options, cheapest, least_error, least_size, task_weights
from weightsmith.errors import ArgumentError


def draw(count, options=4, seed=0):
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        errors, sizes = rng.uniform(0, 10, options), rng.integers(0, 30, options)
        items.append(Options(errors, sizes))
    return items


def total(items, chosen):
    error = math.fsum(float(o.errors[k]) for o, k in zip(items, chosen, strict=True))
    return error, sum(int(o.sizes[k]) for o, k in zip(items, chosen, strict=True))


def every(items):
    return [(*total(items, c), c) for c in itertools.product(*(range(len(o.sizes)) for o in items))]


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_trying_everything(seed):
    items = draw(1 + seed % 6, seed=seed)
    plans = every(items)
    for budget in range(min(s for _, s, _ in plans), max(s for _, s, _ in plans) + 1, 3):
        found = least_error(items, budget)
        assert (found.error, found.size) == pytest.approx(total(items, found.chosen))
        assert found.size <= budget
        best = min(e for e, s, _ in plans if s <= budget)
        assert found.bound * (1 - 1e-9) <= best
        assert found.error == pytest.approx(best, rel=1.1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_smallest_size_agrees_with_trying_everything(seed):
    items, tasks = draw(5, seed=seed), [0, 1, 0, 1, 0]
    plans = [
        ([math.fsum(float(items[i].errors[c[i]]) for i in range(5) if tasks[i] == t) for t in (0, 1)], s)
        for _, s, c in every(items)
    ]
    least = [math.fsum(items[i].errors.min() for i in range(5) if tasks[i] == t) for t in (0, 1)]
    for factor in (1.0, 1.3, 2.0, 10.0):
        limits = [factor * x for x in least]
        found = least_size(items, tasks, limits)
        best = min(s for errors, s in plans if all(e <= x * (1 + 1e-9) for e, x in zip(errors, limits, strict=True)))
        assert found.size == pytest.approx(best, rel=1.1e-5)


def test_the_hull_alone_is_not_enough():
    # Along the hull (0, 10) -> (10, 0) nothing fits into 6; off it, an option of 6 does.
    item = Options(np.array([10.0, 5.0, 0.0]), np.array([0, 6, 10]))
    assert least_error([item], 6).chosen == (1,)
    assert least_error([item], 5).chosen == (0,)
    assert least_error([item], 10).chosen == (2,)


def test_a_single_option_is_returned():
    item = Options(np.array([3.0]), np.array([7]))
    found = least_error([item] * 3, 21)
    assert (found.chosen, found.error, found.size) == ((0, 0, 0), 9.0, 21)


def test_nothing_to_allocate():
    assert least_error([], 0).chosen == ()
    assert least_size([], [], []).chosen == ()


def test_many_items_are_within_the_bound_and_better_than_uniform():
    items = draw(400, options=12, seed=3)
    for uniform in range(12):
        error, size = total(items, [uniform] * 400)
        found = least_error(items, size)
        assert found.size <= size
        assert found.error <= error
        assert found.bound <= found.error <= found.bound * (1 + 2e-4)
        smaller = least_size(items, [0] * 400, [error])
        assert smaller.error <= error * (1 + 1e-9)
        assert smaller.size <= size


def test_a_larger_budget_never_loses_more():
    items = draw(60, options=8, seed=4)
    errors = [least_error(items, budget).error for budget in range(300, 1200, 7)]
    assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(errors))
    assert errors[0] > errors[-1]


def test_against_an_integer_programme():
    optimize = pytest.importorskip("scipy.optimize")
    items = draw(25, options=6, seed=5)
    errors, sizes = np.stack([o.errors for o in items]), np.stack([o.sizes for o in items])
    one = np.kron(np.eye(25), np.ones(6))
    for budget in (120, 200, 300):
        solved = optimize.milp(
            errors.ravel(),
            constraints=[
                optimize.LinearConstraint(one, 1, 1),
                optimize.LinearConstraint(sizes.reshape(1, -1), -np.inf, budget),
            ],
            integrality=np.ones(150),
            bounds=optimize.Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        assert least_error(items, budget).error == pytest.approx(solved.fun, rel=1.1e-5)


def test_what_cannot_be_is_refused():
    item = Options(np.array([2.0, 1.0]), np.array([5, 9]))
    with pytest.raises(ArgumentError, match="at least 10 bytes"):
        least_error([item] * 2, 9)
    with pytest.raises(ArgumentError, match="at least 13 bytes"):
        least_error([item] * 2, 12, fixed=3)
    assert least_error([item] * 2, 13, fixed=3).chosen == (0, 0)
    with pytest.raises(ArgumentError, match="task 2 cannot be as small"):
        least_size([item] * 2, [0, 1], [1.0, 0.9])


def test_equal_slopes_and_equal_options():
    item = Options(np.array([2.0, 2.0, 1.0, 0.0]), np.array([0, 0, 1, 2]))
    for budget in range(9):
        found = least_error([item] * 4, budget)
        assert found.error == 8 - budget


def test_bound_of_the_relaxed_problem():
    # One item between 4 bytes (error 6) and 8 bytes (error 2): at 6 bytes the mixture loses 4.
    solved = cheapest([np.array([6.0, 2.0])], [np.array([4, 8])], 6)
    assert (solved.chosen, solved.bound) == ([0], 4.0)
    assert cheapest([np.array([6.0])], [np.array([4])], 3) is None


def test_weights_of_tasks():
    assert task_weights([4.0, 0.0]) == [0.25, 1.0]
    assert task_weights([4.0, 2.0], [0.0, -0.1], [1.0, 1.0]) == [0.25, 0.5]
    assert task_weights([4.0, 2.0], [0.3, -0.1], [2.0, 1.0]) == pytest.approx([0.15, 0.015])
