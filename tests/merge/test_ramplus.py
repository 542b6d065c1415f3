"""RAM+."""

import numpy as np
import pytest

from weightsmith.merge.ram import ram
from weightsmith.merge.ramplus import ramplus


def slow(base, taus, r, alpha, epsilon):
    columns = list(zip(*taus, strict=True))
    shared, unique = [0] * len(taus), [0] * len(taus)
    for column in columns:
        changed = [t for t, v in enumerate(column) if abs(v) > epsilon]
        for t in changed:
            (unique if len(changed) == 1 else shared)[t] += 1
    merged = []
    for b, column in zip(base, columns, strict=True):
        changed = [t for t, v in enumerate(column) if abs(v) > epsilon]
        step = sum(column[t] / len(changed) for t in changed)
        if len(changed) == 1:
            t = changed[0]
            step = column[t] * (1 + r * min(alpha, shared[t] / unique[t]))
        merged.append(b + step)
    return merged


def test_by_hand():
    # The first model shares one entry and changes one alone: 2 * (1 + .5 * 1 / 1) = 3.
    taus = [np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.0, 0.0])]
    assert ramplus(np.zeros(3), taus, r=0.5, alpha=1.0).tolist() == [2.0, 3.0, 0.0]
    assert ramplus(np.zeros(3), taus, r=0.5, alpha=0.5).tolist() == [2.0, 2.5, 0.0]


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 0.6])
@pytest.mark.parametrize(("r", "alpha"), [(0.1, 0.2), (0.7, 5.0), (-0.5, 1.0)])
def test_against_one_number_at_a_time(epsilon, r, alpha, levels):
    base, taus = levels(1)
    found = ramplus(base, list(taus), r=r, alpha=alpha, epsilon=epsilon)
    np.testing.assert_allclose(found, slow(base.tolist(), taus.tolist(), r, alpha, epsilon), rtol=1e-14, atol=1e-14)


def test_without_strength_it_is_ram(levels):
    base, taus = levels(2)
    assert np.array_equal(ramplus(base, list(taus), r=0.0), ram(base, list(taus)))
    assert np.array_equal(ramplus(base, list(taus), alpha=0.0), ram(base, list(taus)))


def test_a_model_that_changes_nothing_alone():
    taus = [np.array([1.0, 0.0]), np.array([1.0, 2.0])]
    assert ramplus(np.zeros(2), taus, r=1.0, alpha=3.0, epsilon=0.0).tolist() == [1.0, 4.0]
