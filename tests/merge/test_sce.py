"""SCE."""

import math

import numpy as np
import pytest
import torch

from weightsmith.merge.sce import sce
from weightsmith.method import Tile
from weightsmith.tensor.arrays import Plain, like
from weightsmith.tensor.select import kth_largest
from weightsmith.tensor.variance import energies, keep_varying, merge_shares, variances


def slow(base, taus, share, floor=False):
    columns = list(zip(*taus, strict=True))
    if share < 1:
        spread = [sum((v - sum(c) / len(c)) ** 2 for v in c) / len(c) for c in columns]
        count = math.trunc(sum(s != 0 for s in spread) * share)
        chosen = set(sorted(range(len(spread)), key=lambda i: (-spread[i], i))[:count])
        columns = [c if i in chosen else [0.0] * len(c) for i, c in enumerate(columns)]
    energy = [sum(v * v for v in tau) / len(columns) for tau in zip(*columns, strict=True)]
    total = sum(energy)
    equal = total == 0 or (floor and total < 1e-6)
    weights = [1 / len(energy) if equal else e / total for e in energy]
    merged = []
    for b, column in zip(base, columns, strict=True):
        sign = 1 if sum(column) >= 0 else -1
        pairs = [(w, v) for w, v in zip(weights, column, strict=True) if v * sign > 0]
        divisor = max(sum(w for w, _ in pairs), 1e-6 if floor else 0.0) or 1.0
        merged.append(b + sum(w * v for w, v in pairs) / divisor)
    return merged


def test_by_hand():
    # Energies 10 / 3 and 2 / 3, weights 5 / 6 and 1 / 6: (5 * 3 + 1) / 6; the second entry's level vote elects plus.
    found = sce(np.zeros(3), [np.array([3.0, 1.0, 0.0]), np.array([1.0, -1.0, 0.0])])
    np.testing.assert_allclose(found, [16 / 6, 1.0, 0.0], rtol=1e-14)


@pytest.mark.parametrize("share", [1.0, 0.7, 0.3, 1e-9])
@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_against_one_number_at_a_time(share, tasks, levels):
    base, taus = levels(1, tasks=tasks)
    found = sce(base, list(taus), select_topk=share)
    np.testing.assert_allclose(found, slow(base.tolist(), taus.tolist(), share), rtol=1e-13, atol=1e-13)


def test_small_changes_are_weighed_as_large_ones_unless_the_floor_is_wanted():
    base, *taus = np.random.default_rng(2).standard_normal((4, 100))
    small = [t * s * 1e-4 for t, s in zip(taus, (1.0, 2.0, 5.0), strict=True)]
    for floor in (False, True):
        found = sce(base, small, peer_floor=floor)
        expected = slow(base.tolist(), np.array(small).tolist(), 1.0, floor)
        np.testing.assert_allclose(found - base, np.array(expected) - base, rtol=1e-9, atol=1e-16)
    assert not np.allclose(sce(base, small), sce(base, small, peer_floor=True), rtol=0, atol=1e-6)


def test_scaling_the_changes_scales_the_step():
    base = np.zeros(60)
    taus = np.random.default_rng(3).standard_normal((3, 60))
    for share in (1.0, 0.4):
        found = sce(base, list(taus * 2.0**-20), select_topk=share)
        assert np.array_equal(found, sce(base, list(taus), select_topk=share) * 2.0**-20)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_each_step_is_rounded_in_a_narrow_precision(precision):
    dtype = getattr(torch, precision)
    rng = np.random.default_rng(4)
    base = torch.from_numpy(rng.standard_normal(3000) * 0.1).to(dtype)
    models = [(base.float() + torch.from_numpy(rng.standard_normal(3000) * 0.05).float()).to(dtype) for _ in range(3)]
    delta = torch.stack([m - base for m in models])
    energy = delta.square().mean(1)
    weights = (energy / energy.sum())[:, None] * (delta.sign() == torch.where(delta.sum(0) >= 0, 1, -1))
    expected = base + (delta * weights).sum(0) / weights.sum(0).clamp(min=1e-6)
    taus = [m.float() - base.float() for m in models]
    for make in (lambda x: x, lambda x: x.float().numpy()):
        found = sce(make(base), [make(t) for t in taus], peer_floor=True, tile=Tile(precision=precision))
        assert torch.equal(torch.as_tensor(found).to(dtype), expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 64, 1025, 9000])
def test_the_loops_have_the_bits_of_the_eager_forms(precision, dtype, size):
    vectors = (np.random.default_rng(size).standard_normal((3, size)) * 0.01).astype(dtype)
    vectors[:, ::5], vectors[:, 1::5], vectors[1, 1::5] = 0, 0.125, 0.25
    forms = [vectors, vectors.view(Plain), torch.from_numpy(vectors)]
    ranks = [size // 2, size // 10, 0, size]
    base, shares = vectors[0] * 3, [0.5, 0.2, 0.3]
    calls = [lambda v: variances(v, precision)]
    for bound in (None, *kth(vectors, ranks, precision)):
        for start in (0, 7):
            calls.append(lambda v, k=bound, s=start: keep_varying(v, k, s, precision))
            calls.append(lambda v, k=bound, s=start: energies(v, k, s, precision))
            calls.append(lambda v, k=bound, s=start: merge_shares(like(base, v), v, k, s, shares, 1e-6, precision))
    for call in calls:
        assert len({np.asarray(call(form)).tobytes() for form in forms}) == 1


def kth(vectors, ranks, precision):
    return kth_largest(variances(vectors, precision)[None], ranks)
