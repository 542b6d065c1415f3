"""Task arithmetic over sparse task vectors."""

import math

import numpy as np
import pytest
import torch

from weightsmith.errors import ArgumentError
from weightsmith.merge.dare import dare
from weightsmith.merge.sparse_task_arithmetic import sparse_task_arithmetic as merge
from weightsmith.merge.task_arithmetic import task_arithmetic
from weightsmith.method import Tile


def test_by_hand():
    a, b = np.array([3.0, -1.0, 0.2, 0.1]), np.array([1.0, 2.0, -0.1, 0.3])
    # Two of each stay: 3, -1 and 1, 2. The votes are 4 and 1, so that -1 drops out.
    given = {"sparsify": "magnitude", "densities": (0.5, 0.5)}
    assert merge(np.zeros(4), [a, b], **given, consensus=True).tolist() == [4.0, 2.0, 0.0, 0.0]
    assert merge(np.zeros(4), [a, b], **given, consensus=True, normalize=True).tolist() == [2.0, 2.0, 0.0, 0.0]
    assert merge(np.zeros(4), [a, b], **given, lambda_=0.5).tolist() == [2.0, 0.5, 0.0, 0.0]
    # Rescaled, the first has the L1 norm 4.3 again instead of 4, the second 3.4 instead of 3.
    found = merge(np.zeros(4), [a, b], **given, rescale=True)
    np.testing.assert_allclose(found, [3 * 4.3 / 4 + 3.4 / 3, -4.3 / 4 + 2 * 3.4 / 3, 0, 0], rtol=1e-6)


def slow_kept(tau, way, density, gamma, top):
    size = len(tau)
    if density >= 1 or way == "none":
        return list(tau)
    k = math.trunc(density * size)
    if way == "magnitude":
        return [v if i else 0.0 for v, i in zip(tau, top(tau, max(1, k) if density > 0 else 0), strict=True)]
    low = max(0, size - k - math.trunc(gamma * size))
    outer, inner = top(tau, max(0, size - low - k)), top(tau, max(0, size - low))
    return [v if i and not o else 0.0 for v, i, o in zip(tau, inner, outer, strict=True)]


def slow(base, taus, way, densities, gammas, weights, flags, lambda_, top):
    consensus, normalize, rescale = flags
    scaled = []
    for tau, density, gamma, w in zip(taus, densities, gammas, weights, strict=True):
        kept = slow_kept(tau, way, density, gamma, top)
        u, v = sum(map(abs, tau)), sum(map(abs, kept))
        factor = u / v if rescale and density < 1 and way != "none" and min(u, v) >= 1e-7 else 1.0
        scaled.append([w * factor * x for x in kept])
    merged = []
    for b, *column in zip(base, *scaled, strict=True):
        sign = 1 if sum(column) >= 0 else -1
        agrees = [v * sign > 0 or not consensus for v in column]
        divisor = sum(w for w, a in zip(weights, agrees, strict=True) if a)
        divisor = 1 if abs(divisor) < 1e-8 or not normalize else divisor
        merged.append(b + lambda_ * sum(v for v, a in zip(column, agrees, strict=True) if a) / divisor)
    return merged


