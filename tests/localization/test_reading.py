"""The merged vector of every merge: what it adds to a base of zeros it adds to any base."""

import numpy as np
import pytest

from weightsmith.merge import METHODS

ADDITIVE = [m for m in METHODS if m.reach == "elementwise" and "task_vectors" in m.inputs]


@pytest.mark.parametrize("method", ADDITIVE, ids=lambda m: m.name)
def test_the_base_is_only_added_to(method):
    rng = np.random.default_rng(0)
    base = rng.integers(-64, 64, (8, 16)) / 8
    common = rng.integers(-8, 9, (8, 16)) / 64
    vectors = [common + rng.integers(-4, 5, (8, 16)) / 64 for _ in range(min(3, method.most or 3))]
    alone = method(np.zeros((8, 16)), vectors)
    assert np.abs(alone).max() > 0
    np.testing.assert_allclose(method(base, vectors), base + alone, rtol=0, atol=1e-13)
