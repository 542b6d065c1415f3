"""One model as it is."""

import numpy as np
import pytest

from weightsmith.merge.passthrough import passthrough


def test_by_hand():
    assert passthrough([np.array([1.0, -2.0])], scale=0.5).tolist() == [0.5, -1.0]
    assert passthrough([np.array([1.0, -2.0])], scale=0.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_without_a_scale_it_is_the_model_bit_for_bit(dtype):
    model = np.random.default_rng(1).standard_normal(100).astype(dtype)
    model[0] = -0.0
    assert passthrough([model]).tobytes() == model.tobytes()


def test_the_scaled_model_is_rounded_once():
    model = np.random.default_rng(2).standard_normal(1000).astype(np.float16)
    expected = (model.astype(np.float32) * np.float32(0.7)).astype(np.float16)
    assert passthrough([model], scale=0.7).tobytes() == expected.tobytes()
