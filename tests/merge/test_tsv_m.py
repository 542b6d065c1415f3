"""TSV-M."""

import numpy as np
import pytest

from weightsmith.merge.tsv_m import tsv_m
from weightsmith.method import Matrices, Tile


def nearest(matrix):
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    return u @ v


def slow(taus):
    """Follow the card, line by line."""
    k = max(1, min(taus[0].shape) // len(taus))
    found = [np.linalg.svd(t.astype(np.float64), full_matrices=False) for t in taus]
    left = np.concatenate([u[:, :k] for u, _, _ in found], 1)
    right = np.concatenate([v[:k] for _, _, v in found])
    values = np.concatenate([s[:k] for _, s, _ in found])
    return nearest(left) @ np.diag(values) @ nearest(right)


def draw(shape, tasks, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), [rng.standard_normal(shape) * 0.1 for _ in range(tasks)]


def test_by_hand():
    # Each task's one leading triplet; they are orthogonal already, so their sum is the answer. 0.1 is cut off.
    taus = [np.diag([3.0, 0.0, 0.1]), np.diag([0.0, 2.0, 0.0])]
    np.testing.assert_allclose(tsv_m(np.ones((3, 3)), taus), np.ones((3, 3)) + np.diag([3.0, 2.0, 0.0]), atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 12), (9, 30), (30, 9), (1, 7), (7, 1), (1, 1), (4, 3, 5)])
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_against_decompositions(shape, tasks):
    base, taus = draw(shape, tasks)
    expected = slow([t.reshape(shape[0], -1) for t in taus]).reshape(shape)
    if tasks <= min(shape[0], taus[0].size // shape[0]):
        np.testing.assert_allclose(tsv_m(base, taus), base + expected, atol=1e-8)


def test_float32_inputs_lose_nothing():
    base, taus = draw((40, 64), 3)
    base, taus = base.astype(np.float32), [t.astype(np.float32) for t in taus]
    found = tsv_m(np.zeros_like(base), taus)
    assert np.linalg.norm(found - slow(taus)) < 1e-6 * np.linalg.norm(found)


def test_more_tasks_than_directions_gives_one_triplet_each():
    base, taus = draw((3, 8), 5)
    found = tsv_m(np.zeros_like(base), taus)
    triplets = [np.linalg.svd(t, full_matrices=False) for t in taus]
    left = nearest(np.stack([u[:, 0] for u, _, _ in triplets], 1))
    right = nearest(np.stack([v[0] for _, _, v in triplets]))
    np.testing.assert_allclose(left @ left.T, np.eye(3), atol=1e-10)  # rows orthonormal, for there are fewer
    np.testing.assert_allclose(found, (left * [s[0] for _, s, _ in triplets]) @ right, atol=1e-8)


@pytest.mark.parametrize("shape", [(8, 8), (5, 20), (20, 5)])
def test_one_task_is_itself(shape):
    base, (tau,) = draw(shape, 1)
    np.testing.assert_allclose(tsv_m(base, [tau]), base + tau, atol=1e-9)


def test_orthogonal_tasks_are_added():
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.standard_normal((20, 12)))[0] for _ in range(2))
    taus = [(u[:, i : i + 4] * [4, 3, 2, 1]) @ v[:, i : i + 4].T for i in (0, 4, 8)]
    np.testing.assert_allclose(tsv_m(np.zeros((20, 20)), taus), sum(taus), atol=1e-9)


def test_identical_tasks_give_their_leading_part():
    _, (tau,) = draw((10, 14), 1)
    u, s, v = np.linalg.svd(tau, full_matrices=False)
    found = tsv_m(np.zeros_like(tau), [tau, tau])
    np.testing.assert_allclose(found, (u[:, :5] * s[:5]) @ v[:5], atol=1e-9)


def test_a_zero_task_only_takes_room():
    base, taus = draw((12, 12), 2)
    found = tsv_m(base, [*taus, np.zeros((12, 12))])
    u, s, v = np.linalg.svd(taus[0])
    w, d, x = np.linalg.svd(taus[1])
    left, right = nearest(np.c_[u[:, :4], w[:, :4]]), nearest(np.r_[v[:4], x[:4]])
    np.testing.assert_allclose(found, base + (left * np.r_[s[:4], d[:4]]) @ right, atol=1e-9)


def test_vectors_get_the_mean():
    found = tsv_m(np.ones(3), [np.array([1.0, 2.0, 3.0]), np.array([3.0, 0.0, 0.0])], lambda_=0.5)
    assert found.tolist() == [2.0, 1.5, 1.75]


def test_randomized_is_near_exact_where_the_spectrum_falls():
    rng = np.random.default_rng(2)
    taus = []
    for _ in range(6):
        u, v = np.linalg.qr(rng.standard_normal((96, 96)))[0], np.linalg.qr(rng.standard_normal((120, 96)))[0]
        taus.append((u * 0.8 ** np.arange(96)) @ v.T)
    base = np.zeros((96, 120))
    exact, near = tsv_m(base, taus), tsv_m(base, taus, algorithm="randomized", seed=3)
    assert 0 < np.linalg.norm(near - exact) < 1e-3 * np.linalg.norm(exact)


def test_adapters_give_what_their_products_give():
    rng = np.random.default_rng(3)
    pairs = [(rng.standard_normal((30, 4)), rng.standard_normal((4, 50))) for _ in range(3)]
    base, tile = np.zeros((30, 50)), Tile(shape=(30, 50))
    asked = []

    def load(index):
        asked.append(index)
        return pairs[index][0] @ pairs[index][1]

    dense = tsv_m.apply_matrix(base, Matrices(3, (30, 50), load), tsv_m.check({}, 3), tile)
    assert asked == [0, 1, 2]  # each is loaded once
    thin = tsv_m.apply_matrix(base, Matrices(3, (30, 50), load, lambda t: pairs[t]), tsv_m.check({}, 3), tile)
    assert asked == [0, 1, 2]
    np.testing.assert_allclose(thin, dense, atol=1e-8)
