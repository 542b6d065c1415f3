"""Multi-SLERP around a base."""

import numpy as np

from weightsmith.merge.multislerp import multislerp
from weightsmith.merge.multislerp_base import multislerp_base


def test_by_hand():
    found = multislerp_base(np.ones(2), [np.array([1.0, 0.0]), np.array([0.0, 3.0])])
    np.testing.assert_allclose(found, [1 + np.sqrt(2)] * 2, rtol=1e-7)


def test_it_adds_what_multislerp_makes_of_the_task_vectors():
    base, *taus = np.random.default_rng(1).standard_normal((4, 50))
    for given in ({}, {"coefficients": (0.7, 0.4, 0.1)}, {"coefficients": (0.7, 0.4, 0.1), "normalize": False}):
        found = multislerp_base(base, taus, **given)
        np.testing.assert_allclose(found - base, multislerp(taus, **given), rtol=1e-12, atol=1e-14)


def test_one_model_comes_back():
    base, tau = np.random.default_rng(2).standard_normal((2, 50))
    assert np.array_equal(multislerp_base(base, [tau], coefficients=(3.0,)), base + tau)
