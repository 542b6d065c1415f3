"""Truncated task vectors."""

import numpy as np
import pytest

from weightsmith.merge.delta_svd import delta_svd, energy_rank
from weightsmith.merge.task_arithmetic import task_arithmetic
from weightsmith.method import Matrices, Tile


def draw(shape, tasks=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), [rng.standard_normal(shape) for _ in range(tasks)]


def cut(tau, rank):
    u, s, v = np.linalg.svd(tau, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def test_by_hand():
    tau = np.diag([3.0, -1.0])
    np.testing.assert_allclose(delta_svd(np.ones((2, 2)), [tau], rank=1), [[4.0, 1.0], [1.0, 1.0]], atol=1e-12)
    # Energies 9 and 1 of 10: the first alone makes 0.9, not 0.91.
    for energy, second in ((0.89, 0.0), (0.91, -1.0)):
        found = delta_svd(np.zeros((2, 2)), [tau], energy=energy)
        np.testing.assert_allclose(found, np.diag([3.0, second]), atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 12), (9, 30), (30, 9), (1, 7), (7, 1), (1, 1), (4, 3, 5)])
@pytest.mark.parametrize("rank", [1, 3, 1000])
def test_against_decompositions(shape, rank):
    base, taus = draw(shape)
    factors = (1.0, -0.5, 2.0)
    parts = [c * cut(t.reshape(shape[0], -1), rank) for c, t in zip(factors, taus, strict=True)]
    found = delta_svd(base, taus, rank=rank, coefficients=factors, lambda_=0.5)
    np.testing.assert_allclose(found, base + 0.5 * sum(parts).reshape(shape), atol=1e-8)


@pytest.mark.parametrize("energy", [1e-9, 0.3, 0.9, 1.0])
def test_energy_keeps_the_smallest_rank_that_reaches_it(energy):
    _, (tau,) = draw((20, 26), 1)
    s = np.linalg.svd(tau, compute_uv=False) ** 2
    rank = next(k for k in range(1, 21) if s[:k].sum() >= energy * s.sum() * (1 - 1e-12))
    np.testing.assert_allclose(delta_svd(np.zeros((20, 26)), [tau], energy=energy), cut(tau, rank), atol=1e-8)


def test_energy_rank_of_nothing():
    assert energy_rank(np.array([]), 0.9) == 0
    assert energy_rank(np.zeros(3), 0.9) == 1
    assert energy_rank(np.array([2.0, 0.0]), 1.0) == 1


def test_error_is_the_sum_of_the_squares_left_out():
    _, (tau,) = draw((20, 30), 1)
    s = np.linalg.svd(tau, compute_uv=False)
    for rank in (1, 7, 19, 20):
        error = np.linalg.norm(delta_svd(np.zeros((20, 30)), [tau], rank=rank) - tau) ** 2
        assert error == pytest.approx((s[rank:] ** 2).sum(), abs=1e-9)


def test_full_rank_is_task_arithmetic():
    base, taus = draw((9, 14))
    np.testing.assert_allclose(delta_svd(base, taus, rank=9), task_arithmetic(base, taus, lambda_=1.0), atol=1e-9)


def test_randomized_is_within_its_stated_error():
    rng = np.random.default_rng(1)
    tau = rng.standard_normal((150, 200))
    s = np.linalg.svd(tau, compute_uv=False)
    k, zero = 12, np.zeros((150, 200))
    errors = [
        np.linalg.norm(delta_svd(zero, [tau], rank=k, algorithm="randomized", seed=seed) - tau, 2) for seed in range(8)
    ]
    bound = (1 + np.sqrt(k / 9) + np.e * np.sqrt(k + 10) / 10 * np.sqrt(150 - k)) ** 0.2
    assert s[k] <= np.mean(errors) < (bound + 1) * s[k]
    assert np.mean(errors) < 1.1 * s[k] < s[0]


def test_adapters_give_what_their_products_give():
    rng = np.random.default_rng(2)
    pairs = [(rng.standard_normal((20, 5)), rng.standard_normal((5, 30))) for _ in range(2)]
    base, tile = rng.standard_normal((20, 30)), Tile(shape=(20, 30))
    for given in ({"rank": 3}, {"energy": 0.7}, {"rank": 30}):
        dense = delta_svd(base, [a @ b for a, b in pairs], **given)
        lazy = Matrices(2, (20, 30), lambda t: pytest.fail("loaded"), lambda t: pairs[t])
        thin = delta_svd.apply_matrix(base, lazy, delta_svd.check(given, 2), tile)
        np.testing.assert_allclose(thin.reshape(20, 30), dense, atol=1e-9)


def test_vectors_are_not_cut():
    found = delta_svd(np.ones(2), [np.array([1.0, 2.0]), np.array([3.0, 0.0])], coefficients=(1.0, -1.0), lambda_=0.5)
    assert found.tolist() == [0.0, 2.0]
