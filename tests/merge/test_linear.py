"""Weight averaging."""

import numpy as np
import pytest

from weightsmith.errors import ArgumentError
from weightsmith.merge.linear import linear


def test_by_hand():
    # (3 * 1 + 1 * 3) / 4 = 1.5; (3 * 2 + 1 * 6) / 4 = 3
    assert linear([np.array([1.0, 2.0]), np.array([3.0, 6.0])], coefficients=(3, 1)).tolist() == [1.5, 3.0]
    # 3 * 1 + 1 * 3 = 6; 3 * 2 + 1 * 6 = 12
    models = [np.array([1.0, 2.0]), np.array([3.0, 6.0])]
    assert linear(models, coefficients=(3, 1), normalize=False).tolist() == [6.0, 12.0]
    assert linear(models, normalize=False).tolist() == [4.0, 8.0]


@pytest.mark.parametrize("coefficients", [None, (1.0, 2.0, 3.0), (0.7, -0.1, 0.4), (0.0, 0.0, 5.0)])
@pytest.mark.parametrize("normalize", [True, False])
def test_against_one_number_at_a_time(coefficients, normalize):
    models = np.random.default_rng(1).standard_normal((3, 50))
    factors = coefficients or (1.0, 1.0, 1.0)
    total = sum(factors) if normalize else 1.0
    expected = [sum(c * m for c, m in zip(factors, column, strict=True)) / total for column in models.T.tolist()]
    found = linear(list(models), coefficients=coefficients, normalize=normalize)
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("coefficients", [None, (0.3, 0.6, 0.1, 0.77), (3.0, -1.0, 0.1, 1e-3)])
def test_identical_models_come_back_bit_for_bit(dtype, coefficients):
    model = np.random.default_rng(2).standard_normal(1000).astype(dtype)
    assert linear([model.copy() for _ in range(4)], coefficients=coefficients).tobytes() == model.tobytes()


def test_one_model_is_itself():
    model = np.array([0.1, -0.0, 3e-300])
    assert linear([model]).tobytes() == model.tobytes()
    assert linear([model], coefficients=(7.0,)).tobytes() == model.tobytes()


def test_coefficients_that_cancel_are_refused():
    with pytest.raises(ArgumentError, match="merge linear: coefficients"):
        linear([np.ones(2), np.ones(2)], coefficients=(1, -1))
    difference = linear([np.array([3.0]), np.array([1.0])], coefficients=(1, -1), normalize=False)
    assert difference.tolist() == [2.0]


def test_rounding_happens_once():
    # 1 + 2**-12 + 2**-12 is 1 + 2**-11 in float32, and rounds to 1 in float16, as does no sum in float16.
    models = [np.array([1.0], np.float16), np.array([2.0**-11], np.float16), np.array([2.0**-11], np.float16)]
    found = linear(models, normalize=False)
    assert found.dtype == np.float16
    assert found.item() == 1 + 2.0**-10
