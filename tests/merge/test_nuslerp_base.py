"""Spherical interpolation of task vectors by weights."""

import numpy as np
import pytest

from weightsmith.merge.nuslerp import nuslerp
from weightsmith.merge.nuslerp_base import nuslerp_base


def test_by_hand():
    # A right angle halfway: sin 45 of both, on top of the base.
    found = nuslerp_base(np.ones(2), [np.array([1.0, 0.0]), np.array([0.0, 1.0])])
    np.testing.assert_allclose(found, [1 + np.sqrt(0.5)] * 2, rtol=1e-14)


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_it_adds_what_nuslerp_makes_of_the_task_vectors(scope):
    base, *taus = np.random.default_rng(1).standard_normal((3, 6, 10))
    given = {"coefficients": (0.7, 0.4), "scope": scope}
    found = nuslerp_base(base, taus, **given)
    np.testing.assert_allclose(found - base, nuslerp(taus, **given), rtol=1e-12, atol=1e-14)


def test_a_row_in_which_nothing_changed_stays_bit_for_bit():
    base, *taus = np.random.default_rng(2).standard_normal((3, 6, 10)).astype(np.float32)
    for tau in taus:
        tau[2] = 0
    found = nuslerp_base(base, taus, scope="row")
    assert found[2].tobytes() == base[2].tobytes()
    assert not np.any(found[1] == base[1])
