"""NearSwap."""

import numpy as np
import pytest
import torch

from weightsmith.merge.nearswap import nearswap
from weightsmith.method import Tile


def test_by_hand():
    # |1 - 1.125| is below t, so it is taken over; 2 is 1 away: w = .25 / 1, .25 * 2 + .75 * 1 = 1.25.
    found = nearswap(np.array([1.0, 1.0, 1.0]), [np.array([1.0, 1.125, 2.0])], t=0.25)
    assert found.tolist() == [1.0, 1.125, 1.25]


@pytest.mark.parametrize("t", [0.0, 1e-7, 0.01, 0.3, 10.0])
def test_against_one_number_at_a_time(t):
    base, model = np.random.default_rng(1).standard_normal((2, 200))
    model[:20] = base[:20]
    model[20:40] = base[20:40] + 1e-7
    expected = []
    for b, x in zip(base.tolist(), model.tolist(), strict=True):
        w = min(1.0, t / max(abs(b - x), 1e-6))
        expected.append(w * x + (1 - w) * b)
    np.testing.assert_allclose(nearswap(base, [model], t=t), expected, rtol=1e-13)


def test_beyond_t_the_base_moves_by_t():
    base, model = np.random.default_rng(2).standard_normal((2, 500))
    found = nearswap(base, [model], t=0.05)
    far = np.abs(base - model) > 0.05
    assert far.any()
    np.testing.assert_allclose(np.abs(found - base)[far], 0.05, rtol=1e-9)
    assert np.array_equal(found[~far], model[~far])


def test_each_step_is_rounded_in_a_narrow_precision():
    rng = np.random.default_rng(3)
    base, model = (torch.from_numpy(rng.standard_normal(2000) * 0.1).to(torch.bfloat16) for _ in range(2))
    distance = (base - model).abs().clamp(min=1e-6)
    share = (distance.reciprocal() * 0.02).clamp(0, 1)
    expected = share * model + (1 - share) * base
    for make in (lambda x: x, lambda x: x.float().numpy()):
        found = nearswap(make(base), [make(model)], t=0.02, tile=Tile(precision="bfloat16"))
        assert torch.equal(torch.as_tensor(found).to(torch.bfloat16), expected)