@pytest.mark.parametrize("way", ["none", "magnitude", "outliers"])
@pytest.mark.parametrize("densities", [(0.5, 0.3, 1.0), (0.0, 1e-9, 0.99), (-1.0, 2.0, 0.7)])
@pytest.mark.parametrize("gammas", [(0.01, 0.1, 0.5), (0.9, -0.2, 0.05)])
@pytest.mark.parametrize("flags", [(c, n, r) for c in (0, 1) for n in (0, 1) for r in (0, 1)])
def test_against_one_number_at_a_time(way, densities, gammas, flags, levels, top):
    base, taus = levels(1)
    weights = (1.0, -0.5, 2.0)
    consensus, normalize, rescale = map(bool, flags)
    found = merge(
        base,
        list(taus),
        sparsify=way,
        densities=densities,
        gammas=gammas,
        coefficients=weights,
        consensus=consensus,
        normalize=normalize,
        rescale=rescale,
        lambda_=0.5,
    )
    expected = slow(base.tolist(), taus.tolist(), way, densities, gammas, weights, flags, 0.5, top)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_keeping_all_is_task_arithmetic(levels):
    base, taus = levels(2)
    given = {"coefficients": (0.5, 0.25, -1.0), "lambda_": 0.5}
    expected = task_arithmetic(base, list(taus), **given)
    for way in ("none", "magnitude", "random", "outliers"):
        assert np.array_equal(merge(base, list(taus), sparsify=way, **given), expected)
        assert np.array_equal(
            merge(base, list(taus), sparsify=way, densities=(1, 1, 1), rescale=True, **given), expected
        )


def test_random_keeps_what_dare_keeps_and_restores_the_norm():
    taus = list(np.random.default_rng(3).standard_normal((2, 4000)))
    for t, density in enumerate((0.5, 0.25)):
        densities = tuple(density if i == t else 0.0 for i in range(2))
        kept = merge(np.zeros(4000), taus, sparsify="random", densities=densities, seed=7)
        reference = dare(
            np.zeros(4000), taus, density=density, coefficients=tuple(float(i == t) for i in range(2)), seed=7
        )
        assert np.array_equal(kept != 0, reference != 0)
        assert abs((kept != 0).mean() - density) < 0.05
        scaled = merge(np.zeros(4000), taus, sparsify="random", densities=densities, seed=7, rescale=True)
        assert math.isclose(np.abs(scaled).sum(), np.abs(taus[t]).sum(), rel_tol=1e-6)


def test_a_level_vote_elects_plus():
    found = merge(np.zeros(1), [np.array([2.0]), np.array([-2.0])], consensus=True)
    assert found.tolist() == [2.0]


def test_coefficients_that_cancel_divide_by_one():
    taus = [np.array([3.0]), np.array([1.0])]
    assert merge(np.zeros(1), taus, coefficients=(1, -1), normalize=True).tolist() == [2.0]


def test_wrong_number_of_densities_is_refused():
    for name in ("densities", "gammas"):
        with pytest.raises(
            ArgumentError, match=f"merge sparse_task_arithmetic: {name}; expected 2, one per model; got 1"
        ):
            merge(np.zeros(2), [np.ones(2)] * 2, sparsify="outliers", **{name: (0.5,)})


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("consensus", [False, True])
def test_each_step_is_rounded_in_a_narrow_precision(precision, consensus):
    dtype = getattr(torch, precision)
    rng = np.random.default_rng(4)
    base = torch.from_numpy(rng.standard_normal(3000) * 0.1).to(dtype)
    models = [(base.float() + torch.from_numpy(rng.standard_normal(3000) * 0.02).float()).to(dtype) for _ in range(3)]
    weights = torch.tensor([0.7, 0.4, -0.3], dtype=dtype)
    tau = torch.stack([m - base for m in models]) * weights[:, None]
    agrees = torch.ones_like(tau, dtype=torch.bool)
    if consensus:
        agrees = tau.sign() == torch.where(tau.sum(0) >= 0, 1, -1)
    divisor = (weights[:, None] * agrees).sum(0)
    expected = base + (tau * agrees).sum(0) / torch.where(divisor == 0, 1, divisor) * 0.8
    given = {"coefficients": (0.7, 0.4, -0.3), "consensus": consensus, "normalize": True, "lambda_": 0.8}
    taus = [m.float() - base.float() for m in models]
    for make in (lambda x: x, lambda x: x.float().numpy()):
        found = merge(make(base), [make(t) for t in taus], tile=Tile(precision=precision), **given)
        assert torch.equal(torch.as_tensor(found).to(dtype), expected)
