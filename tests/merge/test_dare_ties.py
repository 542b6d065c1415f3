"""DARE with sign election."""

import numpy as np
import pytest

from weightsmith.merge.dare import dare
from weightsmith.merge.dare_ties import dare_ties
from weightsmith.merge.ties import ties


def test_by_hand():
    # Full density. (4 + 2) / 2 = 3; 1 - 3 = -2 is minus, so -3 alone; 1 - 1 = 0 is level and stays out.
    taus = [np.array([4.0, 1.0, 1.0]), np.array([2.0, -3.0, -1.0])]
    assert dare_ties(np.zeros(3), taus, density=1.0).tolist() == [3.0, -3.0, 0.0]


@pytest.mark.parametrize("merge", ["mean", "sum", "max"])
@pytest.mark.parametrize("density", [0.25, 0.5, 1.0])
def test_against_one_number_at_a_time(merge, density, levels, elect):
    base, taus = levels(1)
    alone = np.eye(3)
    dropped = [dare(np.zeros(60), list(taus), density=density, coefficients=tuple(c), seed=4) for c in alone]
    expected = base + 0.5 * np.array(elect([d.tolist() for d in dropped], merge, 0))
    found = dare_ties(base, list(taus), density=density, merge=merge, lambda_=0.5, seed=4)
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14)


def test_full_density_is_ties_without_trimming_where_no_vote_is_level(levels):
    base, taus = levels(2, tasks=1)
    assert np.array_equal(dare_ties(base, list(taus), density=1.0), ties(base, list(taus), density=1.0))


def test_a_task_that_changes_nothing_changes_nothing(levels):
    base, taus = levels(3)
    with_zero = dare_ties(base, [*taus, np.zeros(60)], seed=2)
    assert np.array_equal(with_zero, dare_ties(base, list(taus), seed=2))


def test_flipping_all_signs_flips_the_result(levels):
    _, taus = levels(4)
    assert np.array_equal(dare_ties(np.zeros(60), list(-taus)), -dare_ties(np.zeros(60), list(taus)))
