"""Spherical interpolation by weights, column by column."""

import numpy as np
import pytest

from weightsmith.merge.nuslerp import nuslerp
from weightsmith.merge.nuslerp_columns import nuslerp_columns


def test_by_hand():
    # A right angle in the first column, none in the second.
    found = nuslerp_columns([np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [1.0, 0.0]])])
    np.testing.assert_allclose(found, [[np.sqrt(0.5), 2], [np.sqrt(0.5), 0]], rtol=1e-14)


@pytest.mark.parametrize("shape", [(12, 5), (4, 3, 5), (40, 1), (1, 6)])
def test_against_one_column_at_a_time(shape):
    models = np.random.default_rng(1).standard_normal((2, *shape))
    found = nuslerp_columns(list(models), coefficients=(0.3, 0.9))
    for place in np.ndindex(shape[1:]):
        columns = [np.ascontiguousarray(m[(slice(None), *place)]) for m in models]
        np.testing.assert_allclose(found[(slice(None), *place)], nuslerp(columns, coefficients=(0.3, 0.9)), rtol=1e-9)


def test_a_tensor_of_one_axis_is_one_vector():
    models = list(np.random.default_rng(2).standard_normal((2, 50)))
    assert np.array_equal(nuslerp_columns(models), nuslerp(models))
