"""Model Breadcrumbs."""

import numpy as np
import pytest

from weightsmith.merge.breadcrumbs import breadcrumbs
from weightsmith.merge.task_arithmetic import task_arithmetic


def slow_band(tau, density, drop_top, top):
    size = len(tau)
    dropped = min(round(drop_top * size), size)
    outer = top(tau, dropped)
    inner = top(tau, min(dropped + max(1, round(density * size)), size))
    return [v if i and not o else 0.0 for v, i, o in zip(tau, inner, outer, strict=True)]


def test_by_hand():
    # Of 4, drop round(.25 * 4) = 1, the 9; keep the next round(.5 * 4) = 2: -3 and 2.
    tau = np.array([9.0, -3.0, 2.0, 0.1])
    assert breadcrumbs(np.zeros(4), [tau], density=0.5, drop_top=0.25, lambda_=1.0).tolist() == [0.0, -3.0, 2.0, 0.0]
    # Rows of 2: drop round(.5 * 2) = 1 of each, keep the other.
    rows = breadcrumbs(np.zeros((2, 2)), [tau.reshape(2, 2)], density=0.5, drop_top=0.5, lambda_=1.0, scope="row")
    assert rows.tolist() == [[0.0, -3.0], [0.0, 0.1]]


@pytest.mark.parametrize("density", [1e-9, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("drop_top", [0.0, 0.006, 0.3, 0.99])
def test_against_one_number_at_a_time(density, drop_top, levels, top):
    base, taus = levels(1)
    factors = (1.0, -0.5, 2.0)
    kept = [slow_band(t, density, drop_top, top) for t in taus.tolist()]
    expected = base + 0.5 * sum(c * np.array(k) for c, k in zip(factors, kept, strict=True))
    found = breadcrumbs(base, list(taus), density=density, drop_top=drop_top, coefficients=factors, lambda_=0.5)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("shape", [(5, 12), (3, 4, 5), (60, 1), (1, 60)])
def test_rows_against_one_row_at_a_time(shape, levels, top):
    base, taus = levels(2)
    base, taus = base.reshape(shape), taus.reshape(3, *shape)
    expected = base.copy()
    for place in np.ndindex(shape[:-1]):
        for tau in taus:
            expected[place] += slow_band(tau[place].tolist(), 0.4, 0.2, top)
    found = breadcrumbs(base, list(taus), density=0.4, drop_top=0.2, lambda_=1.0, scope="row")
    assert np.array_equal(found, expected)


def test_keeping_all_is_task_arithmetic(levels):
    base, taus = levels(3)
    for scope in ("tensor", "row"):
        found = breadcrumbs(base, list(taus), density=1.0, drop_top=0.0, lambda_=0.3, scope=scope)
        assert np.array_equal(found, task_arithmetic(base, list(taus), lambda_=0.3))


@pytest.mark.parametrize("size", [1, 2, 7, 100, 1001])
@pytest.mark.parametrize("density", [0.05, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("drop_top", [0.0, 0.01, 0.1, 0.5])
def test_number_of_survivors_is_exact(size, density, drop_top):
    tau = np.random.default_rng(4).choice([-1.0, 1.0, 2.0], size)  # many equal ones, none zero
    found = breadcrumbs(np.zeros(size), [tau], density=density, drop_top=drop_top, lambda_=1.0)
    dropped = round(drop_top * size)
    assert np.count_nonzero(found) == min(max(1, round(density * size)), size - dropped)


def test_no_survivor_exceeds_a_dropped_top_or_falls_below_a_dropped_rest():
    tau = np.random.default_rng(5).standard_normal(1000)
    kept = breadcrumbs(np.zeros(1000), [tau], density=0.3, drop_top=0.05, lambda_=1.0) != 0
    magnitude = np.sort(np.abs(tau))[::-1]
    assert np.array_equal(np.sort(np.abs(tau[kept]))[::-1], magnitude[50:350])


def test_a_small_share_of_a_small_tensor_drops_none():
    tau = np.array([5.0, 1.0, 2.0])
    found = breadcrumbs(np.zeros(3), [tau], density=1.0, drop_top=0.1, lambda_=1.0)  # round(.3) = 0
    assert found.tolist() == tau.tolist()


def test_scalar_keeps_its_change():
    assert breadcrumbs(np.array(1.0), [np.array(2.0)], lambda_=1.0).item() == 3.0
    assert breadcrumbs(np.array(1.0), [np.array(2.0)], lambda_=1.0, scope="row").item() == 3.0
