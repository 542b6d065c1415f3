"""Shared vector and exclusive parts of low rank."""

import numpy as np
import pytest

from weightsmith.compress.twin_svd import twin_svd


def draw(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def own(part):
    return part.settings["scale"] * part.arrays["left"].astype(np.float64) @ part.arrays["right"]


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_full_rank_rebuilds_each_task(shape):
    taus = [draw(shape, seed) for seed in range(3)]
    shared = 0.3 * sum(taus)
    for tau in taus:
        np.testing.assert_allclose(shared + own(twin_svd(tau, shared, rank=6)), tau, atol=1e-5)


def test_full_rank_parts_average_to_the_average_of_the_tasks():
    taus = [draw((5, 7), seed) for seed in range(4)]
    shared = 0.3 * sum(taus)
    mean = sum(own(twin_svd(tau, shared, energy=1.0)) for tau in taus) / 4
    np.testing.assert_allclose(shared + mean, sum(taus) / 4, atol=1e-5)


def test_the_cut_is_relative_to_the_shared_vector():
    tau, shared = draw((8, 12), 0), draw((8, 12), 1)
    u, s, v = np.linalg.svd((tau - shared).astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(own(twin_svd(tau, shared, rank=3)), (u[:, :3] * s[:3]) @ v[:3], atol=1e-5)


def test_what_is_shared():
    assert twin_svd.adds_shared
    assert twin_svd.check({}, 2)["lambda_"] == 0.3
    taus = [draw((4, 3), seed) for seed in range(2)]
    found = twin_svd.share(np.zeros((4, 3), np.float32), taus, lambda_=0.5)
    np.testing.assert_allclose(found, 0.5 * (taus[0] + taus[1]), atol=1e-6)
