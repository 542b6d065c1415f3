"""WiSE-FT."""

import numpy as np
import pytest

from weightsmith.merge.wise_ft import wise_ft


def test_by_hand():
    # .75 * 0 + .25 * 1 = .25; .75 * 2 + .25 * 4 = 2.5
    assert wise_ft(np.array([0.0, 2.0]), [np.array([1.0, 4.0])], lambda_=0.25).tolist() == [0.25, 2.5]


@pytest.mark.parametrize("lambda_", [0.5, 0.1, -1.0, 1.7])
def test_against_one_number_at_a_time(lambda_):
    base, model = np.random.default_rng(1).standard_normal((2, 50))
    expected = [(1 - lambda_) * b + lambda_ * m for b, m in zip(base.tolist(), model.tolist(), strict=True)]
    np.testing.assert_allclose(wise_ft(base, [model], lambda_=lambda_), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_ends_are_base_and_model_bit_for_bit(dtype):
    base, model = np.random.default_rng(2).standard_normal((2, 100)).astype(dtype)
    base[0], model[0] = -0.0, 0.0
    base[1], model[1] = 1000.0, 1e-4  # base + (model - base) would lose it
    assert wise_ft(base, [model], lambda_=0.0).tobytes() == base.tobytes()
    assert wise_ft(base, [model], lambda_=1.0).tobytes() == model.tobytes()


def test_a_linear_model_gives_the_ensemble_of_outputs():
    rng = np.random.default_rng(3)
    base, model, inputs = rng.standard_normal((5, 7)), rng.standard_normal((5, 7)), rng.standard_normal((7, 11))
    merged = wise_ft(base, [model], lambda_=0.3) @ inputs
    np.testing.assert_allclose(merged, 0.7 * (base @ inputs) + 0.3 * (model @ inputs), rtol=1e-12, atol=1e-12)
