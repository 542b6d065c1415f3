"""Iso-C."""

import numpy as np
import pytest

from weightsmith.merge.iso_c import iso_c
from weightsmith.method import Matrices, Tile


def slow(taus):
    u, s, v = np.linalg.svd(np.sum(taus, 0, dtype=np.float64), full_matrices=False)
    return s.mean() * u @ v


def draw(shape, tasks=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), [rng.standard_normal(shape) * 0.1 for _ in range(tasks)]


def test_by_hand():
    # The sum is diag(3, -1): its singular values 3 and 1 become their mean, 2; the signs stay.
    found = iso_c(np.zeros((2, 2)), [np.diag([3.0, 0.0]), np.diag([0.0, -1.0])], lambda_=1.5)
    np.testing.assert_allclose(found, np.diag([3.0, -3.0]), atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 12), (9, 30), (30, 9), (1, 7), (7, 1), (1, 1), (4, 3, 5)])
def test_against_a_decomposition(shape):
    base, taus = draw(shape)
    expected = slow([t.reshape(shape[0], -1) for t in taus]).reshape(shape)
    np.testing.assert_allclose(iso_c(base, taus, lambda_=0.7), base + 0.7 * expected, atol=1e-9)


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (48, 48)])
def test_all_singular_values_are_equal(shape):
    _, taus = draw(shape)
    found = iso_c(np.zeros(shape, np.float32), [t.astype(np.float32) for t in taus])
    s = np.linalg.svd(found.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(s, np.linalg.svd(sum(taus), compute_uv=False).mean(), rtol=2e-6)


def test_one_task_with_a_flat_spectrum_is_itself():
    tau = 0.3 * np.linalg.qr(np.random.default_rng(1).standard_normal((9, 9)))[0]
    np.testing.assert_allclose(iso_c(np.ones((9, 9)), [tau]), 1 + tau, atol=1e-12)


def test_null_directions_stay_zero_and_count_in_the_mean():
    rng = np.random.default_rng(2)
    tau = rng.standard_normal((12, 3)) @ rng.standard_normal((3, 12))
    found = iso_c(np.zeros((12, 12)), [tau])
    s = np.linalg.svd(found, compute_uv=False)
    np.testing.assert_allclose(s[:3], np.linalg.svd(tau, compute_uv=False).sum() / 12, rtol=1e-9)
    np.testing.assert_allclose(s[3:], 0, atol=1e-12)
    assert np.array_equal(iso_c(np.ones((2, 2)), [np.eye(2), -np.eye(2)]), np.ones((2, 2)))


def test_vectors_get_the_mean():
    assert iso_c(np.ones(2), [np.array([1.0, 2.0]), np.array([3.0, 0.0])], lambda_=0.5).tolist() == [2.0, 1.5]


def test_adapters_give_what_their_products_give():
    rng = np.random.default_rng(3)
    pairs = [(rng.standard_normal((20, 4)), rng.standard_normal((4, 30))) for _ in range(3)]
    pairs.append((np.zeros((20, 0)), np.zeros((0, 30))))  # an adapter that leaves this tensor as it is
    base, tile = np.zeros((20, 30)), Tile(shape=(20, 30))
    dense = iso_c(base, [a @ b for a, b in pairs])
    thin = iso_c.apply_matrix(
        base, Matrices(4, (20, 30), lambda t: pytest.fail("loaded"), lambda t: pairs[t]), iso_c.check({}, 4), tile
    )
    np.testing.assert_allclose(thin.reshape(20, 30), dense, atol=1e-9)
