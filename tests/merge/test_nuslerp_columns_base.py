"""Spherical interpolation of task vectors by weights, column by column."""

import numpy as np
import pytest

from weightsmith.merge.nuslerp_columns import nuslerp_columns
from weightsmith.merge.nuslerp_columns_base import nuslerp_columns_base


def test_by_hand():
    taus = [np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [1.0, 0.0]])]
    found = nuslerp_columns_base(np.ones((2, 2)), taus)
    np.testing.assert_allclose(found, [[1 + np.sqrt(0.5), 3], [1 + np.sqrt(0.5), 1]], rtol=1e-14)


@pytest.mark.parametrize("shape", [(12, 5), (4, 3, 5), (20,)])
def test_it_adds_what_nuslerp_columns_makes_of_the_task_vectors(shape):
    base, *taus = np.random.default_rng(1).standard_normal((3, *shape))
    found = nuslerp_columns_base(base, taus, coefficients=(0.7, 0.4))
    expected = nuslerp_columns(taus, coefficients=(0.7, 0.4))
    np.testing.assert_allclose(found - base, expected, rtol=1e-12, atol=1e-14)
