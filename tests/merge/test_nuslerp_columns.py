"""Spherical interpolation by weights, column by column."""

import numpy as np
import pytest

from weightsmith.merge.nuslerp import nuslerp
from weightsmith.merge.nuslerp_columns import nuslerp_columns
from weightsmith.method import Tile
from weightsmith.tensor.rounding import rounded


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


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_columns_are_the_rows_of_turned_matrices(precision):
    rng = np.random.default_rng(4)
    pair = [rounded(m.astype(np.float32), precision) for m in rng.standard_normal((2, 90, 150))]
    tile = Tile(precision=precision)
    found = nuslerp_columns(pair, coefficients=(0.7, 0.4), tile=tile)
    turned = nuslerp([m.T.copy() for m in pair], coefficients=(0.7, 0.4), scope="row", tile=tile)
    assert np.array_equal(found, turned.T)
