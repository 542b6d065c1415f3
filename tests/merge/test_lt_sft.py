"""LT-SFT composition."""

import numpy as np
import pytest

from weightsmith.merge.lt_sft import lt_sft
from weightsmith.merge.task_arithmetic import task_arithmetic


def test_by_hand():
    taus = [np.array([3.0, -1.0, 0.5, 0.1]), np.array([1.0, 0.2, -2.0, 0.3])]
    assert lt_sft(np.ones(4), taus, density=0.5).tolist() == [5.0, 0.0, -1.0, 1.0]
    assert lt_sft(np.ones(4), taus, density=0.5, coefficients=(1, -1)).tolist() == [3.0, 0.0, 3.0, 1.0]


@pytest.mark.parametrize("density", [1e-9, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_against_a_full_sort(density, scope, levels, top):
    base, taus = levels(1)
    rank = max(1, round(density * 60))
    kept = [np.where(top(t.tolist(), rank), t, 0.0) for t in taus]
    expected = base + (1.0 * kept[0] - 0.5 * kept[1] + 2.0 * kept[2])
    found = lt_sft(base, list(taus), density=density, coefficients=(1.0, -0.5, 2.0), scope=scope)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", [1, 7, 100, 1001])
@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
def test_the_support_has_exactly_k_entries(size, density):
    tau = np.random.default_rng(2).choice([-1.0, 1.0, 2.0], size)
    assert np.count_nonzero(lt_sft(np.zeros(size), [tau], density=density)) == max(1, round(density * size))


def test_adding_commutes_and_disjoint_supports_stay(levels):
    base, taus = levels(3)
    assert np.array_equal(lt_sft(base, list(taus), density=0.2), lt_sft(base, list(taus[::-1]), density=0.2))
    task, language = np.zeros(10), np.zeros(10)
    task[:3], language[5:8] = [1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]
    found = lt_sft(np.zeros(10), [task, language], density=0.3)
    assert np.array_equal(found, task + language)


def test_keeping_all_is_task_arithmetic(levels):
    base, taus = levels(4)
    assert np.array_equal(lt_sft(base, list(taus), density=1.0), task_arithmetic(base, list(taus)))
