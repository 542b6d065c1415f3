"""RAM."""

import numpy as np
import pytest
import torch

from weightsmith.merge.ram import ram
from weightsmith.method import Tile


def slow(base, taus, epsilon):
    merged = []
    for b, *column in zip(base, *taus, strict=True):
        changed = [v for v in column if abs(v) > epsilon]
        merged.append(b + sum(v / len(changed) for v in changed))
    return merged


def test_by_hand():
    # Changed by both: (1 + 3) / 2; by the first alone: 2; by none: the base.
    assert ram(np.zeros(3), [np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.0, 0.0])]).tolist() == [2.0, 2.0, 0.0]


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 0.5, 2.0])
def test_against_one_number_at_a_time(epsilon, levels):
    base, taus = levels(1, tasks=4)
    found = ram(base, list(taus), epsilon=epsilon)
    np.testing.assert_allclose(found, slow(base.tolist(), taus.tolist(), epsilon), rtol=1e-14)


def test_copies_of_one_model_are_that_model(levels):
    base, taus = levels(2, tasks=1)
    np.testing.assert_allclose(ram(base, [taus[0]] * 4, epsilon=0.0), base + taus[0], rtol=1e-15)


def test_disjoint_changes_are_all_kept():
    taus = np.zeros((3, 30))
    for t in range(3):
        taus[t, t::3] = t + 1.0
    assert np.array_equal(ram(np.zeros(30), list(taus)), taus.sum(0))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_each_step_is_rounded_in_a_narrow_precision(precision):
    dtype = getattr(torch, precision)
    rng = np.random.default_rng(3)
    base = torch.from_numpy(rng.standard_normal(2000) * 0.1).to(dtype)
    models = [(base.float() + torch.from_numpy(rng.standard_normal(2000) * 0.01).float()).to(dtype) for _ in range(3)]
    deltas = torch.stack([m - base for m in models])
    changed = deltas.abs() > 0.005
    count = changed.sum(0)
    expected = base + (deltas * changed / count.clamp(min=1)).sum(0)
    taus = [m.float() - base.float() for m in models]
    for make in (lambda x: x, lambda x: x.float().numpy()):
        found = ram(make(base), [make(t) for t in taus], epsilon=0.005, tile=Tile(precision=precision))
        assert torch.equal(torch.as_tensor(found).to(dtype), expected)
